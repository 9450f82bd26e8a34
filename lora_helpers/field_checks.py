"""Types and ranges of the fields of a `RunConfig`: every violation, in words. `config` raises them together."""

from __future__ import annotations

import sys
import types
import typing

if typing.TYPE_CHECKING:
    from .config import RunConfig

BATCH_ORDERS = ("random", "length-grouped")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
LARGEST = sys.float_info.max  # beyond it an int, which has no bound, is no float any more

# Which fields, what is wanted in words, and the same as a test. NaN fails every comparison, so it fails here too.
_RANGES = (
    (
        ("validation_size", "batch_size", "eval_batch_size", "max_steps", "eval_steps", "save_steps"),
        "at least 1, below 2**31",
        lambda value: 1 <= value < 2**31,
    ),
    # Wider than any layer it stands beside, an update of low rank is neither; a slip of the finger would fill the memory.
    (("lora_rank",), "1 to 4096", lambda value: 1 <= value <= 4096),
    (("warmup_steps", "weight_decay"), "a finite number, 0 or more", lambda value: 0 <= value <= LARGEST),
    (("seed", "split_seed"), "0 or more, below 2**32", lambda value: 0 <= value < 2**32),
    (
        ("base_dropout", "lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor"),
        "0 or more, below 1",
        lambda value: 0 <= value < 1,
    ),
    (
        ("lora_alpha", "learning_rate", "adam_epsilon", "max_grad_norm"),
        "a finite number above 0",
        lambda value: 0 < value <= LARGEST,
    ),
    (("max_length",), "at least 3 (two special tokens and one of text), below 2**31", lambda value: 3 <= value < 2**31),
    (("batch_order",), f"one of {', '.join(BATCH_ORDERS)}", lambda value: value in BATCH_ORDERS),
    (("lr_scheduler_type",), f"one of {', '.join(SCHEDULERS)}", lambda value: value in SCHEDULERS),
)
_IN_WORDS = {str: "a name", type(None): "nothing"}


def shown(value) -> str:
    """`value` for a message of one line: no line ends, 80 characters at most."""
    return " ".join(repr(value).split())[:80]


def wrong_types(config: RunConfig) -> dict[str, str]:
    """Violations of the annotated types, by field; an empty name is none."""
    problems = {}
    for name, wanted in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if wanted == tuple[str, ...]:
            fits = isinstance(value, tuple) and value and all(isinstance(v, str) and v for v in value)
            wanted_name = "one or more names"
        else:
            options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
            numbers = (int, float) if float in options else ()
            fits = isinstance(value, (*options, *numbers)) and (bool in options or not isinstance(value, bool))
            fits = fits and not (isinstance(value, str) and not value)
            wanted_name = " or ".join(_IN_WORDS.get(option, option.__name__) for option in options)
        if not fits:
            problems[name] = f"{name} is {shown(value)}, wanted {wanted_name}"
    return problems


def out_of_range(config: RunConfig, skip: set[str]) -> list[str]:
    """Violations of the ranges, of every field that has the right type."""
    values = {name: value for name, value in vars(config).items() if name not in skip}
    return [
        f"{name} is {shown(values[name])}, wanted {wanted}"
        for names, wanted, holds in _RANGES
        for name in names
        if name in values and not holds(values[name])
    ]
