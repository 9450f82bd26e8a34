"""Types and ranges of the fields of a `RunConfig`: every violation, in words. `config` raises them together."""

from __future__ import annotations

import types
import typing

if typing.TYPE_CHECKING:
    from .config import RunConfig

BATCH_ORDERS = ("random", "length-grouped")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")

# Which fields, what is wanted in words, and the same as a test. NaN fails every comparison, so it fails here too.
_RANGES = (
    (
        ("validation_size", "lora_rank", "batch_size", "eval_batch_size", "max_steps", "eval_steps", "save_steps"),
        "at least 1",
        lambda value: value >= 1,
    ),
    (("warmup_steps", "weight_decay"), "a finite number, 0 or more", lambda value: 0 <= value < float("inf")),
    (("seed", "split_seed"), "0 or more, below 2**32", lambda value: 0 <= value < 2**32),
    (
        ("base_dropout", "lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor"),
        "0 or more, below 1",
        lambda value: 0 <= value < 1,
    ),
    (
        ("lora_alpha", "learning_rate", "adam_epsilon", "max_grad_norm"),
        "a finite number above 0",
        lambda value: 0 < value < float("inf"),
    ),
    (("max_length",), "at least 3 (two special tokens and one of text)", lambda value: value >= 3),
    (("batch_order",), f"one of {', '.join(BATCH_ORDERS)}", lambda value: value in BATCH_ORDERS),
    (("lr_scheduler_type",), f"one of {', '.join(SCHEDULERS)}", lambda value: value in SCHEDULERS),
)


def wrong_types(config: RunConfig) -> dict[str, str]:
    """Violations of the annotated types, by field."""
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
            wanted_name = " or ".join("nothing" if o is type(None) else o.__name__ for o in options)
        if not fits:
            problems[name] = f"{name} is {value!r}, wanted {wanted_name}"
    return problems


def out_of_range(config: RunConfig, skip: set[str]) -> list[str]:
    """Violations of the ranges, of every field that has the right type."""
    values = {name: value for name, value in config.to_dict().items() if name not in skip}
    return [
        f"{name} is {values[name]!r}, wanted {wanted}"
        for names, wanted, holds in _RANGES
        for name in names
        if name in values and not holds(values[name])
    ]
