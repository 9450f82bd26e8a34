"""What the columns of a file mean, the same in every format: which hold text, label and id, and which class a name or
a number stands for. `documents` asks."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ..config import LABELS
from ..errors import InputError

logger = logging.getLogger(__name__)

TEXT = (("text",), ("title", "description"))  # the columns that make the text
FROM_1 = "if yours count from 1, rename the column to `class`"
LABEL = {("label",): 0, ("class",): 1, ("class index",): 1}  # the one that holds the label -> its number of World


@dataclass(frozen=True, slots=True)
class Document:
    """One row of an input file."""

    id: int | str  # its place in the file, from 0, or what the id column holds
    text: str  # without white space around it
    label: int | None = None  # 0-3, if labels were asked for


@dataclass
class Columns:
    """The columns of one file: `choose` finds them by name, `document` understands their values."""

    text: Sequence[str]  # names of the columns that make the text; none: as `TEXT`
    id: str | None
    labelled: bool
    first: int = 0  # the label column's number of World
    said: set[str] = field(default_factory=set)

    def choose(self, names: Sequence[str], where: str) -> list[int]:
        """The places among `names` of the columns to read: label and id, as far as they are wanted, then the text's;
        InputError if one of them is not there exactly once."""
        hint = "" if self.labelled else "; text_columns, id_column (in a shell --text-column, --id-column) name others"
        text, chosen = [tuple(self.text)] if self.text else TEXT, []
        for ways in [LABEL] * self.labelled + [[(self.id,)]] * (self.id is not None) + [text]:
            found = {way: places for way in ways if None not in (places := [_place(names, name) for name in way])}
            if not found or (ways is LABEL and len(found) > 1):
                wanted = ", or ".join(" and ".join(f"one `{name}`" for name in way) for way in ways)
                raise InputError(f"{where}: columns {', '.join(names)[:80]!r}; wanted {wanted}{hint}")
            way, places = next(iter(found.items()))
            chosen += places
            if ways is LABEL:
                self.first = LABEL[way]
        rest = [name for i, name in enumerate(names) if i not in chosen and (_plain(name),) not in {("",), *LABEL}]
        if rest:
            self._say("rest", f"{where}: columns not read: {', '.join(rest)}{hint}")
        return chosen

    def document(self, number: int, values: Sequence, where: str) -> Document:
        """The document `number` (from 0) of the values in the chosen columns."""
        values = list(values)
        label = self._label(values.pop(0), where) if self.labelled else None
        id = number if self.id is None else values.pop(0)
        if type(id) not in (int, str) or id == "" or "\r" in str(id):  # which the output could not quote
            wanted = "a whole number, or a string without a carriage return"
            raise InputError(f"{where}: {self.id} is {id!r:.40}, wanted {wanted}; mend it")
        if kinds := [type(value).__name__ for value in values if not isinstance(value, str)]:
            raise InputError(f"{where}: the text is {kinds[0]}, wanted a string; drop or fill it")
        return Document(id, " ".join(values).strip(), label)

    def _label(self, value, where: str) -> int:
        """The class, 0-3, of a name, or of a number as the label column counts."""
        if isinstance(value, str) and (label := class_of(value)) is not None:
            return label
        number = int(value) if value in tuple("01234") else value  # in CSV, and elsewhere at times, a string
        if type(number) is not int or not 0 <= number - self.first < len(LABELS):
            numbers = "1, 2, 3 or 4" if self.first else "0, 1, 2 or 3"
            way = FROM_1 if number == 4 else "mend or drop it"  # the one that tells
            raise InputError(f"{where}: class {value!r:.40}, wanted {numbers}, or {', '.join(LABELS)}; {way}")
        if self.first == 0:
            self._say("order", f"{where}: classes without names; 0, 1, 2, 3 are read as {', '.join(LABELS)}; {FROM_1}")
        return number - self.first

    def _say(self, what: str, notice: str) -> None:
        if what not in self.said:
            self.said.add(what)
            _warn(notice)


@lru_cache(maxsize=100)
def _warn(notice: str) -> None:
    """Once: who reads a file first to count its rows and then to label them hears of it once."""
    logger.warning(notice)


def class_of(name: str) -> int | None:
    """The class, 0-3, that has this name, in any spelling; None if none has."""
    return _CLASSES.get(_plain(name))


def _place(names: Sequence[str], wanted: str) -> int | None:
    """The place of the column called `wanted`, exactly or else by `_plain` spelling; None unless it is the only one."""
    for spelling in (str, _plain):
        found = [i for i, name in enumerate(names) if spelling(name) == spelling(wanted)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _plain(name: str) -> str:
    """A name in any case, its words apart by blanks, `_`, `-` or `/`."""
    return re.sub(r"[\s_/-]+", " ", name.strip().lower())


_CLASSES = {_plain(name): label for label, name in enumerate(LABELS)}
