"""Every bad or strange input of the tables in `bad_inputs.py` does what its row says, in one line, and leaves nothing."""

import os
import pickle
import re
from contextlib import contextmanager
from dataclasses import fields

import bad_inputs
import numpy as np
import pandas as pd
import pytest
from bad_inputs import SAMPLE, SAMPLE_JSONL, Refused
from conftest import Bomb, record_count

from lora_helpers import inference
from lora_helpers.__main__ import main
from lora_helpers.config import RunConfig, get_profile
from lora_helpers.data import load_split, read_rows
from lora_helpers.errors import InputError
from lora_helpers.files.documents import read_documents

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def count(request):
    yield
    if hasattr(request.node, "callspec"):
        record_count("bad inputs tried")


def table(rows: dict):
    """A test for every row, under its name."""
    return pytest.mark.parametrize("row", rows.values(), ids=[name.replace(" ", "_") for name in rows])


@contextmanager
def refusal(pattern):
    """An `InputError` of one line that holds `pattern`."""
    with pytest.raises(InputError) as caught:
        yield
    assert "\n" not in str(caught.value) and re.search(pattern, str(caught.value)), str(caught.value)[:500]


def listing(folder):
    """Everything below `folder`: names, kinds and contents."""
    return {
        path.relative_to(folder): (
            path.lstat().st_mode,
            os.path.islink(path) or not path.is_file() or path.read_bytes(),
        )
        for path in folder.rglob("*")
    }


def put(folder, file):
    path = folder / file.name
    if isinstance(file.content, bytes):
        path.write_bytes(file.content)
    elif file.content:
        file.content(path)
    return path


def test_the_tables_are_long_and_name_every_field():
    rows = sum(len(rows) for rows in (
        bad_inputs.ODD_TEXTS, bad_inputs.NO_TEXTS, bad_inputs.IN_PLACE_OF_A_LIST, bad_inputs.TEXT_FILES,
        bad_inputs.LABELLED_FILES, bad_inputs.FIELDS, bad_inputs.TOGETHER, bad_inputs.COMMAND_LINES, bad_inputs.TARGETS,
    ))  # fmt: skip
    assert rows >= 120
    names = {field.name for field in fields(RunConfig)}
    assert {field for field, _, _ in bad_inputs.FIELDS} == names
    assert {flag.removeprefix("--") for flag, _, _ in bad_inputs.COMMAND_LINES} >= names


# Texts


@table(bad_inputs.ODD_TEXTS)
def test_an_odd_text_gets_a_label_and_leaves_its_neighbours_theirs(classifier, row):
    text, read_as = row if isinstance(row, tuple) else (row, row)
    before, after = classifier.predict_probabilities(["before", "after"])
    wanted = np.stack([before, *classifier.predict_probabilities([read_as]), after])
    np.testing.assert_allclose(wanted.sum(axis=1), 1, atol=1e-5)
    found = classifier.predict(["before", text, "after"])
    assert list(found["label"]) == list(wanted.argmax(axis=1))
    np.testing.assert_allclose(found["confidence"], wanted.max(axis=1), atol=1e-5)


@table(bad_inputs.NO_TEXTS)
def test_what_is_no_text_is_refused_with_its_place(classifier, row):
    with refusal(rf"text 1 is .* \({type(row).__name__}\), wanted a string; drop or convert it"):
        classifier.predict(["fine", row])


@table(bad_inputs.IN_PLACE_OF_A_LIST)
def test_what_stands_for_a_list_of_texts_is_one_or_is_refused(classifier, row):
    texts, wanted = row
    if isinstance(wanted, Refused):
        with refusal(wanted):
            classifier.predict(texts)
        with refusal(wanted):
            classifier.predict_probabilities(texts)
    else:
        assert len(classifier.predict(texts)) == wanted


def test_one_notice_says_how_many_texts_were_changed_and_which_is_the_first(classifier, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(inference, "WINDOW", 2)
    texts = ["fine", "?", "half \ud800", "fine", "\udfff", ""]
    shown = classifier.predict(texts)["text"]
    assert list(shown) == ["fine", "?", "half ?", "fine", "?", ""]
    notices = [record for record in caplog.records if record.name == "lora_helpers.inference"]
    assert len(notices) == 2 and notices[0].levelname == notices[1].levelname == "WARNING"
    assert re.search(r"half of a surrogate pair.*: 2; the first is text 2 ", notices[0].getMessage())
    assert re.search(r"with nothing in them.*: 1; the first is text 5 ", notices[1].getMessage())
    caplog.clear()
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    assert classifier.predict_file(tmp_path / "in.jsonl", tmp_path / "out.csv", progress=False) == 2
    assert [re.search(": 1; the first is text 1 ", record.getMessage()) is None for record in caplog.records] == [False]
    caplog.clear()
    classifier.predict(["fine", "?", "🏀"])
    assert not caplog.records


# Files


@table(bad_inputs.TEXT_FILES)
def test_a_file_of_texts_is_labelled_whole_or_refused_whole(classifier, tmp_path, row):
    source, target = put(tmp_path, row), tmp_path / "out.csv"
    if isinstance(row.wanted, Refused):
        before = {path.name for path in tmp_path.iterdir()}
        with refusal(row.wanted):
            classifier.predict_file(source, target, progress=False)
        assert {path.name for path in tmp_path.iterdir()} == before
    else:
        assert [document.text for document in read_documents(source)] == row.wanted
        assert classifier.predict_file(source, target, progress=False) == len(row.wanted)
        found = pd.read_csv(target)
        assert list(found["ID"]) == list(range(len(row.wanted)))
        assert list(found["Label"]) == list(classifier.predict(row.wanted)["label"])
        assert {path.name for path in tmp_path.iterdir()} == {source.name, "out.csv"}


def test_the_pickle_that_would_act_does_act_when_it_is_opened(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "planted")))
    assert (tmp_path / "planted").exists()


