"""A field of a configuration, said once: `setting` holds its default, range, meaning and unit.

`RunConfig` and `PretrainingConfig` are made of settings; the checks here, `--help` and the notebook's table read them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

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

# The same for the annotated types, and how the command line's text is read; an empty name is none.
TYPES = {
    "int": ("int", lambda value: isinstance(value, int) and not isinstance(value, bool), int),
    "float": ("float", lambda value: isinstance(value, int | float) and not isinstance(value, bool), float),
    "bool": ("bool", lambda value: isinstance(value, bool), lambda text: {"true": True, "false": False}[text.lower()]),
    "str": ("a name", lambda value: isinstance(value, str) and value, str),
    "str | None": (
        "a name or nothing",
        lambda value: value is None or (isinstance(value, str) and value),
        lambda text: None if text.lower() == "none" else text,
    ),
    "tuple[str, ...]": (
        "one or more names",
        lambda value: isinstance(value, tuple) and value and all(isinstance(name, str) and name for name in value),
        lambda text: tuple(name.strip() for name in text.split(",")),
    ),
}


def setting(group: str, default, range: str, help: str, unit: str = ""):
    """A dataclass field with all that is to be said about it: its heading in tables and `--help`, its default, the name
    of its range in `RANGES`, its meaning and unit."""
    return field(default=default, metadata={"group": group, "range": RANGES[range], "help": help, "unit": unit})


def require_valid(config, what: str, at_odds: Callable[[Any], list[str]]) -> None:
    """Check the type and range of every field and, if these hold, what takes two fields to see (`at_odds`).

    Raises:
        InputError: with every violation, behind `what` the configuration is called.
    """
    wrong_types, out_of_range = [], []
    for each in fields(config):
        value = getattr(config, each.name)
        for problems, (wanted, holds, *_) in ((wrong_types, TYPES[each.type]), (out_of_range, each.metadata["range"])):
            if not holds(value):
                problems.append(f"{each.name} is {shown(value)}, wanted {wanted}")
                break
    problems = wrong_types + out_of_range or at_odds(config)
    if problems:
        raise InputError(f"{what}: " + "; ".join(problems))


def shown(value) -> str:
    """`value` for a message of one line: no line ends, 80 characters at most."""
    return " ".join(repr(value).split())[:80]


def parse_field(config: type, name: str, text: str):
    """`text` from the command line as the type of field `name` of `config`; what does not parse is returned as it
    is, so that the validation of the configuration reports it beside everything else that is wrong."""
    read = TYPES[config.__annotations__[name]][2]
    try:
        return read(text)
    except (ValueError, KeyError):
        return text
