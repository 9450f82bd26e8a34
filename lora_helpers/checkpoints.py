"""Checkpoints: list, verify and load, without executing anything that a file may contain.

A checkpoint with a manifest is whole and compared with it; a folder without one is foreign and taken after
structural checks.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .bases import load_base
from .config import LABELS, PINNED
from .errors import CheckFailed, InputError
from .files import adapters
from .files.adapters import ADAPTER_CONFIG, WEIGHTS
from .files.columns import class_of
from .files.documents import PICKLES, require_content
from .files.hub import base_files, base_folder, base_identity, how_to_restore, require_here
from .files.manifests import MANIFEST, hash_file, read_manifest
from .files.places import REPOSITORY, find_folder, full_name, is_folder_name
from .model import longest_input

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizer


@dataclass(frozen=True)
class Verification:
    """What `verify_checkpoint` found; `notices` are worth reading and no errors."""

    manifest: dict  # as it was sealed, with the step and the files whose checksum was compared; empty: foreign
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


def verify_checkpoint(folder: Path | str, *, fetch: bool = False, control: bool = False) -> Verification:
    """What `load_checkpoint` finds on its way; `fetch`: also download a base that no profile names."""
    return load_checkpoint(folder, fetch=fetch, control=control)[2]


def load_checkpoint(
    folder: Path | str, *, fetch: bool = True, control: bool = False
) -> tuple[PeftModel, PreTrainedTokenizer, Verification]:
    """The model of a checkpoint in evaluation mode, float32 on the CPU, its tokenizer and what was verified.

    First comes what the folder itself tells: checksums, configuration, tensors. Only then is the base opened, or
    fetched, and the tensors compared with what PEFT would save for it. One on a base of random weights is refused
    unless `control` says that the caller draws these weights again.

    Raises: InputError: no checkpoint at `folder`, or its base model is not to be had here. CheckFailed: it is damaged,
        or would load only partly; the message lists what does not fit.
    """
    from peft import PeftModelForSequenceClassification, set_peft_model_state_dict

    folder, notices = Path(os.path.realpath(folder)), []
    manifest, unlisted = _verify_files(folder, notices)
    lora = adapters.read_adapter_config(folder, notices)
    weights = adapters.read_weights(folder, lora)
    base_name, revision = _name_base(folder, lora, notices, sealed=bool(manifest))
    lora.base_model_name_or_path, lora.revision = base_name, revision
    if not fetch and PINNED.get(base_name, "") != revision:
        require_here(base_name, revision)
    if manifest:
        if manifest["config"].get("random_base") and not control:
            raise CheckFailed("this checkpoint is a control on a base of random weights, not kept; train it again")
        _verify_base(manifest, base_name, revision, notices)
    base, tokenizer, new_weights = load_base(base_name, revision)
    if not manifest:
        _verify_classes(folder, base_files(base_name, revision))
    if (folder / "tokenizer.json").is_file() and "tokenizer.json" not in unlisted:
        _verify_vocabulary(folder / "tokenizer.json", tokenizer, base_name)
    with adapters.refusals_in_one_line(folder):
        adapters.require_quick_patterns(folder, lora, [name for name, _ in base.named_modules()])
        model = PeftModelForSequenceClassification(base, lora)
        set_peft_model_state_dict(model, _verify_weights(folder, model, weights, new_weights, notices))
    longest = longest_input(base)
    max_length = min(manifest["config"]["max_length"], longest) if manifest else longest
    return model.eval(), tokenizer, Verification(manifest, len(weights), max_length, notices, unlisted)


def _name_base(folder: Path, lora: LoraConfig, notices: list[str], *, sealed: bool) -> tuple[str, str | None]:
    """The name of the base model and its commit on the Hub, None for a folder."""
    name, revision = lora.base_model_name_or_path, lora.revision
    if is_folder_name(name) and not find_folder(name):
        beside = folder / "base"  # where `export` puts it; an adapter may then be moved
        if sealed or not beside.is_dir():
            way = f"put it there, seen from {REPOSITORY}" if sealed else "write where it is, or its name on the Hub"
            raise InputError(f"{folder / ADAPTER_CONFIG} names the base {name!r}, a folder that is not here; {way}")
        name = str(beside)
    name = name if find_folder(name) else full_name(name)
    if revision is None and base_folder(name) is None:
        revision = PINNED.get(name)
        notices.append(f"it names no commit of {name}; using {revision or 'main, as the Hub or the cache has it'}")
    return name, revision


def _verify_files(folder: Path, notices: list[str]) -> tuple[dict, list[str]]:
    """The manifest, empty if there is none, compared with the files; and the names of the files that it does not list."""
    if not folder.is_dir():
        raise InputError(f"no checkpoint at {folder}; wanted a folder like checkpoints/mini-agnews/checkpoint-2400")
    manifest = read_manifest(folder)
    for name, wanted in manifest.get("files", {}).items():
        path = folder / name
        fault = "" if path.is_file() else "missing, but in the manifest"
        if not fault and (require_content(path) or hash_file(path) != wanted):
            fault = "SHA-256 differs from the manifest"
        if fault:
            raise CheckFailed(f"{path}: {fault}; the checkpoint is damaged, take another")
    here = {path.name for path in folder.iterdir() if not path.name.startswith(".")}  # not what Finder or Jupyter left
    listed = manifest["files"].keys() | {MANIFEST} if manifest else here
    if missing := [name for name in (ADAPTER_CONFIG, WEIGHTS) if name not in listed]:
        pickles = ", ".join(sorted(name for name in here if name.endswith(PICKLES)))
        hint = f" ({pickles} is never unpickled; save it as safetensors)" if pickles else _name_checkpoints(folder)
        raise InputError(f"{folder} is no checkpoint: {' and '.join(missing)} missing{hint}")
    if not manifest:
        notices.append("no manifest: not written by this project, its files cannot be checked against a checksum")
    if unlisted := sorted(here - listed):
        notices.append(f"not in the manifest, and not read: {', '.join(unlisted)}")
    return manifest, unlisted


def _name_checkpoints(folder: Path) -> str:
    """What to give in the place of a folder that holds checkpoints; empty if there is none."""
    inside = list_checkpoints(folder) or sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
    return f", but it holds {', '.join(path.name for path in inside)}; name one, as in {inside[-1]}" if inside else ""


def _verify_base(manifest: dict, name: str, revision: str | None, notices: list[str]) -> None:
    """Refuse a base that is not the one trained on; if only one of them is from the Hub, compare weights alone."""
    wanted, found = manifest["base"], base_identity(name, revision)
    if wanted["sha256"] == found["sha256"]:
        return
    elsewhere = bool(wanted.get("revision")) != bool(found["revision"])
    if not elsewhere or wanted.get("weights_sha256", found["weights_sha256"]) != found["weights_sha256"]:
        fault = "its weights or tokenizer are not the ones this checkpoint was trained on"
        differ = f"SHA-256 {found['sha256'][:12]}…, wanted {wanted['sha256'][:12]}…"
        raise CheckFailed(f"base model {name}: {fault} ({differ}); {how_to_restore(name, revision)}")
    compared = "the weights are the same, the tokenizer's files were" if "weights_sha256" in wanted else "it was"
    notices.append(f"base {name}: from a folder on one side, from the Hub on the other: {compared} not compared")


def _verify_classes(*folders: Path) -> None:
    """Where a configuration names a foreign adapter's classes and they are ours, their order must be ours too."""
    for path in (folder / "config.json" for folder in folders):
        with suppress(OSError, ValueError, TypeError, AttributeError, LookupError):  # nothing that names them
            names = json.loads(path.read_text(encoding="utf-8"))["id2label"]
            order = [class_of(names[key]) for key in sorted(names, key=int)]
            if order == [*range(len(LABELS))]:
                return
            if sorted(order) == [*range(len(LABELS))]:
                listed = ", ".join(LABELS[label] for label in order)
                raise CheckFailed(f"{path}: its classes are {listed}; wanted {', '.join(LABELS)}, in this order")


