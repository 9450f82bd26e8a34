"""The documents of an input file, one at a time, whatever its format; memory stays flat however long the file is.

`read_documents` is the one reading of rows, for `inference.predict_file` and for `data`; `columns` says what they
mean. `_numbered` is the one place where a file that cannot be read becomes a sentence. CSV is read strictly: a lenient
reading would shift texts against their labels.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import InputError, first_line
from .columns import Columns, Document

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
WAYS_OUT = {
    **dict.fromkeys(PICKLES, "a pickle is a program and is not opened; save the texts as .csv, .jsonl or .parquet"),
    **dict.fromkeys(COMPRESSED, "compressed; unpack it first"),
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), "a spreadsheet; save it as CSV, UTF-8, separated by commas"),
    ".json": "one JSON document; write one object a line and call the file .jsonl",
    ".ndjson": "JSON lines under another name; call the file .jsonl",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
CLASSES = ("1", "2", "3", "4")  # what the first column of a CSV file without a header holds
LONGEST_FIELD = 2**31 - 1  # characters of a CSV file: the most that a C long holds on every platform
MARKS = {";": "semicolons", "|": "bars", "\t": "tabs", ",": "commas"}


def read_documents(
    path: Path | str, *, text_columns: str | Sequence[str] | None = None, id_column: str | None = None,
    labelled: bool = False,
) -> Iterator[Document]:  # fmt: skip
    """Yield each row of a file in one of the formats of `READERS` as a `Document`, in file order.

    The text is the column `text`, or `title` and `description` joined by a blank, or else `text_columns`; the id is the
    place in the file, from 0, or what `id_column` holds. The label, read if `labelled`, is `label` (0-3), `class` or
    `class index` (1-4), or a class's name in any of them. A CSV file without header is class (1-4), title, description.
    A text file holds one document a line. An odd text (empty, a NUL, emoji, half a surrogate pair) is a document.

    Raises: InputError: missing or empty file, unknown format, or a row that is not as described, with its number; a
        guess or a gap would move every label after it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        unknown = f"unknown format {path.suffix!r}, wanted one of {', '.join(READERS)}"
        raise InputError(f"{path}: {WAYS_OUT.get(suffix, unknown)}")
    names = (text_columns,) if isinstance(text_columns, str) else () if text_columns is None else tuple(text_columns)
    columns = Columns(names, id_column, labelled)
    number = -1
    for number, (where, values) in enumerate(READERS[suffix](path, columns.choose)):
        yield columns.document(number, values, where)
    if number < 0:
        raise InputError(f"{path}: holds no {'rows' if labelled else 'documents'}; wanted at least one")


def require_content(path: Path) -> None:
    """Refuse a file that only stands for another, as a clone made without Git LFS leaves it."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{path} is a Git LFS pointer in the place of the file; fetch it with `git lfs pull`")


def class_names(schema) -> dict[str, list[str]]:
    """The names that a parquet schema gives to the numbers in a column, as `datasets` writes a ClassLabel."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = {column: [str(name) for name in each["names"]] for column, each in features.items() if "names" in each}
    except (KeyError, TypeError, ValueError, AttributeError):  # no such metadata, or somebody else's
        return {}
    return {column: each for column, each in names.items() if each != [str(i) for i in range(len(each))]}


def _numbered(path: Path, rows: Iterable, of: str = "row") -> Iterator[tuple[str, object]]:
    """The rows of the file `path`, each with where it stands: the file's name and its number, from 1."""
    if not os.path.isfile(path):
        kinds = {os.path.isdir: "a folder, not a file", os.path.exists: "a pipe or a device, not a file"}
        kinds[os.path.islink] = "a link that leads to no file"
        found = next((words for is_it, words in kinds.items() if is_it(path)), "no such file")
        raise InputError(f"{path}: {found}; give a file of rows ({', '.join(READERS)})")
    number = 0
    try:
        require_content(path)
        for number, row in enumerate(rows, start=1):
            yield f"{path}, {of} {number}", row
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {_first_bad_line(path)}: not UTF-8 ({error.reason} 0x{error.object[error.start]:02x});"
            " wanted plain text: convert it to UTF-8, or unpack it if it is compressed"
        ) from error
    except csv.Error as error:
        raise InputError(f"{path}, row {number + 1}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or first_line(error)}); check the file") from error


def _csv_rows(path: Path, choose: Callable) -> Iterator[tuple[str, list[str]]]:
    header, columns, width, empty = None, None, 0, ""
    for where, row in _numbered(path, _csv_records(path)):
        if not row or (len(row) == 1 < width and not row[0].strip()):
            empty = empty or where
            continue
        width = width or len(row)
        if empty:
            raise InputError(f"{empty}: 0 columns, wanted {width}; remove the empty line")
        if columns is None and not (width == 3 and row[0] in CLASSES):
            try:
                header, columns = [_bare(name) for name in row], choose(row, where)
            except InputError:
                if fault := _separated(row[0], _delimiter(path)):
                    raise InputError(f"{where}: {fault}") from None
                raise
            continue
        columns = columns or choose(("class", "title", "description"), where)  # as AG News' authors publish it
        if len(row) != width:
            raise InputError(f"{where}: {len(row)} columns, wanted {width} as in row 1; mend the row")
        if header is None and row[0] not in CLASSES:
            raise InputError(f"{where}: class {row[0]!r:.40}, wanted 1, 2, 3 or 4 as in row 1; mend the row")
        if header == [_bare(value) for value in row]:
            raise InputError(f"{where}: the header again; remove the row (files joined by `cat` keep their headers)")
        yield where, [row[column] for column in columns]


