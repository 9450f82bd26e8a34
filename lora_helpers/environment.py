"""Where code runs and which code it is: Python, libraries, device, commit; and how that differs from what was tested.

Nothing but the standard library is imported at the top, so that a missing package ends in a sentence.
"""

import ctypes
import gc
import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from .config import AG_NEWS, PINNED, ROBERTA_BASE, get_profile
from .errors import InputError, first_line
from .files.places import REPOSITORY

LIBRARIES = (  # the last two where they are installed
    *("transformers", "datasets", "evaluate", "accelerate", "peft", "torch", "tokenizers", "safetensors"),
    *("numpy", "scikit-learn", "scipy", "pandas", "matplotlib", "onnxruntime", "torchao"),
)
OLDEST_TESTED = {"transformers": "5.17", "torch": "2.11"}
WITHOUT_GPU = 'device="cpu", or CUDA_VISIBLE_DEVICES=-1 in the environment, does without the GPU'
FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # instruction sets, as torch calls them; the last is ARM's
INSTRUCTION_SETS = ("avx2", "avx512_f", "avx512_vnni", "avx_vnni", "amx_int8", "neon", "i8mm", *FAST_BFLOAT16)
CODE = ("lora_helpers/**/*.py", "lora_helpers/**/*.json", "requirements.txt")  # what computes
_FIRST = {}  # what `describe_code` said when this process first asked


def environment(device: str | None = None) -> dict:
    """Python, libraries, `device` (if None the best) and code. No host name, user name, path or environment variable."""
    import torch

    device, capabilities = device or best_device().type, torch.cpu.get_capabilities()
    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda: f"CPU, {torch.get_num_threads()} threads"}
    return {
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "device": names.get(device, lambda: device)(),
        "processor": capabilities.get("cpu_name") or platform.processor() or None,
        "instruction_sets": [name for name in INSTRUCTION_SETS if capabilities.get(name)],
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        **_loaded_code(),
        "other_than_pins": [note for notes in compare_with_pins() for note in notes],
    }


def _loaded_code() -> dict:
    """`describe_code` at the first call; not committed if files were edited since, since some may have been loaded then."""
    now = describe_code()
    first = _FIRST.setdefault("code", now)
    return first if now["code_sha256"] == first["code_sha256"] else first | {"code_committed": False}


def describe_code(repository: Path = REPOSITORY) -> dict:
    """Which code computes: `commit`, `code_sha256`, and `code_committed`, whether the commit holds just that code, without
    the documents, figures and records that evidence rewrites. Outside a repository of its own, the last is None as `commit`.
    """
    digest = hashlib.sha256()
    for path in sorted((path for pattern in CODE for path in repository.glob(pattern)), key=Path.as_posix):
        if ".ipynb_checkpoints" not in path.parts:  # Jupyter's copies, which git ignores
            text = path.read_bytes().replace(b"\r\n", b"\n")  # the same on every system
            digest.update(f"{path.relative_to(repository).as_posix()} {len(text)}\n".encode() + text)
    commit = changes = None
    if _git(repository, "rev-parse", "--show-cdup") == "":  # no way up: the repository's own top
        commit = _git(repository, "rev-parse", "--verify", "HEAD")
        changes = _git(repository, "status", "--porcelain", "-uall", "--", *(f":(glob){pattern}" for pattern in CODE))
    committed = None if changes is None else not changes
    return {"commit": commit, "code_sha256": digest.hexdigest(), "code_committed": committed}


def code_mark(environment: dict) -> str:
    """What figures print of the code of a record: `code 1a2b3c4d5e`, with `, not committed` where that is so."""
    mark = f"code {environment.get('code_sha256', 'unknown')[:10]}"
    return f"{mark}, not committed" if environment.get("code_committed") is False else mark


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
    if faults := compare_with_pins()[0]:
        install = "%pip install" if "ipykernel" in sys.modules else f"{sys.executable} -m pip install"
        file = "requirements.txt" if Path.cwd() == REPOSITORY else f'"{REPOSITORY / "requirements.txt"}"'
        raise InputError(f"{'; '.join(faults)}; run: {install} -r {file}")


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
    """The name of the profile that the notebook runs, and why: `wanted`, else the variable PROFILE, else what fits here.
    Raises: as `get_profile`."""
    from .files.hub import is_at_hand

    if wanted:
        return get_profile(wanted).profile, "as the parameters say"
    if named := os.environ.get("PROFILE"):
        return get_profile(named).profile, "as the environment variable PROFILE says"
    if best_device().type != "cuda":
        return "mini", _why_no_gpu()
    for kind, name in (("model", ROBERTA_BASE), ("dataset", AG_NEWS)):
        if not is_at_hand(name, PINNED[name], kind=kind):
            return "mini", f"there is a GPU, but {name} lies in no folder or cache, and the Hub does not answer at once"
    return "roberta-base", "there is a GPU, and roberta-base and AG News are at hand"


def _why_no_gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return f"there is a GPU, but torch cannot compute on it ({find_cuda_fault()})"
    if shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        here = f"an NVIDIA GPU seems to be here, but torch {torch.__version__} does not see it"
        return f"{here}; https://pytorch.org/get-started shows the build for its driver"
    return "no GPU with CUDA here, and it needs none"


def best_device():
    """The accelerator that torch finds and can compute on, else the CPU."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return torch.device("cpu") if found.type == "cuda" and find_cuda_fault() else found


def trains_on_gpu() -> bool:
    """Whether runs compute on a CUDA device: there is one that works, and accelerate was not told to keep to the CPU."""
    import torch

    if not torch.cuda.is_available() or find_cuda_fault():
        return False
    from accelerate.utils import parse_flag_from_env

    return not parse_flag_from_env("ACCELERATE_USE_CPU")


@cache
def find_cuda_fault() -> str | None:
    """The error with which the CUDA device that torch sees fails a trial addition, or None: torch also sees a card too
    old for its build."""
    import torch

    try:
        device = int(os.environ.get("LOCAL_RANK", 0)) % max(1, torch.cuda.device_count())
        (torch.zeros(1, device=f"cuda:{device}") + 1).item()
    except (RuntimeError, AssertionError) as error:
        fault = first_line(error)
        logging.getLogger(__name__).warning("the GPU is not used: a trial sum failed (%s); the CPU computes", fault)
        return fault
    return None


def has_fast_bfloat16(device: str | None = None) -> bool:
    """Whether a "cpu" or "cuda" device, by default what a run would train on, multiplies in bfloat16 by instructions of
    its own; older ones imitate it, slower than float32."""
    import torch

    on_gpu = trains_on_gpu() if device is None else device == best_device().type == "cuda"
    if on_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(name) for name in FAST_BFLOAT16)


def peak_memory_mib() -> dict[str, float]:
    """The highest resident memory of this `process` so far, and of the `gpu`'s allocator, in MiB, where it can be had."""
    import torch

    peak = {"gpu": torch.cuda.max_memory_allocated() / 2**20} if best_device().type == "cuda" else {}
    with suppress(ImportError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return peak


def watch_peak_memory(*, gpu: bool = False) -> Callable[[], float | None]:
    """Reset the peaks of `peak_memory_mib`. Returns a function for the process's peak in MiB since then, None where it
    cannot be reset (anything but Linux); with `gpu` the GPU's, where there is one."""
    import torch

    gc.collect()
    if gpu and best_device().type == "cuda":
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


def _numbers(version: str) -> tuple[int, ...]:  # "5.23.0+cpu" as (5, 23, 0)
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a disk that takes its time
        return None
    return done.stdout.strip() if done.returncode == 0 else None
