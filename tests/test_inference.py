import json

import numpy as np
import pandas as pd
import pytest

TEXTS = [f"{word} " * n for n, word in enumerate(["oil", "goal", "chip", "vote", "bank", "coach", "virus"], 1)]


def test_predict_returns_a_row_a_text_in_order(classifier):
    table = classifier.predict(TEXTS)
    assert list(table.columns) == ["text", "label", "name", "confidence"]
    assert list(table["text"]) == TEXTS
    assert len(classifier.predict("one text")) == 1 and classifier.predict([]).empty


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


def test_a_length_that_leaves_no_room_for_text_is_refused(tiny_run):
    from lora_helpers.errors import InputError
    from lora_helpers.inference import Classifier

    with pytest.raises(InputError, match="max_length is 0, wanted 3 or more"):
        Classifier.from_checkpoint(tiny_run / "checkpoint-10", max_length=0)
