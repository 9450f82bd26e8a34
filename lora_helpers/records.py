"""The run record: what was run, on what, with what result. One JSON file a run, the only source of every number.

Training and evaluation write it; figures, README and model cards are drawn from it, without model or data.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

from .checkpoints import write_atomically
from .config import REPOSITORY
from .errors import InputError

RECORD = "run.json"
SCHEMA = 1
# What a run record must hold to be drawn and reported.
REQUIRED = (
    *("schema", "profile", "config", "adapter_config", "base", "data", "environment", "parameters"),
    *("log", "checkpoints", "shape", "lengths", "padding", "lora_norms", "timing"),
)
LIBRARIES = (
    *("transformers", "datasets", "evaluate", "accelerate", "peft", "torch"),
    *("matplotlib", "pandas", "jupyter", "scikit-learn"),
)
OLDEST_TESTED = {"transformers": "5.17", "torch": "2.11"}


def write_record(run_dir: Path, record: dict) -> Path:
    """Write `run.json`; keys missing from the schema are an error of the caller."""
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise KeyError(f"run record lacks {', '.join(missing)}")
    path = Path(run_dir) / RECORD
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def read_record(run_dir: Path | str) -> dict:
    """The record of a run folder.

    Raises:
        InputError: no record there, not JSON, or of another schema.
    """
    path = Path(run_dir) / RECORD
    if not path.is_file():
        raise InputError(f"{run_dir}: no {RECORD}; wanted the folder of a finished run, e.g. checkpoints/mini-agnews")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); restore it or run again") from error
    missing = [key for key in REQUIRED if key not in record]
    if missing or record["schema"] != SCHEMA:
        raise InputError(f"{path}: not a run record of schema {SCHEMA} (missing: {', '.join(missing) or 'nothing'})")
    return record


def validation_rows(record: dict) -> list[dict]:
    """Rows of the log that hold an evaluation, by step: `step`, `eval_loss`, `eval_accuracy`, …"""
    return [row for row in record["log"] if "eval_loss" in row]


def training_rows(record: dict) -> list[dict]:
    """Rows of the log that hold a training loss (its mean over the steps since the row before)."""
    return [row for row in record["log"] if "loss" in row]


def environment() -> dict:
    """Python, libraries, device and commit. No host name, user name, path or environment variable."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": device,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "other_than_pins": check_versions(),
    }


def check_versions(requirements: Path = REPOSITORY / "requirements.txt") -> list[str]:
    """Differences between the installed packages and the pins, one line each; `+cpu` and the like are ignored.

    Raises:
        InputError: a package is missing, or older than the oldest version that was tested.
    """
    from packaging.version import Version

    pins = dict(line.split("==") for line in requirements.read_text().split() if "==" in line)
    warnings = []
    for name, pin in pins.items():
        try:
            found = Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            raise InputError(
                f"{name} is not installed; run: {sys.executable} -m pip install -r requirements.txt"
            ) from None
        oldest = OLDEST_TESTED.get(name)
        if oldest and found < Version(oldest):
            raise InputError(f"{name} is {found}, wanted {oldest} or newer (tested: {pin}); install requirements.txt")
        if found.public != Version(pin).public:
            warnings.append(f"{name} {found} instead of {pin}")
    return warnings


def stamp() -> str:
    """The environment in a few lines, for the top of the notebook."""
    check_versions()  # before anything else is asked of a package that may be missing
    facts = environment()
    versions = " · ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    commit = (facts["commit"] or "no commit")[:12] + (
        " with uncommitted changes" if facts["uncommitted_changes"] else ""
    )
    lines = [f"Python {facts['python']} on {facts['platform']} · {facts['device']} · {commit}", versions]
    if facts["other_than_pins"]:
        lines.append("Other than the pins: " + ", ".join(facts["other_than_pins"]))
    if not facts["device"].startswith("CPU"):
        lines.append('A GPU is present: PROFILE = "full" trains roberta-base on it.')
    return "\n".join(lines)


def lora_norms(model) -> dict[str, float]:
    """Frobenius norm of the update (alpha / r) B A of every adapted layer, by the layer's name."""
    norms = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            update = module.lora_B["default"].weight @ module.lora_A["default"].weight
            norms[name.removeprefix("base_model.model.")] = module.scaling["default"] * update.norm().item()
    return norms


def peak_memory_mib() -> dict[str, float]:
    """The highest resident memory of this process so far, and of the GPU's allocator, in MiB."""
    import torch

    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # Linux counts in KiB
    return peak | ({"gpu": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {})


def shape_of(model) -> dict:
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    attributes = {name: getattr(model.config, name, None) for name in names}
    return attributes


def count_lengths(lengths) -> dict[str, int]:
    """Examples by length in tokens."""
    import numpy as np

    tokens, counts = np.unique(lengths, return_counts=True)
    return {str(t): int(c) for t, c in zip(tokens, counts, strict=True)}


def _processor() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or None
    names = [
        line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return names[0] if names else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    except OSError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
