"""A field of a configuration, said once: `setting` holds its default, range, help and unit.

`RunConfig` and `PretrainingConfig` are made of settings; the checks here, `--help` and the notebook's table read them.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import field, fields

from .errors import InputError

BATCH_ORDERS = ("random", "length-grouped")
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
LARGEST = sys.float_info.max  # beyond it an int, which has no bound, is no float any more


# What a field may take: in words, and as a test. NaN fails every comparison, so it fails here too.
RANGES = {
    "name": ("a name", bool),
    "flag": ("true or false", lambda value: value in (True, False)),
    "count": ("at least 1, below 2**31", lambda value: 1 <= value < 2**31),
    # Wider than any layer it stands beside, an update of low rank is neither; a slip of the finger would fill the memory.
    "rank": ("1 to 4096", lambda value: 1 <= value <= 4096),
    "length": ("at least 3 (two special tokens and one of text), below 2**31", lambda value: 3 <= value < 2**31),
    "vocabulary": ("at least 261 (256 bytes and 5 special tokens), below 2**31", lambda value: 261 <= value < 2**31),
    "seed": ("0 or more, below 2**32", lambda value: 0 <= value < 2**32),
    "share": ("0 or more, below 1", lambda value: 0 <= value < 1),
    "positive share": ("above 0, below 1", lambda value: 0 < value < 1),
    "positive": ("a finite number above 0", lambda value: 0 < value <= LARGEST),
    "not negative": ("a finite number, 0 or more", lambda value: 0 <= value <= LARGEST),
    "batch order": (f"one of {', '.join(BATCH_ORDERS)}", lambda value: value in BATCH_ORDERS),
    "scheduler": (f"one of {', '.join(SCHEDULERS)}", lambda value: value in SCHEDULERS),
    "commit": (
        "the 40 hex digits of a commit on the Hub (branches and tags move)",
        lambda value: value is None or re.fullmatch("[0-9a-f]{40}", value),
    ),
}
_IN_WORDS = {str: "a name", type(None): "nothing"}


def setting(group: str, default, range: str, help: str, unit: str = ""):
    """A dataclass field with all that is to be said about it: its heading in tables and `--help`, its default, the name
    of its range in `RANGES`, its meaning and unit."""
    return field(default=default, metadata={"group": group, "range": RANGES[range], "help": help, "unit": unit})


def require_valid(config, what: str, at_odds: Callable[[typing.Any], list[str]]) -> None:
    """Check types, ranges and, if these hold, what takes two fields to see (`at_odds`).

    Raises:
        InputError: with every violation, behind `what` the configuration is called.
    """
    wrong = wrong_types(config)
    problems = list(wrong.values()) + out_of_range(config, skip=set(wrong)) or at_odds(config)
    if problems:
        raise InputError(f"{what}: " + "; ".join(problems))


def shown(value) -> str:
    """`value` for a message of one line: no line ends, 80 characters at most."""
    return " ".join(repr(value).split())[:80]


def wrong_types(config) -> dict[str, str]:
    """Violations of the annotated types, by field; an empty name is one."""
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


def out_of_range(config, skip: set[str]) -> list[str]:
    """Violations of the ranges, of every field not in `skip`; a field that is no `setting` is a KeyError."""
    checked = [(each.name, getattr(config, each.name), *each.metadata["range"]) for each in fields(config)]
    return [
        f"{name} is {shown(value)}, wanted {wanted}"
        for name, value, wanted, holds in checked
        if name not in skip and not holds(value)
    ]


def parse_field(config: type, name: str, text: str):
    """`text` from the command line as the type of field `name` of `config`; what does not parse is returned as it
    is, so that the validation of the configuration reports it beside everything else that is wrong."""
    wanted = typing.get_type_hints(config)[name]
    if wanted == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(","))
    if wanted is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if wanted == str | None:
        return None if text.lower() == "none" else text
    try:
        return wanted(text)
    except ValueError:
        return text
