"""The rows of an input file, one at a time, whatever its format; memory stays flat however long the file is.

`numbered` is the one place where a file that cannot be read becomes a sentence. `inference.predict_file` takes its
texts from here, `data` its labelled rows.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import InputError, first_line

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin")
LONGEST_FIELD = 2**31 - 1  # characters of a CSV field: the most that a C long holds on every platform
Row = TypeVar("Row")


def read_texts(path: Path | str) -> Iterator[str]:
    """Yield the document of each row of a .csv, .jsonl, .parquet or .txt file, in file order.

    CSV: a `text` column, `title` and `description` columns, or canonical headerless rows (class, title, description).
    JSON lines and parquet: a `text` field; blank lines of JSON lines are no documents. Text: one document a line,
    blank ones included.

    A row that is not as described ends the reading: the whole file is refused and the row is named, since a guess
    or a gap would move every label after it. An odd text (empty, a NUL, emoji, half a surrogate pair) is a document.

    Raises:
        InputError: missing or empty file, unknown format, or a row that is not as described; its number is named.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{path}: a pickle is a program and is not opened; save the texts as .csv, .jsonl or .parquet")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: unknown format {path.suffix!r}, wanted one of {', '.join(READERS)}")
    count = 0
    for text in READERS[path.suffix.lower()](path):
        yield text
        count += 1
    if count == 0:
        raise InputError(f"{path}: holds no documents; wanted at least one")


def numbered(path: Path, rows: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    """The rows of the file `path` with their numbers, from 1.

    Raises:
        InputError: the file is missing, is no regular file, cannot be read, is not UTF-8, or breaks off in a quotation.
    """
    if not os.path.isfile(path):
        found = next((words for is_it, words in _NO_FILES if is_it(path)), "no such file")
        raise InputError(f"{path}: {found}; give a file of rows ({', '.join(READERS)})")
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            yield number, row
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {_first_bad_line(path)}: not UTF-8 ({error.reason} 0x{error.object[error.start]:02x});"
            " wanted plain text: convert it to UTF-8, or unpack it if it is compressed"
        ) from error
    except csv.Error as error:
        raise InputError(f"{path}, row {number + 1}: {error}; check the quotation marks") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or first_line(error)}); check the file") from error


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV file, strictly quoted, with fields of any length; rows end in LF, CRLF or CR."""
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        yield from csv.reader(stream, strict=True)


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple]:
    """The values of `columns` in each row of a parquet file.

    Raises:
        InputError: not a whole parquet file, or one of `columns` is not there exactly once.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if any(names.count(column) != 1 for column in columns):
                raise InputError(f"{path}: columns {', '.join(names)}; wanted one called {' and one '.join(columns)}")
            for batch in file.iter_batches(columns=list(columns)):
                yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a whole parquet file ({first_line(error)}); make or fetch it again") from error


def _texts_of_csv(path: Path) -> Iterator[str]:
    columns, width = [], 0
    for number, row in numbered(path, csv_rows(path)):
        if number == 1:
            (columns, is_header), width = _text_columns(path, row), len(row)
            if is_header:
                continue
        if len(row) != width:
            raise InputError(f"{path}, row {number}: {len(row)} columns, wanted {width} as in row 1; mend the row")
        yield " ".join(row[column] for column in columns).strip()


def _text_columns(path: Path, first: list[str]) -> tuple[list[int], bool]:
    """Which columns hold the text, and whether the first row is a header."""
    if len(first) == 3 and first[0] in {"1", "2", "3", "4"}:
        return [1, 2], False
    header = [name.strip().lower() for name in first]
    for names in (["text"], ["title", "description"]):
        if all(header.count(name) == 1 for name in names):
            return [header.index(name) for name in names], True
    raise InputError(
        f"{path}, row 1: columns {', '.join(first)[:80]!r}; wanted one `text` column, `title` and `description`,"
        " or rows of class (1-4), title, description"
    )


def _texts_of_jsonl(path: Path) -> Iterator[str]:
    for number, line in numbered(path, _lines(path, newline=None)):
        if not line.strip():
            continue
        try:
            found = json.loads(line, object_pairs_hook=_one_text)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", first_line(error))
            raise InputError(f'{path}, line {number}: {reason}; wanted one JSON object with a "text"') from error
        text = found.get("text") if isinstance(found, dict) else None
        if not isinstance(text, str):
            raise InputError(f'{path}, line {number}: {line.strip()[:60]!r}; wanted an object whose "text" is a string')
        yield text


def _one_text(pairs: list[tuple]) -> dict:
    if [name for name, _ in pairs].count("text") > 1:
        raise ValueError('two values of "text" in one object')
    return dict(pairs)


def _texts_of_parquet(path: Path) -> Iterator[str]:
    for number, (text,) in numbered(path, parquet_rows(path, ["text"])):
        if not isinstance(text, str):
            raise InputError(f"{path}, row {number}: text is {type(text).__name__}, wanted a string; drop or fill it")
        yield text


def _texts_of_lines(path: Path) -> Iterator[str]:
    for number, line in numbered(path, _lines(path, newline="\n")):
        text = line.removesuffix("\n").removesuffix("\r")
        if "\r" in text:
            raise InputError(f"{path}, line {number}: a carriage return inside; wanted lines that end in LF or CRLF")
        yield text


def _lines(path: Path, *, newline: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline=newline) as lines:
        yield from lines


def _first_bad_line(path: Path) -> int:
    """The number of the first line that is not UTF-8 (the decoder knows only its place in a block)."""
    with path.open("rb") as lines:
        return next(n for n, line in enumerate(lines, start=1) if line.decode("utf-8", "ignore").encode() != line)


READERS = {".csv": _texts_of_csv, ".jsonl": _texts_of_jsonl, ".parquet": _texts_of_parquet, ".txt": _texts_of_lines}
_NO_FILES = (
    (os.path.isdir, "a folder, not a file"),
    (os.path.exists, "a pipe or a device, not a file"),
    (os.path.islink, "a link that leads to no file"),
)
