"""A base model with its tokenizer, wrapped in LoRA by PEFT, and the table that counts its parameters.

`build_model` is the one way to a model that will be trained; `checkpoints` uses the same loading of the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .config import LABELS, ROBERTA_BASE, RunConfig
from .errors import REFUSALS, InputError, first_line
from .files.hub import base_files, how_to_restore
from .files.hub import base_identity as base_identity
from .files.places import portable_name

if TYPE_CHECKING:
    import pandas as pd
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, RobertaConfig

ROBERTA_BASE_PARAMETERS = 124_648_708  # with the 4-class head: 12 layers of width 768, 50,265 tokens, 514 positions

DROPOUT_FIELDS = (  # as BERT-like configurations spell them, then DistilBERT's
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("dropout", "attention_dropout", "seq_classif_dropout"),
)


def build_model(config: RunConfig) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model that `config` trains, float32, and its tokenizer.

    Seeds first: the classification head is drawn here, before the Trainer's own seed acts.

    Raises:
        InputError: the base cannot be loaded, a LoRA target names no layer, or new weights would stay frozen.
    """
    import transformers
    from peft import get_peft_model

    transformers.set_seed(config.seed)
    base, tokenizer, new_weights = load_base(
        config.base_model, config.base_revision, dropout=config.base_dropout, random=config.random_base
    )
    heads = sorted({name.split(".")[0] for name in new_weights})
    lora = make_lora_config(config, heads)
    try:
        model = get_peft_model(base, lora)
    except ValueError as error:
        raise InputError(f"lora_targets {config.lora_targets}: {first_line(error)}") from error
    # PEFT writes the folder it loaded from; a checkpoint must not carry a path of this machine.
    model.peft_config["default"].base_model_name_or_path = portable_name(config.base_model)
    # Left to itself, PEFT asks the Hub at every save for the base's `main` branch, to see whether the vocabulary grew.
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    _require_trainable(model, new_weights)
    return model, tokenizer


def load_base(
    name: str, revision: str | None, *, dropout: float | None = None, random: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """An encoder with a 4-class head, its tokenizer, and the names of the weights that the base did not bring.

    `name` is a Hub name at commit `revision`, or a folder; ROBERTA_BASE_DIR stands in for roberta-base.
    `dropout` replaces the probabilities of its configuration; with `random` every weight is drawn anew.
    Nothing but JSON and safetensors is read: whoever made the folder gets no code run, and no question asked.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    folder = base_files(name, revision)
    disable_progress_bar()  # a download deserves a bar, reading a local file does not
    with _refusals_in_one_line(name, revision):
        shape = _read_shape(folder, dropout)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if random:
            model = AutoModelForSequenceClassification.from_config(shape, dtype=torch.float32, trust_remote_code=False)
            missing = [n for n, _ in model.named_parameters() if not n.startswith(model.base_model_prefix)]
        else:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, config=shape, dtype=torch.float32,
                use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
            missing = sorted(info["missing_keys"])
    if misfit := _find_misfit(name, model, tokenizer, missing):
        raise InputError(f"base model {name!r} {misfit}; {how_to_restore(name, revision)}")
    compute_first_token_alone(model)
    return model, tokenizer, missing


def _read_shape(folder: Path, dropout: float | None) -> PreTrainedConfig:
    """The configuration in `folder`, for our four classes; what it says about files and kernels to load is dropped."""
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, attn_implementation=None, num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    shape.transformers_weights = None  # else another file than those that identify the base
    for field in DROPOUT_FIELDS:
        if dropout is not None and hasattr(shape, field):
            setattr(shape, field, dropout)
    return shape


@contextmanager
def _refusals_in_one_line(name: str, revision: str | None) -> Iterator[None]:
    """Whatever the libraries raise over a base without weights, damaged, of another shape, or with code of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except (*REFUSALS, SafetensorError) as error:
        if "custom code" in str(error):
            raise InputError(
                f"base model {name!r} brings Python code of its own (auto_map), which is never run;"
                " give a base whose model_type and tokenizer transformers knows by itself"
            ) from error
        raise InputError(
            f"base model {name!r} could not be loaded ({first_line(error)}); {how_to_restore(name, revision)}"
        ) from error


def compute_first_token_alone(model: PreTrainedModel) -> AbstractContextManager:
    """Behind its last attention, let a RoBERTa or MPNet classifier compute `<s>` alone: its head reads nothing else.

    The last layer's feed-forward block and, in RoBERTa, the attention's output projection, 8 or 9 of the 12
    width x width products of a layer, are done for one token instead of all. Logits and gradients stay the same;
    `last_hidden_state` has one token.

    Returns:
        The hook's handle, which `with` removes at its end. For another kind of model nothing is done.
    """
    from transformers import MPNetForSequenceClassification, RobertaForSequenceClassification

    if isinstance(model, RobertaForSequenceClassification):
        behind_attention = model.roberta.encoder.layer[-1].attention.output
    elif isinstance(model, MPNetForSequenceClassification):
        behind_attention = model.mpnet.encoder.layer[-1].attention.LayerNorm
    else:
        return nullcontext()
    return behind_attention.register_forward_pre_hook(_keep_first_token)


def _keep_first_token(module, inputs: tuple) -> tuple:
    """Of each hidden state <float32>[rows, tokens, width], the first token's; a hook, so at module level to be pickled."""
    return tuple(each[:, :1] for each in inputs)


def make_lora_config(config: RunConfig, heads: list[str]) -> LoraConfig:
    """A fresh PEFT configuration (PEFT changes the one it is given). `heads` are trained in full and saved."""
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
        bias="none",
        modules_to_save=heads,
        revision=config.base_revision,
    )


