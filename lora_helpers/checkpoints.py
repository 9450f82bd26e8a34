"""Checkpoints: list, seal, verify and load, without executing anything that a file may contain.

A checkpoint is whole once `manifest.json` stands in it: it is written last and holds the SHA-256 of every file.
A folder without one is foreign; it is taken after structural checks. Training seals, inference loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .config import REPOSITORY
from .errors import CheckFailed, InputError, first_line
from .model import base_identity, load_base, longest_input

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedTokenizerBase

MANIFEST = "manifest.json"
WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
NEVER_READ = (".bin", ".pt", ".pth", ".pkl", ".pickle")


@dataclass(frozen=True)
class Verification:
    """What `verify_checkpoint` found; `notices` are worth reading and no errors."""

    folder: Path
    step: int | None  # optimizer steps, None for a foreign checkpoint
    files: int  # files whose checksum was compared
    tensors: int  # tensors in the adapter file
    max_length: int  # tokens an example at which the run cut, or the base's longest input for a foreign checkpoint
    notices: list[str] = field(default_factory=list)


def list_checkpoints(run_dir: Path | str) -> list[Path]:
    """The whole checkpoints of a run, oldest first; folders that are still being written do not count."""
    folders = [f for f in Path(run_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", f.name)]
    return sorted((f for f in folders if (f / MANIFEST).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in the folder's name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def seal(folder: Path, details: dict) -> None:
    """Make `folder` a whole checkpoint: checksums of all its files, and `details`, in a manifest written last.

    The Trainer's `training_args.bin` is removed first: it is a pickle of the arguments, and the record has them.
    """
    (folder / "training_args.bin").unlink(missing_ok=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the run has one of its own
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    for path in files:
        _sync(path)
    manifest = details | {"files": {path.name: hash_file(path) for path in files}}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> dict | None:
    """The manifest of a whole checkpoint, None for a foreign folder."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest["files"], dict):
            raise TypeError("files is no object")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(f"{path}: not a manifest ({error}); the checkpoint is damaged, take another") from error


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
    manifest, notices = _verify_files(folder)
    lora = _read_adapter_config(folder, notices)
    base_name = lora.base_model_name_or_path
    revision = lora.revision
    _verify_base(manifest, base_name, revision, notices)
    base, tokenizer, new_weights = load_base(base_name, revision)
    try:
        model = PeftModelForSequenceClassification(base, lora)
        weights = load_file(folder / WEIGHTS)
    except ValueError as error:
        raise CheckFailed(f"{folder / ADAPTER_CONFIG} does not fit {base_name}: {first_line(error)}") from error
    except SafetensorError as error:
        raise CheckFailed(f"{folder / WEIGHTS}: not a safetensors file ({error}); take another checkpoint") from error
    _verify_weights(folder, model, weights, new_weights, notices)
    set_peft_model_state_dict(model, weights)
    step = manifest.get("step") if manifest else None
    files = len(manifest["files"]) if manifest else 0
    longest = longest_input(base)
    max_length = min(manifest["config"]["max_length"], longest) if manifest else longest
    return model.eval(), tokenizer, Verification(folder, step, files, len(weights), max_length, notices)


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all: temporary name, fsync, rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep a shared folder's readers out
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _verify_files(folder: Path) -> tuple[dict | None, list[str]]:
    if not folder.is_dir():
        raise InputError(f"no checkpoint at {folder}; wanted a folder like checkpoints/mini-agnews/checkpoint-2400")
    manifest = read_manifest(folder)
    if manifest is None:
        missing = [name for name in (ADAPTER_CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            pickles = [p.name for p in folder.iterdir() if p.suffix in NEVER_READ]
            hint = f" ({', '.join(pickles)} is never unpickled; save it as safetensors)" if pickles else ""
            raise InputError(f"{folder} is no checkpoint: {' and '.join(missing)} missing{hint}")
        return None, ["no manifest: not written by this project, its files cannot be checked against a checksum"]
    for name, wanted in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckFailed(f"{path}: missing, but in the manifest; the checkpoint is damaged, take another")
        if hash_file(path) != wanted:
            raise CheckFailed(f"{path}: SHA-256 differs from the manifest; the checkpoint is damaged, take another")
    return manifest, []


def _read_adapter_config(folder: Path, notices: list[str]) -> PeftConfig:
    from dataclasses import fields

    from peft import LoraConfig

    path = folder / ADAPTER_CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kind = (raw["peft_type"], raw["task_type"])
        base = raw["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(f"{path}: not an adapter configuration ({error!r})") from error
    if kind != ("LORA", "SEQ_CLS"):
        raise CheckFailed(f"{path}: {kind[0]} for {kind[1]}, wanted LORA for SEQ_CLS")
    known = {f.name for f in fields(LoraConfig)}
    unknown = sorted(set(raw) - known)
    if unknown:
        notices.append(f"fields of another PEFT version ignored: {', '.join(unknown)}")
    if not isinstance(base, str) or not base:
        raise CheckFailed(f"{path}: base_model_name_or_path is {base!r}, wanted the base model's name")
    try:
        return LoraConfig(**{key: value for key, value in raw.items() if key in known} | {"inference_mode": True})
    except (ValueError, TypeError) as error:
        raise CheckFailed(f"{path}: PEFT refuses it ({first_line(error)})") from error


def _verify_base(manifest: dict | None, name: str, revision: str | None, notices: list[str]) -> None:
    if manifest and manifest.get("config", {}).get("random_base"):
        raise CheckFailed(
            "this checkpoint is a control on a base with random weights, which is not kept; train it again"
        )
    wanted = (manifest or {}).get("base") or {}
    found = base_identity(name, revision)
    if wanted and bool(wanted.get("sha256")) != bool(found["sha256"]):
        notices.append(f"the base {name} comes from a folder on one side and from the Hub on the other: not compared")
    if wanted.get("sha256") and found["sha256"] and wanted["sha256"] != found["sha256"]:
        raise CheckFailed(
            f"base model {name}: its weights or tokenizer are not the ones this checkpoint was trained on"
            f" (SHA-256 {found['sha256'][:12]}…, wanted {wanted['sha256'][:12]}…); restore {name}"
        )


def _verify_weights(folder: Path, model: PeftModel, weights: dict, new_weights: list[str], notices: list[str]) -> None:
    """Every key and shape that PEFT would save for this configuration on this base, no more, no less.

    `new_weights` are those that the base did not bring: the file must hold them, or they would stay random.
    """
    import torch
    from peft import get_peft_model_state_dict

    expected = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(model).items()}
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


def relative_to_repository(path: Path) -> str:
    """A path for a record: relative to the repository where it lies inside it, else its last part alone."""
    path = path.resolve()
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name
