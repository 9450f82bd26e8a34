import json

import numpy as np
import pandas as pd
import pytest

from lora_helpers import inference
from lora_helpers.checkpoints import list_checkpoints
from lora_helpers.config import get_profile
from lora_helpers.errors import InputError
from lora_helpers.inference import Classifier
from lora_helpers.training import train

TEXTS = [f"{word} " * n for n, word in enumerate(["oil", "goal", "chip", "vote", "bank", "coach", "virus"], 1)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, tiny_base):
    config = get_profile("mini", base_model=str(tiny_base), max_length=32, max_steps=10, eval_steps=10, save_steps=10)
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    train(config, run_dir)
    return Classifier.from_checkpoint(list_checkpoints(run_dir)[-1])


def test_predict_returns_a_row_a_text_in_order(classifier):
    table = classifier.predict(TEXTS)
    assert list(table.columns) == ["text", "label", "name", "confidence"]
    assert list(table["text"]) == TEXTS
    assert len(classifier.predict("one text")) == 1 and classifier.predict([]).empty


def test_predictions_depend_on_the_text_alone(classifier, monkeypatch):
    """Not on order, neighbours, batch size or window: probabilities within 1e-5."""
    together = classifier.predict_probabilities(TEXTS)
    np.testing.assert_allclose(classifier.predict_probabilities(TEXTS[::-1])[::-1], together, atol=1e-5)
    alone = np.concatenate([classifier.predict_probabilities([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    monkeypatch.setattr(inference, "WINDOW", 2)
    monkeypatch.setattr(inference, "BATCH_TOKENS", 1)
    np.testing.assert_allclose(classifier.predict_probabilities(TEXTS), together, atol=1e-5)
    assert np.ptp(together, axis=0).max() > 1e-3  # the texts do differ


@pytest.mark.parametrize("text", ["", " ", "a", "word " * 100_000, "\0", "\ud800", "🏀", "العربية", "!!!", "<script>"])
def test_strange_texts_get_a_label(classifier, text):
    probabilities = classifier.predict_probabilities(["before", text, "after"])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("text", [None, float("nan"), 7, b"bytes", ["nested"]])
def test_what_is_no_text_is_refused_with_its_place(classifier, text):
    with pytest.raises(InputError, match="text 1 is"):
        classifier.predict(["fine", text])


def write(path, kind, texts):
    if kind == "csv":
        pd.DataFrame({"id": range(len(texts)), "text": texts}).to_csv(path, index=False)
    elif kind == "canonical.csv":
        pd.DataFrame({"class": 1, "title": texts, "description": ""}).to_csv(path, index=False, header=False, quoting=1)
    elif kind == "title.csv":
        pd.DataFrame({"Title": texts, "Description": ""}).to_csv(path, index=False)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "parquet":
        pd.DataFrame({"text": texts}).to_parquet(path)
    else:
        path.write_text("".join(text + "\n" for text in texts))


@pytest.mark.parametrize("kind", ["csv", "canonical.csv", "title.csv", "jsonl", "parquet", "txt"])
def test_every_format_gives_the_same_labels_in_file_order(classifier, tmp_path, kind):
    texts = [text.strip() for text in TEXTS]
    write(tmp_path / f"in.{kind}", kind, texts)
    count = classifier.predict_file(tmp_path / f"in.{kind}", tmp_path / "out.csv", progress=False)
    table = pd.read_csv(tmp_path / "out.csv")
    assert count == len(texts) and list(table.columns) == ["ID", "Label"]
    assert list(table["ID"]) == list(range(len(texts)))
    assert list(table["Label"]) == list(classifier.predict(texts)["label"])


def test_probabilities_add_their_columns(classifier, tmp_path):
    write(tmp_path / "in.txt", "txt", TEXTS)
    classifier.predict_file(tmp_path / "in.txt", tmp_path / "out.csv", probabilities=True, progress=False)
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table.columns) == ["ID", "Label", "LabelName", "World", "Sports", "Business", "Sci/Tech"]
    np.testing.assert_allclose(table.iloc[:, 3:], classifier.predict_probabilities(TEXTS), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", b"", "holds no documents"),
        ("in.csv", b"text\n", "holds no documents"),
        ("in.csv", b"id,words\n1,a\n", "wanted one `text` column"),
        ("in.csv", b"text,text\n1,a\n", "wanted one `text` column"),
        ("in.csv", b"text,b\na\n", "row 2: 1 columns, wanted 2"),
        ("in.csv", b"text\ncaf\xe9\n", "not UTF-8"),
        ("in.csv", b'text\n"open\n', "quotation marks"),
        ("in.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
        ("in.jsonl", b'{"text": 3}\n', 'line 1: "text" is int'),
        ("in.parquet", b"PAR1", "not a parquet file"),
        ("in.pkl", b"", "a pickle is a program"),
        ("in.docx", b"", "unknown format"),
    ],
)
def test_a_bad_file_is_one_line_and_leaves_no_output(classifier, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        classifier.predict_file(tmp_path / name, tmp_path / "out.csv", progress=False)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_outputs_are_never_overwritten(classifier, tmp_path):
    write(tmp_path / "in.txt", "txt", TEXTS)
    (tmp_path / "out.csv").write_text("precious")
    for target, message in (
        ("out.csv", "exists already"),
        ("out.txt", "ends in .csv"),
        ("no/out.csv", "no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            classifier.predict_file(tmp_path / "in.txt", tmp_path / target, progress=False)
    assert (tmp_path / "out.csv").read_text() == "precious"
    with pytest.raises(InputError, match="no such file"):
        classifier.predict_file(tmp_path / "missing.txt", tmp_path / "new.csv", progress=False)