def build_meta_model(config: RunConfig) -> PeftModel:
    """roberta-base's shape under the LoRA of `config`, on the meta device: every count, no weight, no download."""
    import torch
    from peft import get_peft_model
    from transformers import RobertaForSequenceClassification

    with torch.device("meta"):
        model = RobertaForSequenceClassification(roberta_base_shape())
        return get_peft_model(model, make_lora_config(config, ["classifier"]))


def roberta_base_shape() -> RobertaConfig:
    """roberta-base's configuration with a 4-class head."""
    from transformers import RobertaConfig

    return RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=len(LABELS))


def count_parameters(model: PeftModel) -> dict[str, int]:
    """Parameters by role: `lora`, `head`, `frozen`, `trainable`, `total`, and `peft_all`, which is what PEFT prints.

    PEFT keeps the frozen original of every module it saves in full beside its trained copy and counts both.
    """
    counts = dict.fromkeys(("lora", "head", "frozen", "original_head"), 0)
    for name, parameter in model.named_parameters():
        role = "lora" if "lora_" in name else "head" if "modules_to_save" in name else "frozen"
        counts["original_head" if "original_module" in name else role] += parameter.numel()
    spare = counts.pop("original_head")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(counts.values())
    return counts | {"trainable": trainable, "total": total, "peft_all": total + spare}


def parameter_table(model: PeftModel) -> pd.DataFrame:
    """The counts as a table: one row a role, with its share of all parameters in percent."""
    import pandas as pd

    counts = count_parameters(model)
    rows = {
        "LoRA (A and B)": counts["lora"],
        "classification head": counts["head"],
        "trainable": counts["trainable"],
        "frozen base": counts["frozen"],
        "all, each once": counts["total"],
        "all, as PEFT prints it (head twice)": counts["peft_all"],
    }
    table = pd.DataFrame({"parameters": rows})
    table["% of all"] = (100 * table["parameters"] / counts["total"]).round(4)
    return table


def lora_norms(model) -> dict[str, float]:
    """Frobenius norm of the update (alpha / r) B A of every adapted layer, by the layer's name."""
    norms = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            update = module.lora_B["default"].weight @ module.lora_A["default"].weight
            norms[name.removeprefix("base_model.model.")] = module.scaling["default"] * update.norm().item()
    return norms


def shape_of(model) -> dict:
    """What the architecture figure draws: sizes of the encoder, shapes of the first adapter, of its layer and of the head."""
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    return {name: getattr(model.config, name) for name in names} | {
        "feed_forward_size": getattr(model.config, "intermediate_size", None)
        or model.config.hidden_dim,  # DistilBERT's name
        "W": list(layer.base_layer.weight.shape),
        "A": list(layer.lora_A["default"].weight.shape),
        "B": list(layer.lora_B["default"].weight.shape),
        "head": [list(p.shape) for name, p in model.named_parameters() if "modules_to_save" in name and p.ndim == 2],
    }


def longest_input(model) -> int:
    """Tokens that the base has positions for; RoBERTa's and MPNet's begin after the padding index."""
    import torch

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return model.config.max_position_embeddings


def _find_misfit(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing: list[str]) -> str:
    """What does not belong together, or is not what its name says; empty if all is well."""
    inside = [key for key in missing if key.startswith(model.base_model_prefix + ".")]
    rows, tokens, parameters = model.get_input_embeddings().num_embeddings, len(tokenizer), model.num_parameters()
    if inside:
        return f"lacks {len(inside)} weights of its own, e.g. {inside[0]}; it is incomplete"
    if name == ROBERTA_BASE and parameters != ROBERTA_BASE_PARAMETERS:
        return f"has {parameters:,} parameters, wanted {ROBERTA_BASE_PARAMETERS:,}"
    if tokens > rows or (name == ROBERTA_BASE and tokens != rows):  # other models pad their embeddings
        return f"has {tokens:,} tokens in its vocabulary and {rows:,} in its embeddings, wanted as many"
    return ""


def _require_trainable(model: PeftModel, new_weights: list[str]) -> None:
    """A weight that was just drawn at random and stays frozen would ruin the model without a word."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = [w for w in new_weights if not any(_is_copy_of(name, w) for name in trainable)]
    if frozen:
        raise InputError(
            f"newly initialised weights would stay frozen: {', '.join(frozen)}; train their module in full"
        )


def _is_copy_of(peft_name: str, weight: str) -> bool:
    return peft_name.replace(".modules_to_save.default", "").removeprefix("base_model.model.") == weight
