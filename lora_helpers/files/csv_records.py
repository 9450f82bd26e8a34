"""The records of a CSV file, strictly quoted; where a file breaks the rules, the likely cause in its writer's terms.

`documents` reads .csv and .tsv through it. A lenient reading would shift texts against their labels.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

LONGEST_FIELD = 2**31 - 1  # characters: the most that a C long holds on every platform
MARKS = {";": "semicolons", "|": "bars", "\t": "tabs", ",": "commas"}


def csv_records(path: Path) -> Iterator[list[str]]:
    """The fields of each record, of any length; records end in LF, CRLF or CR.

    Raises: csv.Error, with what to do: a record is not quoted as it should be, or the first is separated otherwise.
    """
    csv.field_size_limit(LONGEST_FIELD)
    form = {"strict": True, "delimiter": "\t" if path.suffix.lower() == ".tsv" else ","}
    lines, fault = [], None  # of the record that is being read
    with path.open(encoding="utf-8-sig", newline="") as stream:
        records = csv.reader((lines.append(line) or line for line in stream), **form)
        try:
            for record in records:
                is_first = records.line_num == len(lines)
                fault = is_first and _separated("".join(record[:1]), form["delimiter"])
                if any(re.match(' +"', field) for field in record):
                    tight = next(csv.reader(lines, **form, skipinitialspace=True))
                    if [field.lstrip(" ") for field in tight] != [field.lstrip(" ") for field in record]:
                        fault = "a space before a quotation mark; remove it, so that it follows the separator at once"
                if fault:
                    break
                yield record
                lines.clear()
        except csv.Error as error:
            cause = _cause("".join(lines), form["delimiter"]) or f"{error}; check the quotation marks"
            raise csv.Error(cause) from error
    if fault:
        raise csv.Error(fault)


def _cause(lines: str, delimiter: str) -> str | None:
    if '\\"' in lines:
        return 'quotation marks escaped by backslashes; double them ("") instead'
    after_first_field = re.match(r'"[^"]*" *(.)', lines)
    return _separated(after_first_field[1], delimiter) if after_first_field else None


def _separated(text: str, delimiter: str) -> str | None:
    """What to do about a file that is separated by another mark than its name says, if `text` holds one."""
    found = [name for mark, name in MARKS.items() if mark in text and mark != delimiter]
    return f"separated by {found[0]}, wanted commas in .csv, tabs in .tsv; save it or name it so" if found else None
