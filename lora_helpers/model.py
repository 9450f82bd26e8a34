"""A base model with its tokenizer, wrapped in LoRA by PEFT, and what can be read off it: counts, norms, shape."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .bases import FULL_SIZE, full_size_shape, load_base, read_shape
from .config import RunConfig
from .errors import InputError, first_line, nearest
from .files.hub import base_files
from .files.places import full_name, portable_name

if TYPE_CHECKING:
    import pandas as pd
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedTokenizerBase


def build_model(config: RunConfig) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model that `config` trains, float32, and its tokenizer; the head is drawn here, so the seed is set here too.

    Raises: InputError: the base cannot be loaded, a LoRA target names no linear layer, or new weights would stay frozen.
    """
    import transformers
    from peft import get_peft_model
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    transformers.set_seed(config.seed)
    base, tokenizer, new_weights = load_base(
        config.base_model, config.base_revision, dropout=config.base_dropout, random=config.random_base,
        or_else=", or use the profile mini, which needs neither (PROFILE=mini)",
    )  # fmt: skip
    prefix, kinds = f"{base.base_model_prefix}.", (Linear, Conv1D)
    linear = [name for name, module in base.named_modules() if name.startswith(prefix) and isinstance(module, kinds)]
    if idle := [target for target in config.lora_targets if not any(f".{n}".endswith(f".{target}") for n in linear)]:
        names = sorted({name.rpartition(".")[2] for name in linear})
        fault = f"the encoder has no linear layer called {idle[0]!r}{nearest(idle[0], names)}"
        raise InputError(f"lora_targets {config.lora_targets}: {fault}; there are {', '.join(names)}")
    try:
        model = get_peft_model(base, make_lora_config(config, sorted({name.split(".")[0] for name in new_weights})))
    except ValueError as error:
        raise InputError(f"lora_targets {config.lora_targets}: {first_line(error)}") from error
    # PEFT writes the folder it loaded from; a checkpoint must not carry a path of this machine.
    model.peft_config["default"].base_model_name_or_path = portable_name(config.base_model)
    model.peft_config["default"].target_modules = sorted(config.lora_targets)  # a set would be written in any order
    # Left to itself, PEFT asks the Hub at every save for the base's `main` branch, to see whether the vocabulary grew.
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    # A weight that was just drawn at random and stays frozen would ruin the model without a word.
    trainable = {
        name.replace(".modules_to_save.default", "") for name, p in model.named_parameters() if p.requires_grad
    }
    if frozen := ", ".join(name for name in new_weights if f"base_model.model.{name}" not in trainable):
        raise InputError(f"newly initialised weights would stay frozen: {frozen}; train their module in full")
    return model, tokenizer


def make_lora_config(config: RunConfig, heads: list[str]) -> LoraConfig:
    """A fresh PEFT configuration (PEFT changes the one it is given). `heads` are trained in full and saved."""
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.SEQ_CLS, r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets), bias="none", modules_to_save=heads, revision=config.base_revision,
    )  # fmt: skip


def build_meta_model(config: RunConfig) -> PeftModel:
    """The base of `config`, whose head must be called `classifier`, under its LoRA on the meta device: every count, no
    weight; roberta-base and mpnet-base no file."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    name = full_name(config.base_model)
    shape = full_size_shape(name) if name in FULL_SIZE else read_shape(base_files(name, config.base_revision))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(shape, trust_remote_code=False)
        return get_peft_model(model, make_lora_config(config, ["classifier"]))


def count_parameters(model: PeftModel) -> dict[str, int]:
    """Parameters by role: `lora`, `head`, `frozen`, `trainable`, `total`, and `peft_all`, which is what PEFT prints: it
    keeps the frozen original of every module it saves in full beside its trained copy and counts both."""
    counts = dict.fromkeys(("lora", "head", "frozen"), 0)
    for name, parameter in model.named_parameters():
        role = "lora" if "lora_" in name else "head" if "modules_to_save" in name else "frozen"
        counts[role] += 0 if "original_module" in name else parameter.numel()
    trainable, peft_all = model.get_nb_trainable_parameters()
    return counts | {"trainable": trainable, "total": sum(counts.values()), "peft_all": peft_all}


def parameter_table(model: PeftModel) -> pd.DataFrame:
    """The counts as a table: one row a role, with its share of all parameters in percent."""
    import pandas as pd

    counts = count_parameters(model)
    names = {"lora": "LoRA (A and B)", "head": "classification head", "trainable": "trainable", "frozen": "frozen base"}
    names |= {"total": "all, each once", "peft_all": "all, as PEFT prints it (head twice)"}
    table = pd.DataFrame({"parameters": {names[role]: counts[role] for role in names}})
    table["% of all"] = (100 * table["parameters"] / counts["total"]).round(4)
    return table


def lora_norms(model) -> dict[str, dict]:
    """How far each adapted layer was moved, by its name: the Frobenius `norm` of the update (alpha / r) B A, the same
    `relative` to W's, the update's `singular_values` (r, the largest first) and the `largest_of_W`."""
    import torch

    sizes = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            W, update = module.base_layer.weight.detach(), module.get_delta_weight("default").detach()
            sizes[name.removeprefix("base_model.model.")] = {
                "norm": update.norm().item(),
                "relative": (update.norm() / W.norm()).item(),
                "singular_values": torch.linalg.svdvals(update)[: module.r["default"]].tolist(),
                "largest_of_W": torch.linalg.matrix_norm(W, 2).item(),
            }
    return sizes


def shape_of(model) -> dict:
    """What the architecture figure draws: sizes of the encoder, shapes of the first adapter, of its layer and of the head."""
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    # As BERT, DistilBERT and OPT call it; GPT-2, if it says nothing, has four times the width.
    wide = (getattr(model.config, name, None) for name in ("intermediate_size", "hidden_dim", "ffn_dim", "n_inner"))
    return {name: getattr(model.config, name) for name in names} | {
        "feed_forward_size": next(filter(None, wide), 4 * model.config.hidden_size),
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
    longest = getattr(model.config, "max_position_embeddings", None) or 0
    return longest if longest > 0 else 2**31 - 1  # positions are computed, not learnt: Funnel, XLNet