@table(bad_inputs.LABELLED_FILES)
def test_labelled_rows_are_read_whole_or_refused_with_their_row(tmp_path, row):
    path = put(tmp_path, row)

    def read():
        return read_rows([path]) if path.suffix in (".csv", ".tsv") else load_split(str(tmp_path), "train")

    if isinstance(row.wanted, Refused):
        with refusal(row.wanted):
            read()
    else:
        rows = read()
        assert list(zip(rows["text"], rows["label"], strict=True)) == row.wanted


# Configurations


@pytest.mark.parametrize(("field", "value", "wanted"), bad_inputs.FIELDS)
def test_a_field_out_of_range_or_of_another_type_is_named_with_what_it_wants(field, value, wanted):
    with refusal(f"^configuration: (.*; )?{field} is .*{wanted}"):
        RunConfig(**{field: value})


@table(bad_inputs.TOGETHER)
def test_fields_at_odds_are_refused_together(row):
    changes, message = row
    with refusal(message):
        get_profile("mini", **changes)


@pytest.mark.parametrize(("flag", "text", "message"), bad_inputs.COMMAND_LINES)
def test_the_command_line_says_it_in_one_line_with_status_2(tmp_path, capsys, flag, text, message):
    arguments = ["train", "mini", "--output-dir", str(tmp_path / "run"), flag.replace("_", "-")]
    assert main(arguments + ([] if text is None else [text])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith("\n") and error.count("\n") == 1
    assert re.search(message, error), error[:500]
    assert not (tmp_path / "run").exists()


# Outputs


@table(bad_inputs.TARGETS)
def test_an_output_that_cannot_be_new_is_refused_and_everything_stays_as_it_was(classifier, tmp_path, row):
    (tmp_path / "in.csv").write_text("text\na\n")
    if row.make:
        row.make(tmp_path)
    before = listing(tmp_path)
    with refusal(row.message):
        classifier.predict_file(tmp_path / "in.csv", tmp_path / row.name, progress=False)
    assert listing(tmp_path) == before


def test_a_name_of_255_characters_is_written(classifier, tmp_path):
    (tmp_path / "in.csv").write_text("text\na\n")
    assert classifier.predict_file(tmp_path / "in.csv", tmp_path / ("x" * 251 + ".csv"), progress=False) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError, SystemExit])
def test_what_ends_it_in_the_middle_leaves_no_file(classifier, tmp_path, monkeypatch, error):
    """The second of four windows never comes back; without the interruption the file is there."""
    monkeypatch.setattr(inference, "WINDOW", 2)
    (tmp_path / "in.jsonl").write_text(SAMPLE_JSONL)
    stock = inference.Classifier._classify

    windows = iter(range(4))

    def interrupted(self, texts, *rest):
        assert any(path.name.endswith(".partial") for path in tmp_path.iterdir())
        if next(windows) >= 1:
            raise error
        return stock(self, texts, *rest)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(inference.Classifier, "_classify", interrupted)
        classifier.predict_file(tmp_path / "in.jsonl", tmp_path / "out.csv", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert classifier.predict_file(tmp_path / "in.jsonl", tmp_path / "out.csv", progress=False) == len(SAMPLE)


@pytest.mark.parametrize("room", [0, 10])
def test_a_full_disk_is_said_and_leaves_no_file(classifier, tmp_path, room):
    """The system itself ends the writing after `room` bytes."""
    resource = pytest.importorskip("resource")  # not on Windows
    (tmp_path / "in.jsonl").write_text(SAMPLE_JSONL)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with refusal(r"out\.csv: cannot be written \(File too large\); nothing was kept"):
            classifier.predict_file(tmp_path / "in.jsonl", tmp_path / "out.csv", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_predict_on_the_command_line_ends_in_one_line_too(tiny_run, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    arguments = ["predict", str(tiny_run / "checkpoint-10"), "--input", str(tmp_path / "in.jsonl")]
    assert main([*arguments, "--output", str(tmp_path / "out.csv")]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "line 2" in error[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert main(["predict", str(tiny_run / "checkpoint-10"), "a \udc80 from a shell in Latin-1", ""]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
