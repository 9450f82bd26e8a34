"""AG News from the Hub, from a folder, or the bundled corpus: one split, one fingerprint, one tokenisation.

`load_ag_news` opens training and validation rows for whatever trains or chooses; the test split opens only by
`load_split(…, "test")`, for reports. What comes from the Hub, base models too, comes through `download`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .config import AG_NEWS, BUNDLED, LABELS, RunConfig
from .errors import InputError, first_line
from .files.documents import csv_rows, numbered, parquet_rows
from .files.hub import cached_repository, download
from .files.places import MINI_NEWS, local_folder

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ROWS = {"train": 120_000, "test": 7_600}  # Zhang, Zhao, LeCun (NeurIPS 2015), table 1


@dataclass(frozen=True)
class Splits:
    """Rows with the columns `text` (string) and `label` (int64, 0-3)."""

    train: Dataset
    validation: Dataset
    source: str  # what a record may say about where the rows came from

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each split, rows in order."""
        return {name: fingerprint(getattr(self, name)) for name in ("train", "validation")}


def load_ag_news(config: RunConfig) -> Splits:
    """The training and validation rows of `config`. The test split stays closed; see `load_split`.

    Raises:
        InputError: no such data, a malformed row (with its number), or too few rows for the validation split.
    """
    train = load_split(config.dataset, "train", config.dataset_revision)
    folder = _data_folder(config.dataset)
    bundled_validation = _find_split_files(folder, "validation") if folder else []
    if bundled_validation:
        validation = _read_files(bundled_validation)
    else:
        train, validation = _carve_validation(train, config)
    if config.shuffled_labels:
        labels = np.random.default_rng(config.seed).permutation(train["label"][:])
        train = _as_dataset(train["text"][:], labels.tolist())
    return Splits(train, validation, describe_source(config.dataset, config.dataset_revision))


def load_split(dataset: str, split: str, revision: str | None = None) -> Dataset:
    """One split of a data set, "train" or "test", or the "validation" that it brings: `text` string, `label` int64 (0-3).

    `dataset` is "bundled", a folder, or a Hub name at `revision`; the folder in AG_NEWS_DIR stands in for AG News.
    """
    folder = _data_folder(dataset)
    if folder is None:
        return _load_from_hub(dataset, split, revision)
    files = _find_split_files(folder, split)
    if not files:
        raise InputError(f"{folder}: found no {split}.csv and no {split}*.parquet; put the file there")
    return _read_files(files)


def describe_source(dataset: str, revision: str | None) -> str:
    """The data set's name for a record, without any path of this machine."""
    if dataset == BUNDLED:
        return "the bundled corpus"
    folder = _data_folder(dataset)
    if folder is None:
        return f"{dataset} at {revision}"
    return f"a folder with rows of {dataset}" if dataset == AG_NEWS else f"the folder {folder.name}"


def read_canonical_csv(path: Path) -> Dataset:
    """AG News as its authors published it: no header, `"class","title","description"`, class 1-4, UTF-8.

    `text = (title + " " + description).strip()`, which is what the Hub's copy holds.

    Raises:
        InputError: no file, not UTF-8, no rows, or a row with another width or class; the row's number is named.
    """
    texts, labels = [], []
    for number, row in numbered(path, csv_rows(path)):
        if len(row) != 3:
            raise InputError(f"{path}, row {number}: {len(row)} columns, wanted 3 (class, title, description)")
        if row[0] not in {"1", "2", "3", "4"}:
            raise InputError(f"{path}, row {number}: class {row[0]!r}, wanted 1, 2, 3 or 4")
        texts.append((row[1] + " " + row[2]).strip())
        labels.append(int(row[0]) - 1)
    if not texts:
        raise InputError(f"{path}: no rows; wanted rows of class, title, description")
    return _as_dataset(texts, labels)


