"""What the columns of a file mean: text, label, id and names of classes, the same in every format."""

import csv
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lora_helpers.config import LABELS, get_profile
from lora_helpers.data import load_ag_news, load_split
from lora_helpers.errors import InputError
from lora_helpers.files.documents import read_documents, require_content

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
OTHER_ORDER = ["Business", "Sci/Tech", "Sports", "World"]


def write(path, columns):
    """The table `columns` (name -> values) as a file of the format that its suffix says."""
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        with path.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([columns, *rows])
    return path


def write_with_names(path, names, numbers):
    """A parquet file as `datasets` writes it, its labels numbered by `names`."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    texts = [f"{names[number]} {i}" for i, number in enumerate(numbers)]
    Dataset.from_dict({"text": texts, "label": numbers}, features=features).to_parquet(path)


def read(path, **options):
    return [(document.text, document.label) for document in read_documents(path, **options)]


# Columns


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "names",
    [
        ("class", "title", "description"),
        ("Class Index", "Title", "Description"),
        ("CLASS_INDEX", "title", "DESCRIPTION"),
        ("class  index", " Title", "description "),
    ],
)
def test_class_title_and_description_are_the_label_and_the_text_in_every_format(tmp_path, suffix, names):
    path = write(tmp_path / f"in{suffix}", dict(zip(names, ([3, 1], ["a", " b"], ["x ", "y"]), strict=True)))
    assert read(path, labelled=True) == [("a x", 2), ("b y", 0)]
    assert read(path) == [("a x", None), ("b y", None)]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", ["label", "Label", "class"])
def test_a_column_of_names_is_mapped_by_name_in_every_format(tmp_path, suffix, name):
    labels = ["World", "sports", "BUSINESS", "Sci/Tech", "sci_tech", "Sci-tech"]
    path = write(tmp_path / f"in{suffix}", {"text": list("abcdef"), name: labels})
    assert read(path, labelled=True) == list(zip("abcdef", [0, 1, 2, 3, 3, 3], strict=True))


@pytest.mark.parametrize("suffix", FORMATS)
def test_label_counts_from_0_and_class_from_1_in_every_format(tmp_path, suffix):
    for name, numbers in (("label", [0, 1, 2, 3]), ("class", [1, 2, 3, 4])):
        for kind in (int, str):  # as some programs write numbers
            path = write(tmp_path / f"{name}{suffix}", {name: list(map(kind, numbers)), "text": list("abcd")})
            assert read(path, labelled=True) == list(zip("abcd", range(4), strict=True))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"], "label": ["World", "Politics"]}, "'Politics', wanted 0, 1, 2 or 3, or World, Sports"),
        ({"text": ["a", "b"], "class": [1, 0]}, "0'?, wanted 1, 2, 3 or 4, or World"),
        ({"text": ["a", "b"], "label": [0, 4]}, "4'?, wanted 0, 1, 2 or 3, or World"),
        (
            {"text": ["a"], "label": [0], "class": [1]},
            "columns 'text, label, class'; wanted one `label`, or one `class`",
        ),
        ({"text": ["a"], "class": [0], "class index": [1]}, "wanted one `label`, or one `class`"),
        ({"text": ["a"], "Text": ["b"], "TEXT": ["c"], "label": [0]}, None),
        ({"Text": ["b"], "TEXT": ["c"], "label": [0]}, "wanted one `text`, or one `title` and one `description`"),
        ({"title": ["a"], "label": [0]}, "wanted one `text`, or one `title` and one `description`"),
    ],
)
def test_what_the_columns_leave_open_is_refused_in_every_format(tmp_path, suffix, columns, message):
    path = write(tmp_path / f"in{suffix}", columns)
    if message is None:
        assert read(path, labelled=True) == [("a", 0)]
    else:
        with pytest.raises(InputError, match=message) as caught:
            read(path, labelled=True)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", (*FORMATS, ".txt"))
def test_white_space_around_a_text_is_treated_alike(tmp_path, suffix):
    path = tmp_path / f"in{suffix}"
    if suffix == ".txt":
        path.write_text("  a b \n\tc\n")
    else:
        write(path, {"text": ["  a b ", "\tc"]})
    assert read(path) == [("a b", None), ("c", None)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_columns_asked_for_make_text_and_id(tmp_path, suffix, caplog):
    path = write(tmp_path / f"in{suffix}", {"Id": [1001, 1002], "head line": ["a", "b"], "Body": ["x", "y"]})
    found = list(read_documents(path, text_columns=["head_line", "body"], id_column="id"))
    assert [(str(document.id), document.text) for document in found] == [("1001", "a x"), ("1002", "b y")]
    assert not caplog.records
    assert [document.id for document in read_documents(path, text_columns="Body")] == [0, 1]
    for options in ({"text_columns": ["none"]}, {"text_columns": ["Body"], "id_column": "none"}):
        with pytest.raises(InputError, match=r"'Id, head line, Body'; wanted one `none`; text_columns, id_column "):
            list(read_documents(path, **options))


def test_a_name_to_the_letter_goes_before_the_same_in_another_case(tmp_path):
    path = write(tmp_path / "in.csv", {"ID": ["x"], "id": ["y"], "text": ["a"]})
    assert [next(read_documents(path, id_column=name)).id for name in ("ID", "id")] == ["x", "y"]
    with pytest.raises(InputError, match="wanted one `Id`"):
        next(read_documents(path, id_column="Id"))


@pytest.mark.parametrize("value", [None, 1.5, True, ""])
def test_an_id_that_is_none_is_refused_with_its_row(tmp_path, value):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"id": 7, "text": "a"}) + "\n" + json.dumps({"id": value, "text": "b"}) + "\n")
    with pytest.raises(
        InputError, match=r"line 2: id is \S+, wanted a whole number, or a string without a carriage return"
    ):
        list(read_documents(path, id_column="id"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_notice_names_the_columns_that_nobody_reads(tmp_path, suffix, caplog):
    path = write(tmp_path / f"in{suffix}", {"id": [5, 6], "label": [0, 1], "title": ["t", "u"], "text": ["a", "b"]})
    assert read(path) == read(path) == [("a", None), ("b", None)]
    (notice,) = caplog.records
    assert notice.levelno == logging.WARNING
    others = "text_columns, id_column (in a shell --text-column, --id-column) name others"
    assert f"columns not read: id, title; {others}" in notice.getMessage()
    caplog.clear()
    assert len(list(read_documents(path, text_columns=["title", "text"], id_column="id"))) == 2
    assert not caplog.records


def test_no_notice_names_the_index_column_that_pandas_writes(tmp_path, caplog):
    (tmp_path / "in.csv").write_text(",text\n0,a\n1,b\n")
    assert read(tmp_path / "in.csv") == [("a", None), ("b", None)] and not caplog.records


def test_objects_of_ever_other_columns_are_one_notice(tmp_path, caplog):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": "a", f"column {i}": i}) + "\n" for i in range(9)))
    assert len(read(path)) == 9
    assert [record.getMessage().count("column 0") for record in caplog.records] == [1]


def test_numbers_without_names_are_read_in_our_order_and_it_is_said_once(tmp_path, caplog):
    assert read(write(tmp_path / "in.parquet", {"text": ["a", "b"], "label": [1, 2]}), labelled=True)
    (notice,) = caplog.records
    said = (
        "0, 1, 2, 3 are read as World, Sports, Business, Sci/Tech; if yours count from 1, rename the column to `class`"
    )
    assert said in notice.getMessage()
    caplog.clear()
    assert read(write(tmp_path / "in.csv", {"text": ["a"], "class": [1]}), labelled=True)  # as AG News numbers them
    write_with_names(tmp_path / "named.parquet", list(LABELS), [0, 1])
    assert read(tmp_path / "named.parquet", labelled=True) and not caplog.records


# Names of classes in a parquet schema


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_a_schema_that_orders_the_classes_otherwise_gives_the_right_labels(tmp_path, split):
    numbers = np.random.default_rng(0).integers(0, 4, 120).tolist()
    write_with_names(tmp_path / f"{split}.parquet", OTHER_ORDER, numbers)
    rows = load_split(str(tmp_path), split)
    assert len(rows) == 120 and rows["label"][:] != numbers
    assert [LABELS[label] for label in rows["label"]] == [text.split()[0] for text in rows["text"]]


def test_training_learns_from_the_right_labels_too(tmp_path):
    write_with_names(tmp_path / "train.parquet", OTHER_ORDER, [i % 4 for i in range(120)])
    splits = load_ag_news(get_profile("mini", dataset=str(tmp_path), validation_size=40))
    for rows in (splits.train, splits.validation):
        assert [LABELS[label] for label in rows["label"]] == [text.split()[0] for text in rows["text"]]


def test_every_shard_is_mapped_by_its_own_names(tmp_path):
    for shard, names in enumerate((OTHER_ORDER, ["sci-tech", "world", "sports", "business"])):
        write_with_names(tmp_path / f"test-{shard:05}-of-00002.parquet", names, [0, 1, 2, 3])
    assert load_split(str(tmp_path), "test")["label"][:] == [2, 3, 1, 0, 3, 0, 1, 2]


def test_a_class_of_another_name_or_without_one_is_refused_with_its_row(tmp_path):
    write_with_names(tmp_path / "test.parquet", [*LABELS[:3], "Politics"], [0, 3])
    with pytest.raises(InputError, match="row 2: class 'Politics', wanted 0, 1, 2 or 3, or World"):
        load_split(str(tmp_path), "test")
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS[:3]))})
    table = pa.table({"text": ["a"], "label": [3]}).replace_schema_metadata(features.arrow_schema.metadata)
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(InputError, match="row 1: class '3, which has no name', wanted"):
        load_split(str(tmp_path), "train")


@pytest.mark.parametrize("metadata", [b"not JSON", b"{}", b'{"info": {"features": {"label": 3}}}', b"[1]"])
def test_metadata_of_another_kind_are_no_names(tmp_path, metadata):
    table = pa.table({"text": ["a"], "label": [3]}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "test.parquet")
    assert load_split(str(tmp_path), "test")["label"][:] == [3]


def test_numbers_in_place_of_names_are_no_names(tmp_path):
    """`ClassLabel(num_classes=4)` calls its classes "0" to "3"."""
    write_with_names(tmp_path / "test.parquet", ["0", "1", "2", "3"], [2, 3])
    assert load_split(str(tmp_path), "test")["label"][:] == [2, 3]


def test_a_git_lfs_pointer_is_known_by_its_content(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "other").write_text("version 2")
    require_content(tmp_path / "other")
    with pytest.raises(InputError, match="model.safetensors is a Git LFS pointer"):
        require_content(tmp_path / "model.safetensors")