def _verify_vocabulary(path: Path, tokenizer: PreTrainedTokenizer, base_name: str) -> None:
    """A tokenizer saved beside the adapter must number its words as the base's does, which is the one that is used."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckFailed(f"{path}: not a tokenizer ({error!r})") from error
    if saved != json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]:
        raise CheckFailed(f"{path}: another vocabulary than that of {base_name}; the adapter belongs to another base")


def _verify_weights(folder: Path, model: PeftModel, weights: dict, new_weights: list[str], notices: list[str]) -> dict:
    """The tensors under the names of today, if they are all that PEFT would save for this configuration on this base,
    and hold the `new_weights`, which the base did not bring and which would stay random."""
    import torch
    from peft import get_peft_model_state_dict

    # False: nobody resized this base's embeddings, and "auto" would ask the Hub for a model of the base's name.
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    copies = (".modules_to_save.", ".original_module.")  # of biases, beside the ones that count
    expected = {name: tuple(t.shape) for name, t in saved.items() if not any(copy in name for copy in copies)}
    weights = adapters.respell(weights, expected)
    wanted = expected.keys() | {f"base_model.model.{name}" for name in new_weights}
    problems = [f"missing {name}" for name in sorted(wanted - weights.keys())]
    problems += [f"unexpected {name}" for name in sorted(weights.keys() - expected.keys())]
    for name, tensor in sorted(weights.items()):
        if (shape := tuple(tensor.shape)) != expected.get(name, shape):
            problems.append(f"{name} has shape {shape}, wanted {expected[name]}")
        if not torch.isfinite(tensor).all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckFailed(f"{folder / WEIGHTS} does not fit its configuration and base model: {shown}")
    if untrained := [name for name, t in weights.items() if "lora_B" in name and not t.any()]:
        notices.append(f"lora_B is all zero in {len(untrained)} layers: these adapters were never trained")
    return weights
