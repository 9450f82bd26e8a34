"""The texts of an input file, one at a time, whatever its format; memory stays flat however long the file is.

`inference.predict_file` reads through this and nothing else does.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError

FORMATS = (".csv", ".jsonl", ".parquet", ".txt")


def read_texts(path: Path | str) -> Iterator[str]:
    """Yield the document of each row of a .csv, .jsonl, .parquet or .txt file, in file order.

    CSV: a `text` column, `title` and `description` columns, or canonical headerless rows (class, title, description).
    JSON lines and parquet: a `text` field. Text: one document a line.

    Raises:
        InputError: missing or empty file, unknown format, or a row that is not as described; its number is named.
    """
    path = Path(path)
    if path.suffix.lower() in (".pkl", ".pickle", ".pt", ".bin"):
        raise InputError(f"{path}: a pickle is a program and is not opened; save the texts as .csv, .jsonl or .parquet")
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: unknown format {path.suffix!r}, wanted one of {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a file of texts ({', '.join(FORMATS)})")
    reader = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet, ".txt": _read_lines}
    count = 0
    try:
        for text in reader[path.suffix.lower()](path):
            yield text
            count += 1
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} near row {count + 1}); convert it to UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    if count == 0:
        raise InputError(f"{path}: holds no documents; wanted at least one")


def _read_csv(path: Path) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        number = 1
        try:
            first = next(rows, None)
            if first is None:
                return
            columns, has_header = _text_columns(path, first)
            if not has_header:
                yield _join(path, number, first, len(first), columns)
            for number, row in enumerate(rows, start=2):
                yield _join(path, number, row, len(first), columns)
        except csv.Error as error:
            raise InputError(f"{path}, row {number}: {error}; check the quotation marks") from error


def _text_columns(path: Path, first: list[str]) -> tuple[list[int], bool]:
    """Which columns hold the text, and whether the first row is a header."""
    header = [name.strip().lower() for name in first]
    for names in (["text"], ["title", "description"]):
        if all(header.count(name) == 1 for name in names):
            return [header.index(name) for name in names], True
    if len(first) == 3 and first[0] in {"1", "2", "3", "4"}:
        return [1, 2], False
    raise InputError(
        f"{path}, row 1: columns {', '.join(first)[:80]!r}; wanted one `text` column, `title` and `description`,"
        " or rows of class (1-4), title, description"
    )


def _join(path: Path, number: int, row: list[str], width: int, columns: list[int]) -> str:
    if len(row) != width:
        raise InputError(f"{path}, row {number}: {len(row)} columns, wanted {width} as in row 1")
    return " ".join(row[column] for column in columns).strip()


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f'{path}, line {number}: {error!r}; wanted one object with a "text"') from error
            if not isinstance(text, str):
                raise InputError(f'{path}, line {number}: "text" is {type(text).__name__}, wanted a string')
            yield text


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from error
    if "text" not in file.schema_arrow.names:
        raise InputError(f"{path}: columns {', '.join(file.schema_arrow.names)}; wanted one called text")
    number = 0
    for batch in file.iter_batches(columns=["text"]):
        for text in batch.column(0).to_pylist():
            number += 1
            if not isinstance(text, str):
                raise InputError(f"{path}, row {number}: text is {type(text).__name__}, wanted a string")
            yield text


def _read_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for line in lines:
            yield line.rstrip("\r\n")
