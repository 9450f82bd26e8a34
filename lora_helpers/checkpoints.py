"""Checkpoints: list, verify and load, without executing anything that a file may contain.

A checkpoint with a manifest is whole and compared with it; a folder without one is foreign and taken after
structural checks. Inference loads, resuming verifies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .config import ROBERTA_BASE, ROBERTA_BASE_REVISION
from .errors import CheckFailed, InputError, first_line
from .files.documents import PICKLES
from .files.hub import base_folder
from .files.manifests import MANIFEST, hash_file, read_manifest
from .model import base_identity, how_to_restore, load_base, longest_input

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedTokenizerBase

WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

# Fields that every version of PEFT writes and whose defaults would compute something else.
REQUIRED_FIELDS = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")


@dataclass(frozen=True)
class Verification:
    """What `verify_checkpoint` found; `notices` are worth reading and no errors."""

    step: int | None  # optimizer steps, None for a foreign checkpoint
    files: int  # files whose checksum was compared
    tensors: int  # tensors in the adapter file
    max_length: int  # tokens an example at which the run cut, or the base's longest input for a foreign checkpoint
    notices: list[str]
    unlisted: list[str]  # files in a whole checkpoint that its manifest does not list


def list_checkpoints(run_dir: Path | str) -> list[Path]:
    """The whole checkpoints of a run, oldest first; folders that are still being written do not count."""
    folders = [f for f in Path(run_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", f.name)]
    return sorted((f for f in folders if (f / MANIFEST).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in the folder's name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def verify_checkpoint(folder: Path | str) -> Verification:
    """Checksums, the adapter's configuration, its keys and shapes against the base model's.

    Raises:
        InputError: there is no checkpoint at `folder`, or its base model is not to be had here.
        CheckFailed: it is damaged, or would load only partly; the message lists what does not fit.
    """
    return load_checkpoint(folder)[2]


def load_checkpoint(folder: Path | str) -> tuple[PeftModel, PreTrainedTokenizerBase, Verification]:
    """The model of a checkpoint in evaluation mode, float32 on the CPU, its tokenizer and what was verified.

    Raises: as `verify_checkpoint`, which this does first.
    """
    from peft import PeftModelForSequenceClassification, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder).resolve()
    manifest, unlisted = _verify_files(folder)
    notices = []
    if manifest is None:
        notices.append("no manifest: not written by this project, its files cannot be checked against a checksum")
    if unlisted:
        notices.append(f"not in the manifest, and not read: {', '.join(unlisted)}")
    lora = _read_adapter_config(folder, notices)
    base_name, revision = lora.base_model_name_or_path, lora.revision
    if revision is None and base_folder(base_name) is None:
        revision = ROBERTA_BASE_REVISION if base_name == ROBERTA_BASE else None
        notices.append(f"it names no commit of {base_name}; used is {revision or 'what the Hub has as main today'}")
    _verify_base(manifest, base_name, revision, notices)
    base, tokenizer, new_weights = load_base(base_name, revision)
    _verify_vocabulary(folder, tokenizer, base_name)
    try:
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    except SafetensorError as error:
        raise CheckFailed(f"{folder / WEIGHTS}: not a safetensors file ({error}); take another checkpoint") from error
    with _refusals_in_one_line(folder):
        model = PeftModelForSequenceClassification(base, lora)
    _verify_weights(folder, model, weights, new_weights, notices)
    with _refusals_in_one_line(folder):
        set_peft_model_state_dict(model, weights)
    step = manifest.get("step") if manifest else None
    files = len(manifest["files"]) if manifest else 0
    longest = longest_input(base)
    max_length = min(manifest["config"]["max_length"], longest) if manifest else longest
    return model.eval(), tokenizer, Verification(step, files, len(weights), max_length, notices, unlisted)


def _verify_files(folder: Path) -> tuple[dict | None, list[str]]:
    """The manifest, if there is one, compared with the files; and the names of the files that it does not list."""
    if not folder.is_dir():
        raise InputError(f"no checkpoint at {folder}; wanted a folder like checkpoints/mini-agnews/checkpoint-2400")
    manifest = read_manifest(folder)
    for name, wanted in (manifest["files"] if manifest else {}).items():
        path = folder / name
        if not path.is_file():
            raise CheckFailed(f"{path}: missing, but in the manifest; the checkpoint is damaged, take another")
        if hash_file(path) != wanted:
            raise CheckFailed(f"{path}: SHA-256 differs from the manifest; the checkpoint is damaged, take another")
    here = {path.name for path in folder.iterdir() if not path.name.startswith(".")}  # not what Finder or Jupyter left
    listed = here if manifest is None else manifest["files"].keys() | {MANIFEST}
    missing = [name for name in (ADAPTER_CONFIG, WEIGHTS) if name not in listed]
    if missing:
        pickles = sorted(name for name in here if name.endswith(PICKLES))
        hint = f" ({', '.join(pickles)} is never unpickled; save it as safetensors)" if pickles else ""
        raise InputError(f"{folder} is no checkpoint: {' and '.join(missing)} missing{hint}")
    return manifest, sorted(here - listed)


def _read_adapter_config(folder: Path, notices: list[str]) -> PeftConfig:
    from dataclasses import fields

    from peft import LoraConfig

    path = folder / ADAPTER_CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in REQUIRED_FIELDS if name not in raw]
    except (ValueError, TypeError) as error:
        raise CheckFailed(f"{path}: not an adapter configuration ({error!r})") from error
    if missing:
        raise CheckFailed(f"{path}: not an adapter configuration ({', '.join(missing)} missing)")
    if (raw["peft_type"], raw["task_type"]) != ("LORA", "SEQ_CLS"):
        raise CheckFailed(f"{path}: {raw['peft_type']} for {raw['task_type']}, wanted LORA for SEQ_CLS")
    base = raw["base_model_name_or_path"]
    if not isinstance(base, str) or not base:
        raise CheckFailed(f"{path}: base_model_name_or_path is {base!r}, wanted the base model's name")
    known = {f.name for f in fields(LoraConfig)} - {"runtime_config"}  # a matter of the process, as PEFT sees it too
    unknown = sorted(set(raw) - known)
    if unknown:
        shown = ", ".join(f"{name} = {raw[name]!r}" for name in unknown)
        notices.append(f"fields of another PEFT version ignored: {shown}")
    with _refusals_in_one_line(folder):
        return LoraConfig(**{key: value for key, value in raw.items() if key in known} | {"inference_mode": True})


@contextmanager
def _refusals_in_one_line(folder: Path) -> Iterator[None]:
    """Whatever PEFT raises over values that make no sense, or modules it cannot nest, says which file holds them."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError, ImportError, re.error) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise CheckFailed(f"{folder / ADAPTER_CONFIG}: PEFT cannot apply it to its base model ({reason})") from error


