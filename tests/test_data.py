import csv
import fnmatch
import shutil

import numpy as np
import pandas as pd
import pytest

from lora_helpers import data
from lora_helpers.config import AG_NEWS, AG_NEWS_REVISION, LABELS, get_profile
from lora_helpers.data import _carve_validation, fingerprint, load_ag_news, load_split, read_rows, tokenize
from lora_helpers.errors import InputError
from lora_helpers.files.places import CHECKPOINTS
from lora_helpers.records import read_record


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
    assert first.source == f"the folder {tmp_path.name}"  # where it lies is nobody's business


def test_the_bundled_rows_are_those_of_the_committed_run():
    assert load_ag_news(get_profile("mini")).fingerprints() == read_record(CHECKPOINTS / "mini")["data"]["sha256"]


@pytest.mark.parametrize("seed", range(8))
def test_the_validation_rows_are_those_of_train_test_split(seed):
    """Whole shares, ties between what is left over, shares of many sizes, and a class that does not occur."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 3], 400, p=rng.dirichlet([3] * 4)) if seed % 2 else np.arange(400 - seed) % 4
    labels = np.where(labels == 1, 2, labels) if seed == 7 else labels
    rows = data._as_dataset([f"text {i}" for i in range(len(labels))], labels.tolist())
    config = get_profile("mini", validation_size=41 + seed, split_seed=seed)
    for stratified, column in ((True, "label"), (False, None)):
        found = [list(part["text"]) for part in _carve_validation(rows, config.replace(stratified=stratified))]
        stock = rows.train_test_split(test_size=41 + seed, seed=seed, stratify_by_column=column)
        assert found == [list(stock["train"]["text"]), list(stock["test"]["text"])]


@pytest.mark.parametrize(("size", "labels"), [(3, [0, 1, 2, 3] * 20), (20, [0] * 79 + [1]), (76, [0, 1, 2, 3] * 20)])
def test_too_few_rows_for_every_class_are_refused(size, labels):
    config = get_profile("mini", validation_size=size, batch_size=1)
    rows = data._as_dataset(["text"] * 80, labels)
    if size == 76:
        assert len(_carve_validation(rows, config)[1]) == 76
    else:
        with pytest.raises(InputError, match=rf"validation_size is {size} of 80 rows: The "):
            _carve_validation(rows, config)


def test_more_than_a_batch_of_rows_is_left_for_training():
    rows = data._as_dataset(["text"] * 80, [0, 1, 2, 3] * 20)
    assert len(_carve_validation(rows, get_profile("mini", validation_size=63, batch_size=16))[0]) == 17
    wanted = "validation_size is 64 of 80 rows, wanted a smaller one, so that more than a batch of 16 remains"
    with pytest.raises(InputError, match=wanted):
        _carve_validation(rows, get_profile("mini", validation_size=64, batch_size=16))


def test_by_its_hash_a_text_is_on_one_side_whatever_other_rows_there_are():
    """So that of any copy of the data the base, which was pretrained on the training side, has read no validation row."""
    config = get_profile("mini", validation_share=0.08)
    rows = data._as_dataset([f"Item {i} of the news" for i in range(4000)], [0, 1, 2, 3] * 1000)
    train, validation = (part["text"][:] for part in _carve_validation(rows, config))
    assert not {*train} & {*validation} and len(train) + len(validation) == 4000
    assert len(validation) == 338  # another number would move rows between what the base read and validation
    fewer = rows.shuffle(seed=1).select(range(900))
    assert {*_carve_validation(fewer, config)[1]["text"]} == {*validation} & {*fewer["text"]}
    spelt = data._as_dataset([text.upper() + " .." for text in validation], [1] * len(validation))
    others = data._as_dataset([text + "!" for text in train[:50]], [0] * 50)
    both = data._as_dataset(spelt["text"][:] + others["text"][:], spelt["label"][:] + others["label"][:])
    assert _carve_validation(both, config)[1]["text"][:] == spelt["text"][:]
    wider = _carve_validation(rows, config.replace(validation_share=0.2))[1]["text"][:]
    assert {*validation} < {*wider}


def test_a_share_leaves_something_on_either_side():
    rows = data._as_dataset(["text"] * 80, [0, 1, 2, 3] * 20)
    with pytest.raises(
        InputError, match="validation_share is 0.08: 0 of 80 rows; some must validate, and more than 32"
    ):
        _carve_validation(rows, get_profile("mini-agnews"))
    rows, config = data._as_dataset([f"text {i}" for i in range(80)], [0] * 80), get_profile("mini-agnews")
    validates = len(_carve_validation(rows, config)[1])
    assert len(_carve_validation(rows, config.replace(batch_size=79 - validates))[0]) == 80 - validates
    with pytest.raises(
        InputError, match=f"{validates} of 80 rows; some must validate, and more than {80 - validates} "
    ):
        _carve_validation(rows, config.replace(batch_size=80 - validates))


SHARD = "{}-{:05}-of-{:05}.parquet"
WAYS = {  # the files of a folder -> those that make its test split, or what the refusal says
    ("test.csv",): ["test.csv"],
    ("test.parquet",): ["test.parquet"],
    ("data/test.csv",): ["data/test.csv"],
    (SHARD.format("test", 0, 1),): [SHARD.format("test", 0, 1)],
    tuple(f"data/{SHARD.format('test', i, 3)}" for i in (2, 0, 1)): [f"data/{SHARD.format('test', i, 3)}" for i in range(3)],
    ("test.csv", "test_backup.csv", "test (1).csv", "test.csv.bak", "test2.csv", "latest.csv"): ["test.csv"],
    ("test.parquet", "test_unlabelled.parquet", "test-old.parquet", "train.parquet"): ["test.parquet"],
    (SHARD.format("test", 0, 1), "test-00000-of-00001-0123456789abcdef.parquet"): [SHARD.format("test", 0, 1)],
    (SHARD.format("test", 0, 1), SHARD.format("train", 0, 2)): [SHARD.format("test", 0, 1)],
    ("test.csv", "test.parquet"): "test.csv, test.parquet: more than one way",
    ("test.parquet", SHARD.format("test", 0, 1), "test_backup.parquet"): "test.parquet, test-00000-of-00001.parquet: more",
    ("test.csv", "data/test.csv"): "test.csv, data/test.csv: more than one way",
    ("test.csv", f"data/{SHARD.format('test', 0, 1)}"): "data/test-00000-of-00001.parquet: more than one way",
    ("test.csv", SHARD.format("test", 1, 2)): "test.csv, test-00001-of-00002.parquet: more than one way",
    (SHARD.format("test", 0, 1), SHARD.format("test", 0, 2), SHARD.format("test", 1, 2)): "more than one way",
    (SHARD.format("test", 0, 1), f"data/{SHARD.format('test', 0, 1)}"): "more than one way to read it",
    (SHARD.format("test", 0, 3), SHARD.format("test", 2, 3)): "test-00002-of-00003.parquet: 2 of 3 files of a set",
    (SHARD.format("test", 5, 2),): "0 of 2 files of a set",
    ("test_unlabelled.parquet",): "found no test.csv.*, but test_unlabelled.parquet; put",
    ("test.csv.gz", "test.jsonl"): "found no test.csv.*, but test.csv.gz, test.jsonl; put",
    ("train.csv",): "found no test.csv.*0000N.parquet; put",
    ("test.csv", "test-00000-of-00001.parquet.part"): ["test.csv"],
}  # fmt: skip


@pytest.mark.parametrize("names", WAYS, ids=" ".join)
def test_the_files_that_make_a_split_are_named_and_no_other_is_read(tmp_path, names):
    (tmp_path / "data").mkdir()
    texts = {}
    for number, name in enumerate(names):
        texts[name] = f"title {number}"
        if name.endswith(".parquet"):
            pd.DataFrame({"text": [texts[name]], "label": [0]}).to_parquet(tmp_path / name)
        else:
            write_rows(tmp_path / name, [(1, texts[name], "")])
    if isinstance(WAYS[names], list):
        assert load_split(str(tmp_path), "test")["text"][:] == [texts[name] for name in WAYS[names]]
    else:
        with pytest.raises(InputError, match=WAYS[names]) as caught:
            load_split(str(tmp_path), "test")
        assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_the_same_files_and_no_other(tmp_path, monkeypatch):
    assert data.HUB_ROWS == {"train": 120_000, "test": 7_600}  # which `hub_client` sets to what is small
    asked = []

    def download(name, revision, patterns, *, kind, instead):
        asked.append((name, revision, patterns, kind))
        return tmp_path

    monkeypatch.setattr(data, "download", download)
    monkeypatch.delenv("AG_NEWS_DIR", raising=False)
    here = [(names, way) for names, way in WAYS.items() if isinstance(way, list)]
    for names, way in here:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            pd.DataFrame({"text": [name], "label": [0]}).to_parquet(tmp_path / name)
            if name.endswith(".csv"):
                write_rows(tmp_path / name, [(1, name, "")])
        assert load_split("someone/data", "test", "c0ffee")["text"][:] == way
        name, revision, patterns, kind = asked.pop()
        assert (name, revision, kind) == ("someone/data", "c0ffee", "dataset")
        assert sorted(name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)) == sorted(
            way
        )
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


@pytest.mark.parametrize("rows", [7, 9])
def test_another_number_of_rows_under_the_pinned_commit_is_refused(tmp_path, monkeypatch, rows):
    monkeypatch.delenv("AG_NEWS_DIR", raising=False)
    monkeypatch.setattr(data, "HUB_ROWS", {"test": 8})
    monkeypatch.setattr(data, "download", lambda *_, **__: tmp_path)
    write_rows(tmp_path / "test.csv", make_rows(rows))
    with pytest.raises(InputError, match=rf"{rows} rows with labels .*, wanted 8 .*; delete .* to download it again"):
        load_split(AG_NEWS, "test", AG_NEWS_REVISION)
    write_rows(tmp_path / "test.csv", make_rows(8))
    assert len(load_split(AG_NEWS, "test", AG_NEWS_REVISION)) == 8


def test_classes_of_the_hub_in_another_order_are_refused(tmp_path, monkeypatch):
    from datasets import ClassLabel, Dataset, Features, Value

    monkeypatch.delenv("AG_NEWS_DIR", raising=False)
    monkeypatch.setattr(data, "HUB_ROWS", {"test": 8})
    monkeypatch.setattr(data, "download", lambda *_, **__: tmp_path)
    rows = {"text": list("abcdefgh"), "label": [0, 1, 2, 3] * 2}
    for names in (LABELS, LABELS[::-1]):
        features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
        if names == LABELS:
            assert load_split(AG_NEWS, "test", AG_NEWS_REVISION)["label"][:] == rows["label"]
        else:
            with pytest.raises(InputError, match="to download it again"):
                load_split(AG_NEWS, "test", AG_NEWS_REVISION)


def test_letters_are_compared_case_aside_in_every_alphabet():
    assert data._letters("Straße 7, ΣΊΣΥΦΟΣ_") == data._letters("STRASSE 7: σίσυφος")


def test_a_data_set_of_the_hub_brings_its_validation_rows_as_a_folder_does(tmp_path, monkeypatch):
    for split in ("train", "validation"):
        write_rows(tmp_path / f"{split}.csv", [(label, split, str(i)) for i in range(40) for label in range(1, 5)])
    asked = []
    monkeypatch.setattr(data, "download", lambda name, revision, patterns, **_: asked.extend(patterns) or tmp_path)
    for dataset, revision in (("someone/data", "0a" * 20), (str(tmp_path), None)):
        splits = load_ag_news(get_profile("mini", dataset=dataset, dataset_revision=revision))
        assert {text.split()[0] for text in splits.train["text"]} == {"train"}
        assert {text.split()[0] for text in splits.validation["text"]} == {"validation"}
    assert {"train.csv", "validation.csv", "data/validation.parquet"} <= {*asked}


def test_the_hubs_parquet_files_in_a_folder_hold_the_same_rows(tmp_path):
    write_rows(tmp_path / "train.csv", make_rows(8))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows = read_rows([tmp_path / "train.csv"])
    pd.DataFrame({"text": rows["text"], "label": rows["label"]}).to_parquet(
        tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"
    )
    assert fingerprint(load_split(str(tmp_path / "hub"), "train")) == fingerprint(rows)


def test_the_committed_rows_are_found_among_others_in_their_own_order(tmp_path, monkeypatch, caplog):
    ours = make_rows(40)
    write_rows(tmp_path / "train.csv", ours)
    monkeypatch.setattr(data, "COMMITTED_ROWS", tmp_path / "rows.bin")
    expected = load_split(str(tmp_path), "train")
    data.COMMITTED_ROWS.write_bytes(b"".join(data.row_marks(expected)))

    def select(rows):
        write_rows(tmp_path / "train.csv", rows)
        splits = load_ag_news(get_profile("mini", dataset=str(tmp_path), validation_size=8, committed_rows=True))
        return splits.train["text"][:] + splits.validation["text"][:]

    first = select(ours)
    others = [(i % 4 + 1, f"title {i}", f"another {i}") for i in range(200)]
    assert select(ours[::-1] + others) == select(others + ours) == first and len(first) == 40
    spelt = [(label, title.upper(), f"{text} ._") for label, title, text in ours]
    assert [text.replace(" ._", "").casefold() for text in select(spelt)] == [text.casefold() for text in first]
    assert "rows of the committed runs are here" not in caplog.text
    swapped = [(label % 4 + 1, title, text) for label, title, text in ours[:8]] + ours[8:]
    assert len(select(swapped + others)) == 32 and "32 of 40 rows of the committed runs are here" in caplog.text
    with pytest.raises(InputError, match="committed_rows: none of those 40 rows is among these"):
        select(others)


@pytest.mark.slow
def test_the_listed_rows_are_those_of_the_committed_runs(ag_news_dir, tmp_path, monkeypatch):
    rows = load_split(str(ag_news_dir), "train").to_pandas()
    strangers = rows.assign(text="another " + rows["text"]).head(40_000)
    pd.concat([strangers, rows]).sample(frac=1, random_state=0).to_parquet(tmp_path / "train.parquet")
    monkeypatch.setenv("AG_NEWS_DIR", str(tmp_path))
    ours = load_ag_news(get_profile("mini-agnews", committed_rows=True))
    assert ours.fingerprints() == read_record(CHECKPOINTS / "mini-agnews")["data"]["sha256"]
    everything = load_ag_news(get_profile("mini-agnews"))
    assert len(everything.validation) > len(ours.validation)
    assert not {*everything.validation["text"]} & {*ours.train["text"]}


def test_shuffled_labels_keep_texts_and_counts_and_leave_validation_as_it_is():
    config = get_profile("mini", shuffled_labels=True)
    splits = [load_ag_news(each) for each in (config.replace(shuffled_labels=False), config, config.replace(seed=7))]
    assert len({fingerprint(each.validation) for each in splits}) == 1
    plain, shuffled, other = (each.train for each in splits)
    assert list(shuffled["label"]) != list(other["label"])
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


def test_tokens_are_cut_but_never_padded_and_keep_their_special_tokens(tiny_base, monkeypatch):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = load_ag_news(get_profile("mini")).train.select(range(50))
    encoded = tokenize(rows, tokenizer, max_length=20)
    assert max(encoded["length"]) == 20 and min(encoded["length"]) >= 3
    assert all(ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id for ids in encoded["input_ids"])
    assert all(tokenizer.pad_token_id not in ids for ids in encoded["input_ids"])
    whole = tokenize(rows, tokenizer, max_length=128)
    assert max(whole["length"]) > 20 and len(set(whole["length"])) > 5
    monkeypatch.setattr(data, "AT_ONCE", 3)
    assert tokenize(rows, tokenizer, max_length=128).to_dict() == whole.to_dict()


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "fields", [{"validation_size": 60}, {"split_seed": 7}, {"stratified": False}, {"validation_share": 0.5}]
)
def test_how_to_choose_validation_rows_is_refused_where_the_data_bring_them(fields):
    said = f"^{next(iter(fields))}: without effect, since bundled brings validation rows; leave it out$"
    with pytest.raises(InputError, match=said):
        load_ag_news(get_profile("mini", **fields))


def test_a_class_of_one_row_cannot_be_stratified_and_the_message_says_what_can(tmp_path):
    write_rows(tmp_path / "train.csv", [row for row in make_rows(120) if row[0] != 4] + [(4, "a single", "row")])
    config = get_profile("mini", dataset=str(tmp_path), validation_size=20)
    with pytest.raises(InputError, match="only 1 member.*; add rows of that class, or say stratified false$"):
        load_ag_news(config)
    assert len(load_ag_news(config.replace(stratified=False)).validation) == 20
