"""Read and check an adapter's two files, which are not trusted, before any base model is opened and before PEFT
allocates what they ask for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckFailed, first_line
from .documents import require_content

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

# Fields that every version of PEFT writes and whose defaults would compute something else.
REQUIRED_FIELDS = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")
# What PEFT matches as regular expressions: a string, a list's items or a table's keys.
PATTERNS = ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern")
# Fields that may differ from PEFT's default; the others may add parts (layers, say) whose size no tensor here bounds.
PLAIN_FIELDS = {
    *(*REQUIRED_FIELDS, *PATTERNS, "auto_mapping", "bias", "ensure_weight_tying", "fan_in_fan_out", "inference_mode"),
    *("init_lora_weights", "layers_to_transform", "lora_bias", "lora_dropout", "peft_version", "revision"),
    *("use_dora", "use_rslora"),
}

# What PEFT raises over values that make no sense to it.
REFUSALS = (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, ImportError, ArithmeticError)
HARMLESS_RANK = 256  # a default that `rank_pattern` overrides everywhere may be larger than all adapters
SECONDS = 5  # for all regular expressions of a configuration; they take milliseconds
TRIAL = r"""import contextlib, json, re, sys
patterns, names = json.load(sys.stdin)
for pattern, name in ((pattern, name) for pattern in patterns for name in names):
    for form in ("{}", r"(.*\.)?({})", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\..*"):  # PEFT's ways
        with contextlib.suppress(Exception):
            re.fullmatch(form.format(pattern), name)
"""


def read_adapter_config(folder: Path, notices: list[str]) -> LoraConfig:
    """The configuration of the LoRA in `folder`; fields that this version of PEFT does not know are named in `notices`."""
    from peft import LoraConfig

    path = folder / ADAPTER_CONFIG
    try:
        if path.stat().st_size > 100_000:  # bytes; PEFT writes a few thousand
            raise ValueError(f"{path.stat().st_size:,} bytes long")
        raw = {**json.loads(path.read_text(encoding="utf-8"))}
        if missing := [name for name in REQUIRED_FIELDS if name not in raw]:
            raise ValueError(f"{', '.join(missing)} missing")
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckFailed(f"{path}: not an adapter configuration ({error})") from error
    if (raw["peft_type"], raw["task_type"]) != ("LORA", "SEQ_CLS"):
        raise CheckFailed(f"{path}: {raw['peft_type']} for {raw['task_type']}, wanted LORA for SEQ_CLS")
    base, revision = raw["base_model_name_or_path"], raw.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise CheckFailed(f"{path}: base_model_name_or_path is {base!r} at {revision!r}, wanted the base model's name")
    default = LoraConfig().to_dict()
    if unknown := raw.keys() - default.keys():
        notices.append(f"fields of another PEFT version ignored: {_listed(raw, unknown)}")
    odd = {name for name in default.keys() & raw.keys() - PLAIN_FIELDS if raw[name] not in (None, default[name])}
    if "pissa_niter" in str(raw.get("init_lora_weights")):  # it changes the base at random, so each time otherwise
        odd.add("init_lora_weights")
    if odd:
        raise CheckFailed(f"{path}: {_listed(raw, odd)}, which is not loaded here; wanted a plain LoRA, or DoRA")
    with refusals_in_one_line(folder):
        return LoraConfig(**{name: raw[name] for name in PLAIN_FIELDS & raw.keys()} | {"inference_mode": True})


def read_weights(folder: Path, lora: LoraConfig) -> dict[str, Tensor]:
    """The tensors in `folder`, float32. No rank in `lora` may be much larger than theirs: PEFT allocates what it is told."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_content(folder / WEIGHTS)
    try:
        weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    except SafetensorError as error:
        raise CheckFailed(f"{folder / WEIGHTS}: not a safetensors file ({error}); take another checkpoint") from error
    ranks = (each.shape[0] for name, each in weights.items() if each.ndim and re.search("lora_(embedding_)?A", name))
    largest = max(ranks, default=0)
    with refusals_in_one_line(folder):
        rank = max(lora.r, *lora.rank_pattern.values(), 0)
    if rank > max(largest, HARMLESS_RANK):
        odd = f"rank {rank}, but no adapter in {WEIGHTS} has more than {largest}; it belongs to another file"
        raise CheckFailed(f"{folder / ADAPTER_CONFIG}: {odd}")
    return weights


def require_quick_patterns(folder: Path, lora: LoraConfig, names: Collection[str]) -> None:
    """Matching the modules' `names` must come to an end: it is tried in a process that can be stopped."""
    given = [getattr(lora, field) or () for field in PATTERNS]
    given = [string for field in given for string in ([field] if isinstance(field, str) else field)]
    if not (patterns := [string for string in given if not re.fullmatch(r"[\w.-]*", string)]):
        return
    trial, tried = [sys.executable, "-ISc", TRIAL], json.dumps([patterns, list(names)])
    try:
        subprocess.run(trial, input=tried, text=True, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        slow = f"matching its patterns (first {patterns[0]!r:.80}) takes more than {SECONDS} s; list the modules' names"
        raise CheckFailed(f"{folder / ADAPTER_CONFIG}: {slow}") from error


def respell(weights: dict, expected: Collection[str]) -> dict:
    """`weights` under the names that PEFT gives them today (`expected`), as far as other versions only spelt them otherwise."""
    found = {}
    for name, tensor in weights.items():
        main = re.sub(r"\.(modules_to_save(\.default)?|original_module)(?=\.)", "", name)
        if main != name and main in expected and (main in weights or ".original_module." in name):
            continue  # a copy beside the trained module, which bias="all" saves
        # PEFT 0.5: LoRA's layer was itself the linear layer; 0.3 to 0.15: names of heads; DoRA's vector was a module
        spellings = (name, main, main.removesuffix("bias") + "base_layer.bias", main.removesuffix(".weight"))
        found[next((each for each in spellings if each in expected), name)] = tensor
    return found


@contextmanager
def refusals_in_one_line(folder: Path) -> Iterator[None]:
    """Whatever PEFT raises over values that make no sense, or modules it cannot nest, says which file holds them."""
    try:
        yield
    except (*REFUSALS, re.error) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise CheckFailed(f"{folder / ADAPTER_CONFIG}: PEFT cannot apply it to its base model ({reason})") from error


def _listed(values: dict, names: Collection[str]) -> str:
    return ", ".join(f"{name} = {values[name]!r:.80}" for name in sorted(names))