def _verify_base(manifest: dict | None, name: str, revision: str | None, notices: list[str]) -> None:
    if manifest and manifest.get("config", {}).get("random_base"):
        raise CheckFailed(
            "this checkpoint is a control on a base with random weights, which is not kept; train it again"
        )
    wanted = (manifest or {}).get("base") or {}
    found = base_identity(name, revision)
    if wanted and bool(wanted.get("revision")) != bool(found["revision"]):
        notices.append(f"the base {name} comes from a folder on one side and from the Hub on the other: not compared")
    elif wanted and not wanted.get("sha256"):
        notices.append(f"the checkpoint does not say which bytes its base {name} had: not compared")
    elif wanted and wanted["sha256"] != found["sha256"]:
        raise CheckFailed(
            f"base model {name}: its weights or tokenizer are not the ones this checkpoint was trained on"
            f" (SHA-256 {found['sha256'][:12]}…, wanted {wanted['sha256'][:12]}…); {how_to_restore(name, revision)}"
        )


def _verify_vocabulary(folder: Path, tokenizer: PreTrainedTokenizerBase, base_name: str) -> None:
    """A tokenizer saved beside the adapter must number its words as the base's does, which is the one that is used."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(f"{path}: not a tokenizer ({error!r})") from error
    if saved != json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]:
        raise CheckFailed(f"{path}: another vocabulary than that of {base_name}; the adapter belongs to another base")


def _verify_weights(folder: Path, model: PeftModel, weights: dict, new_weights: list[str], notices: list[str]) -> None:
    """Every key and shape that PEFT would save for this configuration on this base, no more, no less.

    `new_weights` are those that the base did not bring: the file must hold them, or they would stay random.
    """
    import torch
    from peft import get_peft_model_state_dict

    # False: nobody resized this base's embeddings, and "auto" would ask the Hub for a model of the base's name.
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tuple(t.shape) for name, t in saved.items()}
    wanted = expected.keys() | {f"base_model.model.{name}" for name in new_weights}
    problems = [f"missing {name}" for name in sorted(wanted - weights.keys())]
    problems += [f"unexpected {name}" for name in sorted(weights.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, wanted {expected[name]}"
        for name in sorted(expected.keys() & weights.keys())
        if tuple(weights[name].shape) != expected[name]
    ]
    problems += [f"{name} holds NaN or infinity" for name, t in sorted(weights.items()) if not torch.isfinite(t).all()]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckFailed(f"{folder / WEIGHTS} does not fit its configuration and base model: {shown}")
    untrained = [name for name, t in weights.items() if "lora_B" in name and not t.any()]
    if untrained:
        notices.append(f"lora_B is all zero in {len(untrained)} layers: these adapters were never trained")
