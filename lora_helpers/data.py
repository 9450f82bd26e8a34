"""AG News from the Hub, from a folder, or the bundled corpus: one split, one fingerprint, one tokenisation.

The test split opens only by `load_split(…, "test")`, for reports.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .config import AG_NEWS, BUNDLED, DRAWN_BY, LABELS, PROFILES, RunConfig
from .errors import InputError, first_line
from .files.documents import class_names, read_documents
from .files.hub import cached_repository, download
from .files.places import CHECKPOINTS, MINI_NEWS, full_name, local_folder

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

HUB_ROWS = {"train": 120_000, "test": 7_600}  # Zhang, Zhao, LeCun (NeurIPS 2015), table 1
WANTED = "{0}.csv, {0}.parquet, or a whole set {0}-00000-of-0000N.parquet"
INSTEAD = (
    "set AG_NEWS_DIR to a folder with train.csv and test.csv, or use the bundled rows (profile mini, --data bundled)"
)
COMMITTED_ROWS = CHECKPOINTS / "ag_news_rows.bin"  # `row_marks` of the rows from which the committed runs drew theirs
AT_ONCE = 4096  # rows; to tokenise a text takes some twenty times its size
MARK_BYTES = 5  # of a SHA-256: among 120,000 rows two share one with a chance of 0.7 %


@dataclass(frozen=True)
class Splits:
    """Rows with the columns `text` (string) and `label` (int64, 0-3), and what a record may say of where they are from."""

    train: Dataset
    validation: Dataset
    source: str

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each split, rows in order."""
        return {name: fingerprint(getattr(self, name)) for name in ("train", "validation")}


def load_ag_news(config: RunConfig) -> Splits:
    """The training and validation rows of `config`; InputError for a row that is malformed, or if there are too few."""
    dataset, revision = config.dataset, config.dataset_revision
    folder = _open(dataset, ("train", "validation"), revision)
    train = _read(folder, "train", dataset, revision)
    if config.committed_rows:
        train = _select_committed(train)
    if find_split_files(folder, "validation"):
        usual = PROFILES.get(config.profile, config)
        how = DRAWN_BY + ("validation_share",) * bool(config.validation_share)
        if idle := [name for name in how if getattr(config, name) != getattr(usual, name)]:
            raise InputError(f"{', '.join(idle)}: without effect, since {dataset} brings validation rows; leave it out")
        validation = _read(folder, "validation", dataset, revision)
    else:
        train, validation = _carve_validation(train, config)
    if config.shuffled_labels:
        labels = np.random.default_rng(config.seed).permutation(train["label"][:])
        train = _as_dataset(train["text"][:], labels.tolist())
    return Splits(train, validation, describe_source(dataset, revision))


def load_split(dataset: str, split: str, revision: str | None = None) -> Dataset:
    """One split, "train", "test" or "validation", of "bundled", a folder, or a Hub name at `revision`: `text` string,
    `label` int64 (0-3)."""
    return _read(_open(dataset, (split,), revision), split, dataset, revision)


def describe_source(dataset: str, revision: str | None) -> str:
    """The data set's name for a record, without any path of this machine."""
    folder, name = _data_folder(dataset), full_name(dataset)
    if folder is None:
        return f"{name} at {revision}"
    named = {BUNDLED: "the bundled corpus", AG_NEWS: f"a folder with rows of {AG_NEWS}"}
    return named.get(name, f"the folder {folder.name}")


def find_split_files(folder: Path, split: str) -> list[Path]:
    """The files that make a split, in `folder` or its `data/`, as `WANTED` says, and no other; [] where there is none,
    InputError where they leave a choice or a shard is missing."""
    ways = []
    for place in (folder, folder / "data"):
        ways += [[file] for file in (place / f"{split}.csv", place / f"{split}.parquet") if file.exists()]
        shards = (re.fullmatch(rf"{split}-\d{{5}}-of-(\d{{5}})\.parquet", file.name) for file in place.glob("*"))
        for count in sorted({shard[1] for shard in shards if shard}):
            ways.append([place / f"{split}-{i:05}-of-{count}.parquet" for i in range(int(count))])
    wanted = [file for way in ways for file in way]
    files = [file for file in wanted if file.exists()]
    if len(ways) > 1 or files != wanted:
        names = ", ".join(file.relative_to(folder).as_posix() for file in files)
        fault = "more than one way to read it" if len(ways) > 1 else f"{len(files)} of {len(wanted)} files of a set"
        raise InputError(f"{folder}: for {split} there is {names}: {fault}; keep one of {WANTED.format(split)}")
    return files


def read_rows(files: Sequence[Path]) -> Dataset:
    """The labelled rows of `files`, in order: `text` string, `label` int64 (0-3)."""
    documents = [document for file in files for document in read_documents(file, labelled=True)]
    return _as_dataset([document.text for document in documents], [document.label for document in documents])


def fingerprint(rows: Dataset) -> str:
    """SHA-256 over label and text of every row, in order."""
    labelled = zip(rows["label"][:], rows["text"][:], strict=True)
    return _digest("".join(f"{label}\x1f{text}\x1e" for label, text in labelled)).hex()


def row_marks(rows: Dataset) -> list[bytes]:
    """By row the first bytes of the SHA-256 of its label and of the letters and digits of its text, case aside: copies of
    AG News differ in blanks and punctuation."""
    letters = map(_letters, rows["text"][:])
    return [_digest(f"{label} {text}")[:MARK_BYTES] for label, text in zip(rows["label"][:], letters, strict=True)]


