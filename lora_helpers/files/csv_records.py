"""The records of a CSV file, strictly quoted; where a file breaks the rules, the likely cause in its writer's terms.

`documents` reads .csv and .tsv through it. A lenient reading would shift texts against their labels.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

LONGEST_FIELD = 2**31 - 1  # characters: the most that a C long holds on every platform
MARKS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}


class Fault(csv.Error):
    """What is wrong with a record, as the user can mend it."""


def csv_records(path: Path) -> Iterator[list[str]]:
    """The fields of each record, of any length; records end in LF, CRLF or CR.

    Raises:
        Fault: a record is not quoted as it should be.
        OSError, UnicodeDecodeError: the file cannot be read as text.
    """
    csv.field_size_limit(LONGEST_FIELD)
    form = {"strict": True, "delimiter": _delimiter(path)}
    lines = []  # of the record that is being read

    def kept(stream) -> Iterator[str]:
        for line in stream:
            lines.append(line)
            yield line

    with path.open(encoding="utf-8-sig", newline="") as stream:
        try:
            for record in csv.reader(kept(stream), **form):
                if any(field[:1] == " " and field.lstrip(" ")[:1] == '"' for field in record):
                    _require_wholly_quoted(record, csv.reader(lines, **form, skipinitialspace=True))
                lines.clear()
                yield record
        except Fault:
            raise
        except csv.Error as error:
            raise Fault(_cause("".join(lines), path) or f"{error}; check the quotation marks") from error


def separated_otherwise(path: Path, text: str) -> str | None:
    """What to do about a file separated by other marks than its name says, if the first of `text` is such a mark."""
    mark = next((mark for mark in MARKS if mark in text and mark != _delimiter(path)), None)
    if mark is None:
        return None
    wanted, rename = MARKS[_delimiter(path)], {"\t": ", or call it .tsv", ",": ", or call it .csv"}.get(mark, "")
    return f"separated by {MARKS[mark]}, wanted {wanted}; save it so{rename}"


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _require_wholly_quoted(record: list[str], skipping_spaces: Iterator[list[str]]) -> None:
    """A text that begins with a space and a mark was quoted as a whole if skipping spaces before fields leaves it alone."""
    try:
        again = next(skipping_spaces)
    except csv.Error:
        again = []
    if [field.lstrip(" ") for field in again] != [field.lstrip(" ") for field in record]:
        raise Fault("a space before a quotation mark; remove it, so that the mark follows the separator at once")


def _cause(lines: str, path: Path) -> str | None:
    if '\\"' in lines:
        return 'quotation marks escaped by backslashes; double them ("") instead'
    first_field = re.match(r'"[^"]*"\s*(.)', lines)
    return separated_otherwise(path, first_field[1]) if first_field else None
