"""The records of a CSV file, strictly quoted; where a file breaks the rules, the likely cause in its writer's terms.

`documents` reads .csv and .tsv through it. A lenient reading would shift texts against their labels.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

LONGEST_FIELD = 2**31 - 1  # characters: the most that a C long holds on every platform
SEPARATED = {
    ";": "separated by semicolons; save it separated by commas",
    "|": "separated by bars; save it separated by commas",
    "\t": "separated by tabs; save it separated by commas, or call it .tsv",
    ",": "separated by commas; call it .csv",
}


def csv_records(path: Path) -> Iterator[list[str]]:
    """The fields of each record, of any length; records end in LF, CRLF or CR.

    Raises:
        csv.Error: a record is not quoted as it should be; the message says what to do.
        OSError, UnicodeDecodeError: the file cannot be read as text.
    """
    csv.field_size_limit(LONGEST_FIELD)
    form = {"strict": True, "delimiter": "\t" if path.suffix.lower() == ".tsv" else ","}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = []  # of the record that is being read
        records = csv.reader((lines.append(line) or line for line in stream), **form)
        while True:
            lines.clear()
            try:
                record = next(records, None)
            except csv.Error as error:
                raise csv.Error(_cause("".join(lines), path) or f"{error}; check the quotation marks") from error
            if record is None:
                return
            if any(field[:1] == " " and field.lstrip(" ")[:1] == '"' for field in record):
                _require_wholly_quoted(record, csv.reader(lines, **form, skipinitialspace=True))
            yield record


def separated_otherwise(path: Path, text: str) -> str | None:
    """What to do about a file that is separated by another mark than its name says, if `text` holds one."""
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    return next((advice for mark, advice in SEPARATED.items() if mark in text and mark != own), None)


def _require_wholly_quoted(record: list[str], skipping_spaces: Iterator[list[str]]) -> None:
    """A text that begins with a space and a mark was quoted as a whole if skipping spaces before fields leaves it alone."""
    try:
        again = next(skipping_spaces)
    except csv.Error:
        again = []
    if [field.lstrip(" ") for field in again] != [field.lstrip(" ") for field in record]:
        raise csv.Error("a space before a quotation mark; remove it, so that the mark follows the separator at once")


def _cause(lines: str, path: Path) -> str | None:
    if '\\"' in lines:
        return 'quotation marks escaped by backslashes; double them ("") instead'
    after_first_field = re.match(r'"[^"]*" *(.)', lines)
    return separated_otherwise(path, after_first_field[1]) if after_first_field else None
