"""Checkpoints: list, verify and load, without executing anything that a file may contain.

A checkpoint with a manifest is whole and compared with it; a folder without one is foreign and taken after
structural checks. `inference` loads and `training.resuming` verifies, both by `load_checkpoint`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .config import PINNED
from .errors import REFUSALS, CheckFailed, InputError, first_line
from .files.documents import PICKLES
from .files.hub import base_folder, require_here, require_weights
from .files.manifests import MANIFEST, hash_file, read_manifest
from .model import base_identity, how_to_restore, load_base, longest_input

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedTokenizerBase

WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

# Fields that every version of PEFT writes and whose defaults would compute something else.
REQUIRED_FIELDS = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")

# Fields that may differ from PEFT's default: what others add (layers, say) has no bound in the file's own tensors.
PLAIN_FIELDS = {
    *REQUIRED_FIELDS, "alpha_pattern", "auto_mapping", "bias", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_bias", "lora_dropout",
    "modules_to_save", "peft_version", "rank_pattern", "revision", "use_dora", "use_rslora",
}  # fmt: skip

PATTERNS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern")
SECONDS = 5  # for all of them; they take milliseconds
TRIAL = r"""import contextlib, json, re, sys
patterns, names = json.load(sys.stdin)
for pattern, name in ((pattern, name) for pattern in patterns for name in names):
    for form in ("{}", r"(.*\.)?({})", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\..*"):  # PEFT's ways
        with contextlib.suppress(Exception):
            re.fullmatch(form.format(pattern), name)
"""


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


def verify_checkpoint(folder: Path | str, *, fetch: bool = False) -> Verification:
    """Everything that `load_checkpoint` checks, on its way and without keeping the model.

    Args:
        fetch: whether a base model may come from the Hub that is neither a profile's nor in the cache.
    """
    return load_checkpoint(folder, fetch=fetch)[2]


def load_checkpoint(
    folder: Path | str, *, fetch: bool = True
) -> tuple[PeftModel, PreTrainedTokenizerBase, Verification]:
    """The model of a checkpoint in evaluation mode, float32 on the CPU, its tokenizer and what was verified.

    First comes what the folder itself tells: checksums, configuration, names and shapes of its tensors. Only then is
    the base opened, or fetched, and the tensors compared with what PEFT would save for it.

    Raises:
        InputError: there is no checkpoint at `folder`, or its base model is not to be had here.
        CheckFailed: it is damaged, or would load only partly; the message lists what does not fit.
    """
    from peft import PeftModelForSequenceClassification, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = Path(folder).resolve()
    manifest, unlisted = _verify_files(folder)
    notices = []
    if manifest is None:
        notices.append("no manifest: not written by this project, its files cannot be checked against a checksum")
    if unlisted:
        notices.append(f"not in the manifest, and not read: {', '.join(unlisted)}")
    lora = _read_adapter_config(folder, notices)
    _require_ranks(folder, lora)
    base_name, revision = _name_base(lora, notices)
    if not fetch and PINNED.get(base_name, "") != revision:
        require_here(base_name, revision)
    _verify_base(manifest, base_name, revision, notices)
    base, tokenizer, new_weights = load_base(base_name, revision)
    _verify_vocabulary(folder, tokenizer, base_name)
    weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    with _refusals_in_one_line(folder):
        _require_quick_patterns(folder, lora, [name for name, _ in base.named_modules()])
        model = PeftModelForSequenceClassification(base, lora)
    _verify_weights(folder, model, weights, new_weights, notices)
    with _refusals_in_one_line(folder):
        set_peft_model_state_dict(model, weights)
    step = manifest.get("step") if manifest else None
    files = len(manifest["files"]) if manifest else 0
    longest = longest_input(base)
    max_length = min(manifest["config"]["max_length"], longest) if manifest else longest
    return model.eval(), tokenizer, Verification(step, files, len(weights), max_length, notices, unlisted)


def _name_base(lora: PeftConfig, notices: list[str]) -> tuple[str, str | None]:
    """The name of the base model and its commit on the Hub, None for a folder."""
    name, revision = lora.base_model_name_or_path, lora.revision
    if revision is None and base_folder(name) is None:
        revision = PINNED.get(name)
        notices.append(f"it names no commit of {name}; used is {revision or 'main, as the Hub or the cache has it'}")
    return name, revision


def _require_ranks(folder: Path, lora: PeftConfig) -> None:
    """No rank may be larger than in the file, whose header is read alone: PEFT would allocate what it is told."""
    from safetensors import SafetensorError, safe_open

    require_weights(folder / WEIGHTS)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, no dictionary
    except SafetensorError as error:
        raise CheckFailed(f"{folder / WEIGHTS}: not a safetensors file ({error}); take another checkpoint") from error
    largest = max((min(shape) for name, shape in shapes.items() if "lora_" in name and len(shape) == 2), default=0)
    with _refusals_in_one_line(folder):
        rank = max(lora.r, *lora.rank_pattern.values(), 0)
    if rank > largest:
        raise CheckFailed(
            f"{folder / ADAPTER_CONFIG}: rank {rank}, but no adapter in {WEIGHTS} has more than {largest};"
            " its configuration belongs to another file"
        )


def _require_quick_patterns(folder: Path, lora: PeftConfig, names: list[str]) -> None:
    """What PEFT matches as regular expressions with the modules' `names` must come to an end: tried where it can be stopped."""
    given = [getattr(lora, field) for field in PATTERNS]
    given = [string for field in given for string in ([field] if isinstance(field, str) else field or ())]
    patterns = [string for string in given if not re.fullmatch(r"[\w.-]*", string)]
    try:
        if patterns:
            tried = json.dumps([patterns, names])
            subprocess.run(
                [sys.executable, "-ISc", TRIAL], input=tried, text=True, capture_output=True, timeout=SECONDS
            )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(
            f"{folder / ADAPTER_CONFIG}: matching {patterns[0]!r:.80} takes more than {SECONDS} s; list the modules' names"
        ) from error


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
        if path.stat().st_size > 100_000:  # bytes; PEFT writes a few thousand
            raise ValueError(f"{path.stat().st_size:,} bytes long")
        raw = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in REQUIRED_FIELDS if name not in raw]
    except (ValueError, TypeError) as error:
        raise CheckFailed(f"{path}: not an adapter configuration ({error!r})") from error
    if missing:
        raise CheckFailed(f"{path}: not an adapter configuration ({', '.join(missing)} missing)")
    if (raw["peft_type"], raw["task_type"]) != ("LORA", "SEQ_CLS"):
        raise CheckFailed(f"{path}: {raw['peft_type']} for {raw['task_type']}, wanted LORA for SEQ_CLS")
    base, revision = raw["base_model_name_or_path"], raw.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise CheckFailed(f"{path}: base_model_name_or_path is {base!r} at {revision!r}, wanted the base model's name")
    plain = LoraConfig().to_dict()
    odd = {name: raw[name] for name in plain.keys() & raw.keys() - PLAIN_FIELDS if raw[name]}
    odd = {name: value for name, value in odd.items() if value != plain[name]}
    if re.search(r"\d{3}", str(raw.get("init_lora_weights"))):
        odd["init_lora_weights"] = raw["init_lora_weights"]
    if odd:
        raise CheckFailed(f"{path}: {_listed(odd)}, which this project does not load; wanted a plain LoRA, or DoRA")
    known = {f.name for f in fields(LoraConfig)} - {"runtime_config"}  # a matter of the process, as PEFT sees it too
    unknown = {name: value for name, value in sorted(raw.items()) if name not in known}
    if unknown:
        notices.append(f"fields of another PEFT version ignored: {_listed(unknown)}")
    with _refusals_in_one_line(folder):
        return LoraConfig(**{key: value for key, value in raw.items() if key in known} | {"inference_mode": True})


def _listed(values: dict) -> str:
    return ", ".join(f"{name} = {value!r:.80}" for name, value in sorted(values.items()))


@contextmanager
def _refusals_in_one_line(folder: Path) -> Iterator[None]:
    """Whatever PEFT raises over values that make no sense, or modules it cannot nest, says which file holds them."""
    try:
        yield
    except (*REFUSALS, re.error) as error:
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