def fingerprint(rows: Dataset) -> str:
    """SHA-256 over label and text of every row, in order."""
    digest = hashlib.sha256()
    for label, text in zip(rows["label"][:], rows["text"][:], strict=True):
        digest.update(f"{label}\x1f{text}\x1e".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def tokenize(rows: Dataset, tokenizer, max_length: int) -> Dataset:
    """Rows as `input_ids` (list of int, 2..max_length, not padded), `length` (tokens) and, where known, `labels`."""
    from datasets import Dataset

    ids = tokenizer(rows["text"][:], truncation=True, max_length=max_length)["input_ids"]
    columns = {
        "input_ids": [np.array(row, dtype=np.int32) for row in ids],  # Arrow copies arrays, lists it walks through
        "length": [len(row) for row in ids],
    }
    if "label" in rows.column_names:
        columns["labels"] = rows["label"][:]
    return Dataset.from_dict(columns)


def _as_dataset(texts: list[str], labels: list[int]) -> Dataset:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS))})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def _data_folder(dataset: str) -> Path | None:
    return MINI_NEWS if dataset == BUNDLED else local_folder(dataset, "train.csv or test.csv")


def _find_split_files(folder: Path, split: str) -> list[Path]:
    parquet = sorted(folder.glob(f"{split}*.parquet")) or sorted((folder / "data").glob(f"{split}*.parquet"))
    return [folder / f"{split}.csv"] if (folder / f"{split}.csv").is_file() else parquet


def _read_files(files: list[Path]) -> Dataset:
    if files[0].suffix == ".csv":
        return read_canonical_csv(files[0])
    texts, labels = [], []
    for file in files:
        for number, (text, label) in numbered(file, parquet_rows(file, ["text", "label"])):
            if not isinstance(text, str) or type(label) is not int or label not in range(4):
                raise InputError(
                    f"{file}, row {number}: a text that is {type(text).__name__} and the label {label!r:.40};"
                    " wanted a string and 0, 1, 2 or 3"
                )
            texts.append(text)
            labels.append(label)
    if not texts:
        raise InputError(f"{files[0]}: no rows; wanted rows of text and label")
    return _as_dataset(texts, labels)


def _load_from_hub(dataset: str, split: str, revision: str | None) -> Dataset:
    instead = "set AG_NEWS_DIR to a folder with train.csv and test.csv, or use PROFILE=mini"
    wanted = (f"{split}.csv", f"{split}*.parquet", f"data/{split}*.parquet")
    folder = download(dataset, revision, wanted, kind="dataset", instead=f"connect to the Hub, {instead}")
    files = _find_split_files(folder, split)
    if not files:
        raise InputError(f"dataset {dataset} at {revision}: found no {' and no '.join(wanted)}; {instead}")
    remedy = f"delete {cached_repository(folder)} to download it again"
    try:
        rows = _read_files(files)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from error
    if dataset == AG_NEWS and (len(rows) != HUB_ROWS[split] or _label_names(files[0]) != LABELS):
        raise InputError(
            f"dataset {dataset} at {revision}, {split}: {len(rows)} rows with labels {_label_names(files[0])},"
            f" wanted {HUB_ROWS[split]} with {LABELS}; {remedy}"
        )
    return rows


def _label_names(file: Path) -> tuple[str, ...]:
    """The names of labels 0-3 that a parquet file gives in its schema; where it gives none, ours."""
    from datasets import Features
    from pyarrow.parquet import read_schema

    return tuple(getattr(Features.from_arrow_schema(read_schema(file))["label"], "names", LABELS))


def _carve_validation(train: Dataset, config: RunConfig) -> tuple[Dataset, Dataset]:
    from datasets.utils.stratify import stratified_shuffle_split_generate_indices

    if config.validation_size >= len(train) - config.batch_size:
        raise InputError(f"validation_size is {config.validation_size}, but train has only {len(train)} rows")
    if not config.stratified:
        parts = train.train_test_split(test_size=config.validation_size, seed=config.split_seed)
        return parts["train"], parts["test"]
    labels, kept = np.array(train["label"][:]), len(train) - config.validation_size
    # train_test_split(stratify_by_column="label") calls this with labels that it reads row by row: 10 s for AG News.
    splits = stratified_shuffle_split_generate_indices(
        labels, kept, config.validation_size, rng=np.random.default_rng(config.split_seed)
    )
    try:
        rows, validation_rows = next(splits)
    except ValueError as error:  # fewer rows than classes, on one side or the other
        raise InputError(
            f"validation_size is {config.validation_size} of {len(train)} rows: {first_line(error)}"
        ) from error
    return train.select(rows), train.select(validation_rows)
