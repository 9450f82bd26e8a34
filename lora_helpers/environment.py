"""Where code runs and which code it is: Python, libraries, device, commit; and how that differs from what was tested.

Nothing but the standard library is imported at the top, so that a missing package ends in a sentence.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .errors import InputError
from .files.places import REPOSITORY

LIBRARIES = (  # the last two where they are installed
    *("transformers", "datasets", "evaluate", "accelerate", "peft", "torch", "tokenizers", "safetensors"),
    *("numpy", "scikit-learn", "scipy", "pandas", "matplotlib", "onnxruntime", "torchao"),
)
OLDEST_TESTED = {"transformers": "5.17", "torch": "2.11"}
FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # instruction sets, as torch calls them; the last is ARM's
INSTRUCTION_SETS = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "amx_int8", "neon", "i8mm", *FAST_BFLOAT16)
CODE = ("lora_helpers", "requirements.txt")  # what computes


def environment() -> dict:
    """Python, libraries, device and code. No host name, user name, path or environment variable."""
    import torch

    device, capabilities = best_device().type, torch.cpu.get_capabilities()
    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda: f"CPU, {torch.get_num_threads()} threads"}
    return {
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "device": names.get(device, lambda: device)(),
        "processor": capabilities.get("cpu_name") or platform.processor() or None,
        "instruction_sets": [name for name in INSTRUCTION_SETS if capabilities.get(name)],
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        **describe_code(),
        "other_than_pins": [note for notes in compare_with_pins() for note in notes],
    }


def describe_code(repository: Path = REPOSITORY) -> dict:
    """Which code computes: `commit`, `code_sha256`, and `code_committed`, whether the commit holds just that code.

    Documents, figures and records do not count, which evidence itself rewrites. Without git, or for a copy unpacked
    inside another repository, commit and `code_committed` are None.
    """
    digest = hashlib.sha256()
    files = {path.relative_to(repository).as_posix(): path for path in (repository / CODE[0]).rglob("*.py")}
    for name, path in [*sorted(files.items()), (CODE[1], repository / CODE[1])]:
        if ".ipynb_checkpoints" not in name:  # Jupyter's copies, which git ignores
            text = path.read_bytes().replace(b"\r\n", b"\n")  # the same on every system
            digest.update(f"{name} {len(text)}\n".encode() + text)
    top = _git(repository, "rev-parse", "--show-toplevel")
    ours = bool(top) and os.path.samefile(top, repository)
    changes = _git(repository, "status", "--porcelain", "--", *CODE) if ours else None
    return {
        "commit": _git(repository, "rev-parse", "--verify", "HEAD") if ours else None,
        "code_sha256": digest.hexdigest(),
        "code_committed": None if changes is None else not changes,
    }


def code_mark(environment: dict) -> str:
    """What figures print of the code of a record: `code 1a2b3c4d5e`, with `, not committed` where that is so.

    Records written before `code_sha256` was have the commit, and whether anything at all differed from it.
    """
    if "code_sha256" in environment:
        mark, changed = f"code {environment['code_sha256'][:10]}", environment["code_committed"] is False
    else:
        mark = f"commit {(environment['commit'] or 'unknown')[:10]}"
        changed = environment.get("uncommitted_changes")
    return f"{mark}, not committed" if changed else mark


def compare_with_pins() -> tuple[list[str], list[str]]:
    """Installed packages against the pins: (missing or too old, merely different); `+cpu` and the like are ignored."""
    faults, differences = [], []
    pins = re.findall(r"^([\w-]+)==(\S+)", (REPOSITORY / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    for name, wanted in pins:
        found = _version(name)
        if found is None:  # jupyter only gathers what a notebook that runs has already
            (differences if name == "jupyter" else faults).append(f"{name} is not installed")
        elif _numbers(found) < _numbers(OLDEST_TESTED.get(name, "0")):
            faults.append(f"{name} is {found}, wanted {OLDEST_TESTED[name]} or newer")
        elif found.partition("+")[0] != wanted:
            differences.append(f"{name} {found} instead of {wanted}")
    return faults, differences


def require_packages() -> None:
    """Raises InputError, with the command that helps, where a package is missing or older than any that was tested."""
    faults, _ = compare_with_pins()
    if faults:
        install = "%pip install" if "ipykernel" in sys.modules else f"{sys.executable} -m pip install"
        raise InputError(f"{'; '.join(faults)}; run: {install} -r requirements.txt")


def stamp() -> str:
    """The environment in a few lines, for the top of the notebook. Raises: as `require_packages`."""
    require_packages()
    facts = environment()
    versions = " · ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    lines = [f"Python {facts['python']} on {facts['platform']} · {facts['device']} · {code_mark(facts)}", versions]
    if facts["other_than_pins"]:
        lines.append("Other than the pins: " + ", ".join(facts["other_than_pins"]))
    return "\n".join(lines)


def choose_profile(wanted: str | None = None) -> tuple[str, str]:
    """The name of the profile that the notebook runs, and why: `wanted`, else the variable PROFILE, else what fits here."""
    from .config import get_profile
    from .files.hub import is_at_hand

    if wanted or os.environ.get("PROFILE"):
        return wanted or os.environ["PROFILE"], "as the " + ("parameters say" if wanted else "variable PROFILE says")
    if best_device().type != "cuda":
        return "mini", "no GPU here, and it needs none"
    config = get_profile("roberta-base")
    sources = {"model": (config.base_model, config.base_revision), "dataset": (config.dataset, config.dataset_revision)}
    for kind, (name, revision) in sources.items():
        if not is_at_hand(name, revision, kind=kind):
            return "mini", f"there is a GPU, but {name} lies in no folder or cache, and the Hub does not answer at once"
    return config.profile, "there is a GPU, and roberta-base and AG News are at hand"


def best_device():
    """The accelerator that torch finds, else the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def has_fast_bfloat16() -> bool:
    """Whether the device multiplies in bfloat16 by instructions of its own; older ones imitate it, slower than float32."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(name) for name in FAST_BFLOAT16)


def peak_memory_mib() -> dict[str, float]:
    """The highest resident memory of this `process` so far, and of the `gpu`'s allocator, in MiB, where it can be had."""
    import torch

    peak = {"gpu": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}
    try:
        import resource
    except ImportError:  # Windows
        return peak
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return peak | {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}


def watch_peak_memory(*, gpu: bool = False) -> Callable[[], float | None]:
    """Let `peak_memory_mib` begin anew. What is returned gives the process's highest MiB since then, or None on a system
    that cannot begin anew (anything but Linux); with `gpu` the GPU's, where there is one."""
    import torch

    gc.collect()
    if gpu and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return lambda: peak_memory_mib()["gpu"]
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what was freed before counts as used
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets the high-water mark of resident memory
    except (OSError, AttributeError):  # another system, another C library
        return lambda: None
    return lambda: peak_memory_mib()["process"]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """`5.23.0+cpu` as (5, 23, 0)."""
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a disk that takes its time
        return None
    return done.stdout.strip() if done.returncode == 0 else None