def tokenize(rows: Dataset, tokenizer, max_length: int) -> Dataset:
    """Rows as `input_ids` (list of int, 2..max_length, not padded), `length` (tokens) and, where known, `labels`."""
    from datasets import Dataset

    ids = []
    for part in rows.iter(AT_ONCE):
        found = tokenizer(part["text"], truncation=True, max_length=max_length)["input_ids"]
        ids += [np.array(row, dtype=np.int32) for row in found]  # Arrow copies arrays, lists it walks through
    columns = {"input_ids": ids, "length": [len(row) for row in ids]}
    return Dataset.from_dict(columns | ({"labels": rows["label"][:]} if "label" in rows.column_names else {}))


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _as_dataset(texts: list[str], labels: list[int]) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def _data_folder(dataset: str) -> Path | None:
    return MINI_NEWS if dataset == BUNDLED else local_folder(dataset, "train.csv or test.csv")


def _open(dataset: str, splits: Sequence[str], revision: str | None) -> Path:
    """The folder with the files of `splits`, as far as the data set has them: a local one, or downloaded."""
    shapes = ("{}.csv", "{}.parquet", "{}-?????-of-?????.parquet")
    patterns = [place + shape.format(split) for split in splits for place in ("", "data/") for shape in shapes]
    return _data_folder(dataset) or download(dataset, revision, patterns, kind="dataset", instead=INSTEAD)


def _read(folder: Path, split: str, dataset: str, revision: str | None) -> Dataset:
    """The rows of a split in `folder`; of what was downloaded, errors say how to fetch it again."""
    from pyarrow.parquet import read_schema

    name, on_hub, files = full_name(dataset), _data_folder(dataset) is None, find_split_files(folder, split)
    if not files:
        place, remedy = (f"dataset {name} at {revision}", INSTEAD) if on_hub else (folder, "put the file there")
        there = ", ".join(sorted(file.name for file in folder.glob(f"{split}*")))
        raise InputError(f"{place}: found no {WANTED.format(split)}{there and f', but {there}'}; {remedy}")
    if not on_hub:
        return read_rows(files)
    try:
        rows = read_rows(files)
        if name == AG_NEWS:
            names = class_names(read_schema(files[0])).get("label", LABELS) if files[0].suffix == ".parquet" else LABELS
            if len(rows) != HUB_ROWS.get(split) or tuple(names) != LABELS:
                wanted = f"wanted {HUB_ROWS.get(split)} with {LABELS}"
                raise InputError(f"{AG_NEWS}, {split}: {len(rows)} rows with labels {tuple(names)}, {wanted}")
        return rows
    except InputError as error:
        raise InputError(f"{error}; delete {cached_repository(folder)} to download it again") from error


def _select_committed(train: Dataset) -> Dataset:
    """The rows that the committed runs were made of, in their order, as far as they are among these."""
    marks, places = np.fromfile(COMMITTED_ROWS, f"V{MARK_BYTES}").tolist(), {}
    for index, mark in enumerate(row_marks(train)):
        places.setdefault(mark, []).append(index)  # some rows occur more than once
    found = [places[mark].pop(0) for mark in marks if places.get(mark)]
    if not found:
        raise InputError(f"committed_rows: none of those {len(marks):,} rows is among these; say committed_rows false")
    if len(found) < len(marks):
        logger.warning("committed_rows: %d of %d rows of the committed runs are here", len(found), len(marks))
    return train.select(found)


def _carve_validation(train: Dataset, config: RunConfig) -> tuple[Dataset, Dataset]:
    """`train` without some of its rows, and these: by hash, or as `Dataset.train_test_split` chooses them."""
    if config.validation_share:
        return _carve_by_hash(train, config)
    from datasets import Dataset, Features, Value

    class AtOnce(Dataset):  # a column of the usual kind is read value by value: stratifying AG News takes 10 s
        def __getitem__(self, key):
            found = super().__getitem__(key)
            return found[:] if isinstance(key, str) else found

    size, stratify = config.validation_size, "label" if config.stratified else None
    if size >= len(train) - config.batch_size:
        wanted = f"a smaller one, so that more than a batch of {config.batch_size} remains"
        raise InputError(f"validation_size is {size} of {len(train)} rows, wanted {wanted}")
    features = Features({"row": Value("int64"), "label": train.features["label"]})
    rows = AtOnce.from_dict({"row": range(len(train)), "label": train["label"][:]}, features=features)
    try:
        parts = rows.train_test_split(test_size=size, seed=config.split_seed, stratify_by_column=stratify)
    except ValueError as error:  # fewer rows than classes, on one side or the other
        way = "; add rows of that class, or say stratified false" if config.stratified else ""
        raise InputError(f"validation_size is {size} of {len(train)} rows: {first_line(error)}{way}") from error
    return train.select(parts["train"]["row"][:]), train.select(parts["test"]["row"][:])


def _carve_by_hash(train: Dataset, config: RunConfig) -> tuple[Dataset, Dataset]:
    """`train` without the texts whose hash lies in the lowest share, and these: whatever other rows there are, a text is
    always on the same side, so that what was pretrained on one copy of the data can be validated on another."""
    limit = int(config.validation_share * 2**64)
    low = np.array([int.from_bytes(_digest(_letters(text))[:8]) < limit for text in train["text"][:]])
    if not low.any() or low.sum() >= len(train) - config.batch_size:
        its = f"validation_share is {config.validation_share}: {low.sum()} of {len(train)} rows"
        raise InputError(f"{its}; some must validate, and more than {config.batch_size} remain; or say validation_size")
    return train.select(np.flatnonzero(~low)), train.select(np.flatnonzero(low))