def _csv_records(path: Path) -> Iterator[list[str]]:
    """The fields of each record, ended by LF, CRLF or CR; csv.Error, with what to do, if it is not quoted as it should be."""
    csv.field_size_limit(LONGEST_FIELD)
    form = {"strict": True, "delimiter": _delimiter(path)}
    lines, fault, first_end = [], None, ""  # the lines are those of the record that is being read
    with path.open(encoding="utf-8-sig", newline="") as stream:
        records = csv.reader((lines.append(line) or line for line in stream), **form)
        try:
            for record in records:
                if any(re.match(' +"', field) for field in record):
                    tight = next(csv.reader(lines, **form, skipinitialspace=True))
                    if [field.lstrip(" ") for field in tight] != [field.lstrip(" ") for field in record]:
                        fault = "a space before a quotation mark; remove it, so that it follows the separator at once"
                        break
                first_end = first_end or lines[-1][-1]
                if record and first_end != "\r" == lines[-1][-1]:
                    fault = "it ends in a carriage return, the first row in a line feed; quote the text that holds it"
                    break
                yield record
                lines.clear()
        except csv.Error as error:
            cause = _cause("".join(lines), form["delimiter"]) or f"{error}; check the quotation marks"
            raise csv.Error(cause) from error
    if fault:
        raise csv.Error(fault)


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _cause(lines: str, delimiter: str) -> str | None:
    if '\\"' in lines:
        return 'quotation marks escaped by backslashes; double them ("") instead'
    after_first_field = re.match(r'"[^"]*" *(.)', lines)
    return _separated(after_first_field[1], delimiter) if after_first_field else None


def _separated(text: str, delimiter: str) -> str | None:
    """What to do about a file that is separated by another mark than its name says, if `text` holds one."""
    found = [name for mark, name in MARKS.items() if mark in text and mark != delimiter]
    return f"separated by {found[0]}, wanted commas in .csv, tabs in .tsv; save it or name it so" if found else None


def _bare(name: str) -> str:
    """A column's name for comparison; in the middle of a file it may carry a byte-order mark and the quotes behind it."""
    return name.strip(' \ufeff"').lower()


def _parquet_values(path: Path, choose: Callable) -> Iterator[tuple]:
    """The values in the wanted columns, row by row; where the schema names the numbers of a column, the names."""
    import pyarrow.parquet

    try:
        with path.open("rb") as stream, pyarrow.parquet.ParquetFile(stream) as file:  # a path may be no UTF-8
            schema = file.schema_arrow
            wanted = [schema.names[place] for place in choose(schema.names, str(path))]
            classes = {column: dict(enumerate(names)) for column, names in class_names(schema).items()}
            for batch in file.iter_batches(1024, columns=list(dict.fromkeys(wanted))):
                values = [batch.column(column).to_pylist() for column in wanted]
                for place, column in enumerate(wanted):
                    if names := classes.get(column):
                        values[place] = [names.get(i, f"{i}, which has no name") for i in values[place]]
                yield from zip(*values, strict=True)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a whole parquet file ({first_line(error)}); make or fetch it again") from error


def _json_rows(path: Path, choose: Callable) -> Iterator[tuple[str, list]]:
    names, columns = None, []
    for where, line in _numbered(path, _lines(path, newline=None), "line"):
        if not line.strip():
            continue
        try:
            found = json.loads(line, object_pairs_hook=tuple)  # JSON has no tuples: what becomes one was an object
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", first_line(error))
            raise InputError(f'{where}: {reason}; wanted one JSON object with a "text"') from error
        if not isinstance(found, tuple):
            raise InputError(f'{where}: {line.strip()[:60]!r}; wanted an object with a "text"')
        if [name for name, _ in found] != names:
            names = [name for name, _ in found]
            columns = choose(names, where)
        yield where, [found[column][1] for column in columns]


def _text_rows(path: Path, choose: Callable) -> Iterator[tuple[str, list[str]]]:
    columns = choose(["text"], str(path))
    for where, line in _numbered(path, _lines(path, newline="\n"), "line"):
        text = line.removesuffix("\n").removesuffix("\r").removeprefix("\ufeff")  # of joined files
        if "\r" in text:
            raise InputError(f"{where}: a carriage return inside; wanted lines that end in LF or CRLF")
        yield where, [text for _ in columns]


def _lines(path: Path, *, newline: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline=newline) as lines:
        yield from lines


def _first_bad_line(path: Path) -> int:
    """The number of the first line that is not UTF-8 (the decoder knows only its place in a block)."""
    with path.open("rb") as lines:
        return next(n for n, line in enumerate(lines, start=1) if line.decode("utf-8", "ignore").encode() != line)


READERS = {
    **{".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".txt": _text_rows},
    ".parquet": lambda path, choose: _numbered(path, _parquet_values(path, choose)),
}
