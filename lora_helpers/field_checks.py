"""A field of a configuration, said once: `setting` holds its default, range, meaning and unit.

`RunConfig` and `PretrainingConfig` are made of settings; the checks here, `--help` and the notebook's table read them.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import field, fields
from types import NoneType
from typing import Any

from .errors import InputError

BATCH_ORDERS = ("random", "length-grouped")
SCHEDULERS = ("linear", "cosine", "constant_with_warmup")  # all after the warm-up
NAMES = 'one or more names, as ("query",)'
LARGEST = sys.float_info.max  # beyond it an int, which has no bound, is no float any more

# What a field may take: in words, and as a test, which NaN fails as it fails every comparison.
RANGES = {
    "name": ("a name", bool),
    "names": (NAMES, lambda value: all(isinstance(name, str) and name for name in value)),
    "flag": ("true or false", lambda value: value in (True, False)),
    "count": ("at least 1, below 2**31", lambda value: 1 <= value < 2**31),
    # A rank above any layer's width is no longer low, and a mistyped one would fill the memory.
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

# The same for the annotated types: in words, the types of a value, and how the command line's text is read.
TYPES = {
    "int": ("int", int, int),
    "float": ("float", (int, float), float),
    "bool": ("bool", bool, lambda text: {"true": True, "false": False}[text.lower()]),
    "str": ("a name", str, str),
    "str | None": ("a name or nothing", (str, NoneType), lambda text: None if text.lower() == "none" else text),
    "tuple[str, ...]": (NAMES, tuple, lambda text: tuple(name.strip() for name in text.split(","))),
}


def setting(group: str, default, range: str, help: str, unit: str = ""):
    """A dataclass field with all that is to be said about it; `group` is its heading, `range` a name in `RANGES`."""
    return field(default=default, metadata={"group": group, "range": RANGES[range], "help": help, "unit": unit})


def require_valid(config, what: str, at_odds: Callable[[Any], list[str]]) -> None:
    """Check the type and range of every field and, if these hold, what takes two fields to see (`at_odds`).

    Raises: InputError: with every violation, behind `what` the configuration is called.
    """
    wrong_types, out_of_range = [], []
    for each in fields(config):
        value, (type_in_words, types, _) = getattr(config, each.name), TYPES[each.type]
        range_in_words, holds = each.metadata["range"]
        # To Python True is an int; the empty name, and no name at all, are none.
        if not isinstance(value, types) or isinstance(value, bool) != (types is bool) or value in ("", ()):
            wrong_types.append(f"{each.name} is {shown(value)}, wanted {type_in_words}")
        elif not holds(value):
            out_of_range.append(f"{each.name} is {shown(value)}, wanted {range_in_words}")
    if problems := wrong_types + out_of_range or at_odds(config):
        raise InputError(f"{what}: " + "; ".join(problems))


def shown(value) -> str:
    """`value` for a message of one line: no line ends, 80 characters at most."""
    return " ".join(repr(value).split())[:80]


def parse_field(config: type, name: str, text: str):
    """`text` from the command line as the field's type; unchanged if it does not parse, for the checks to report."""
    try:
        return TYPES[config.__annotations__[name]][2](text)
    except (ValueError, KeyError):
        return text
