"""A base model with its tokenizer, wrapped in LoRA by PEFT, and the table that counts its parameters.

`build_model` is the one way to a model that will be trained; `checkpoints` uses the same loading of the base.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .config import ROBERTA_BASE, RunConfig, find_folder, is_folder_name, portable_name
from .data import LABELS
from .errors import InputError, first_line

if TYPE_CHECKING:
    import pandas as pd
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Everything that decides what a base computes; other files of a folder (a card, a record) do not count.
IDENTITY_FILES = ("config.json", "*.safetensors", "tokenizer*.json", "vocab.*", "merges.txt", "*.model")

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
    _require_trainable(model, new_weights)
    return model, tokenizer


def load_base(
    name: str, revision: str | None, *, dropout: float | None = None, random: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """An encoder with a 4-class head, its tokenizer, and the names of the weights that the base did not bring.

    `name` is a Hub name at commit `revision`, or a folder; ROBERTA_BASE_DIR stands in for roberta-base.
    `dropout` replaces the probabilities of its configuration; with `random` every weight is drawn anew.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    folder = base_folder(name)
    source = str(folder) if folder else name
    revision = None if folder else revision
    if folder:
        disable_progress_bar()  # a download deserves a bar, reading a local file does not
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
        shape = AutoConfig.from_pretrained(source, revision=revision, num_labels=len(LABELS), **labels)
        for field in DROPOUT_FIELDS:
            if dropout is not None and hasattr(shape, field):
                setattr(shape, field, dropout)
        if random:
            model = AutoModelForSequenceClassification.from_config(shape, dtype=torch.float32)
            return (
                model,
                tokenizer,
                [n for n, _ in model.named_parameters() if not n.startswith(model.base_model_prefix)],
            )
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source, revision=revision, config=shape, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # offline, no weights, damaged, another shape
        raise InputError(
            f"base model {name!r} could not be loaded ({first_line(error)}); connect to the Hub,"
            " set ROBERTA_BASE_DIR to a folder with roberta-base, or use PROFILE=mini"
        ) from error
    missing = sorted(info["missing_keys"])
    inside = [key for key in missing if key.startswith(model.base_model_prefix + ".")]
    if inside:
        raise InputError(
            f"base model {name!r} lacks {len(inside)} weights of its own, e.g. {inside[0]}; it is incomplete"
        )
    return model, tokenizer, missing


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
    from transformers import RobertaConfig, RobertaForSequenceClassification

    shape = RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=len(LABELS))
    with torch.device("meta"):
        return get_peft_model(RobertaForSequenceClassification(shape), make_lora_config(config, ["classifier"]))


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


def base_folder(name: str) -> Path | None:
    """The local folder that `name` means here, None if it is a Hub name. ROBERTA_BASE_DIR counts for roberta-base."""
    if name == ROBERTA_BASE and os.environ.get("ROBERTA_BASE_DIR"):
        folder = Path(os.environ["ROBERTA_BASE_DIR"])
        if not folder.is_dir():
            raise InputError(f"ROBERTA_BASE_DIR is {str(folder)!r}, which is no folder; wanted roberta-base's files")
        return folder
    folder = find_folder(name)
    if folder is None and is_folder_name(name):
        raise InputError(f"base model folder {name!r} is missing; give a folder with config.json and model.safetensors")
    return folder


def longest_input(model) -> int:
    """Tokens that the base has positions for; RoBERTa's and MPNet's begin after the padding index."""
    import torch

    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return model.config.max_position_embeddings


def base_identity(name: str, revision: str | None) -> dict[str, str | None]:
    """What identifies a base: name and commit on the Hub, or name and SHA-256 of a folder's weights and tokenizer."""
    folder = base_folder(name)
    if folder is None:
        return {"name": name, "revision": revision, "sha256": None}
    digest = hashlib.sha256()
    for file in sorted({path for pattern in IDENTITY_FILES for path in folder.glob(pattern)}):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return {"name": portable_name(name), "revision": None, "sha256": digest.hexdigest()}


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
