import csv

import pandas as pd
import pytest

from lora_helpers.config import LABELS, get_profile
from lora_helpers.data import _carve_validation, fingerprint, load_ag_news, load_split, read_rows, tokenize
from lora_helpers.errors import InputError


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(rows)


def make_rows(count):
    return [(i % 4 + 1, f"title {i}", f"description {i}") for i in range(count)]


def test_text_is_title_blank_description_stripped(tmp_path):
    write_rows(tmp_path / "train.csv", [(1, 'A "quoted" title', "and, more"), (4, "", " all in one ")])
    rows = read_rows([tmp_path / "train.csv"])
    assert list(rows["text"]) == ['A "quoted" title and, more', "all in one"]
    assert list(rows["label"]) == [0, 3]


def test_validation_rows_are_stratified_disjoint_and_do_not_depend_on_the_seed_of_the_run(tmp_path):
    write_rows(tmp_path / "train.csv", make_rows(400))
    config = get_profile("mini", dataset=str(tmp_path), validation_size=40)
    first, second = load_ag_news(config), load_ag_news(config.replace(seed=7))
    assert first.fingerprints() == second.fingerprints()
    assert [list(first.validation["label"]).count(i) for i in range(4)] == [10] * 4
    assert not set(first.validation["text"]) & set(first.train["text"])
    assert load_ag_news(config.replace(split_seed=7)).fingerprints() != first.fingerprints()


def test_stratified_rows_are_those_of_train_test_split():
    rows = load_split("bundled", "train")
    config = get_profile("mini", validation_size=41, split_seed=3)
    found = [list(part["text"]) for part in _carve_validation(rows, config)]
    stock = rows.train_test_split(test_size=41, seed=3, stratify_by_column="label")
    assert found == [list(stock["train"]["text"]), list(stock["test"]["text"])]


def test_the_hubs_parquet_files_in_a_folder_hold_the_same_rows(tmp_path):
    write_rows(tmp_path / "train.csv", make_rows(8))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows = read_rows([tmp_path / "train.csv"])
    pd.DataFrame({"text": rows["text"], "label": rows["label"]}).to_parquet(
        tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"
    )
    assert fingerprint(load_split(str(tmp_path / "hub"), "train")) == fingerprint(rows)


def test_shuffled_labels_keep_texts_and_counts():
    plain, shuffled = (load_ag_news(get_profile("mini", shuffled_labels=flag)).train for flag in (False, True))
    assert list(plain["text"]) == list(shuffled["text"])
    assert list(plain["label"]) != list(shuffled["label"])
    assert sorted(plain["label"]) == sorted(shuffled["label"])


def test_missing_data_is_one_line_that_says_what_helps(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"found no train\.csv"):
        load_split(str(tmp_path), "train")
    monkeypatch.setenv("AG_NEWS_DIR", str(tmp_path / "missing"))
    with pytest.raises(InputError, match="AG_NEWS_DIR"):
        load_split("fancyzhx/ag_news", "train", "abc")
    monkeypatch.delenv("AG_NEWS_DIR")
    with pytest.raises(InputError, match="set AG_NEWS_DIR") as caught:
        load_split("fancyzhx/ag_news", "train", "eb185aade064a813bc0b7f42de02595523103ca4")
    assert "\n" not in str(caught.value)


def test_tokens_are_cut_but_never_padded_and_keep_their_special_tokens(tiny_base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = load_ag_news(get_profile("mini")).train.select(range(50))
    encoded = tokenize(rows, tokenizer, max_length=20)
    assert max(encoded["length"]) == 20 and min(encoded["length"]) >= 3
    assert all(ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id for ids in encoded["input_ids"])
    assert all(tokenizer.pad_token_id not in ids for ids in encoded["input_ids"])
    whole = tokenize(rows, tokenizer, max_length=128)
    assert max(whole["length"]) > 20 and len(set(whole["length"])) > 5


def test_ag_news_has_its_rows_and_the_original_split_its_640(ag_news_dir):
    assert len(load_split("fancyzhx/ag_news", "test", "x")) == 7600
    config = get_profile("original")
    splits = load_ag_news(config)
    assert len(splits.validation) == 640
    assert splits.train.features["label"].names == list(LABELS)
    from datasets import Dataset

    stock = Dataset.from_dict({"i": range(len(splits.train) + 640)}).train_test_split(test_size=640, seed=42)
    every = load_split("fancyzhx/ag_news", "train", "x")
    assert list(splits.validation["text"]) == list(every.select(stock["test"]["i"])["text"])
