"""What holds for every input, tried on many: hypothesis draws them, the same ones each time.

Each property is a plain function of what is drawn; the tests at the end hand it a broken implementation and want it to fail.
"""

import csv
import json
import tempfile
from dataclasses import fields
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import record_count
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_helpers import inference
from lora_helpers.batching import LengthGroupedSampler, batches_by_tokens
from lora_helpers.config import RunConfig
from lora_helpers.data import read_rows, tokenize
from lora_helpers.errors import InputError
from lora_helpers.field_checks import BATCH_ORDERS, SCHEDULERS
from lora_helpers.files.documents import READERS, read_documents
from lora_helpers.pretraining.trainer import TokenBudgetBatches

pytestmark = pytest.mark.usefixtures("one_thread")


def tried(examples):
    """Settings of a property: reproducible, without a clock (the machine may be busy)."""
    fixed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=fixed)


CHEAP, MODEL = tried(150), tried(25)
WORDS = st.lists(st.sampled_from(["oil", "goal", "chip", "vote bank", "<mask>", "</s>", "🏀", "ة"]), max_size=60).map(
    " ".join
)
TEXT = st.one_of(WORDS, st.text(max_size=40))  # anything that UTF-8 holds
TEXTS = st.lists(TEXT, min_size=1, max_size=9)
LENGTHS = st.lists(st.integers(1, 300), max_size=400)


# Predictions


def require_same_predictions(classifier, texts, order, budget, window):
    """Probabilities within 1e-5 and logits (up to the constant that softmax drops) within 1e-4, whatever the company."""
    record_count("property examples run")
    alone = np.concatenate([classifier.predict_probabilities([text]) for text in texts])
    with mock.patch.object(inference, "BATCH_TOKENS", budget), mock.patch.object(inference, "WINDOW", window):
        together = classifier.predict_probabilities([texts[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5, rtol=0)
    logits = [np.log(rows) - np.log(rows).mean(axis=1, keepdims=True) for rows in (together, alone[order])]
    np.testing.assert_allclose(*logits, atol=1e-4, rtol=0)


@pytest.mark.slow
@MODEL
@given(data=st.data(), texts=TEXTS, budget=st.sampled_from([1, 40, 4096]), window=st.integers(1, 9))
def test_a_prediction_depends_on_its_text_alone(classifier, data, texts, budget, window):
    """Not on order, neighbours, size of the batch or of the window."""
    require_same_predictions(classifier, texts, data.draw(st.permutations(range(len(texts)))), budget, window)


def write_texts(path, texts):
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter="," if path.suffix == ".csv" else "\t").writerows(
                [["n", "text"], *enumerate(texts)]
            )
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
    else:
        path.write_bytes("".join(text + "\n" for text in texts).encode())


def texts_of(path):
    return [document.text for document in read_documents(path)]


def without_line_ends(suffix, texts):
    return (
        ["".join(text.split("\r")).replace("\n", "").lstrip("\ufeff") for text in texts] if suffix == ".txt" else texts
    )


def require_rows_in_order(classifier, suffix, texts):
    record_count("property examples run")
    texts = without_line_ends(suffix, texts)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(inference, "WINDOW", 3):
        source, target = Path(folder) / f"in{suffix}", Path(folder) / "out.csv"
        write_texts(source, texts)
        assert classifier.predict_file(source, target, probabilities=True, progress=False) == len(texts)
        found = pd.read_csv(target)
    wanted = classifier.predict_probabilities([text.strip() for text in texts])
    assert list(found["ID"]) == list(range(len(texts)))
    assert list(found["Label"]) == list(found.iloc[:, 3:].to_numpy().argmax(axis=1))
    np.testing.assert_allclose(found.iloc[:, 3:], wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", READERS)
@MODEL
@given(texts=TEXTS)
def test_a_file_of_predictions_has_the_rows_of_its_input_in_their_order(classifier, suffix, texts):
    require_rows_in_order(classifier, suffix, texts)


# Files


@pytest.mark.slow
@pytest.mark.parametrize("suffix", READERS)
@CHEAP
@given(texts=TEXTS)
def test_texts_written_are_the_texts_read(suffix, texts):
    record_count("property examples run")
    texts = without_line_ends(suffix, texts)
    with tempfile.TemporaryDirectory() as folder:
        write_texts(Path(folder) / f"in{suffix}", texts)
        assert texts_of(Path(folder) / f"in{suffix}") == [text.strip() for text in texts]


@pytest.mark.slow
@CHEAP
@given(rows=st.lists(st.tuples(st.integers(1, 4), TEXT, TEXT), min_size=1), quoting=st.sampled_from([0, 1, 2]))
def test_canonical_rows_written_are_the_rows_read(rows, quoting):
    record_count("property examples run")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, quoting=quoting).writerows(rows)
        found = read_rows([path])
        wanted = [f"{title} {description}".strip() for _, title, description in rows]
        assert list(found["text"]) == wanted == texts_of(path)
        assert list(found["label"]) == [label - 1 for label, _, _ in rows]


def require_texts_or_a_sentence(path, reader):
    """Nothing but strings, or an `InputError` of one line; any other error fails."""
    record_count("property examples run")
    try:
        assert all(isinstance(text, str) for text in reader(path))
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)


FRAGMENTS = st.lists(
    st.one_of(st.binary(max_size=8), st.sampled_from([b"text", b'"', b",", b"\n", b"\r", b'{"text": "a"}', b"1,a,b\n"]))
)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", READERS)
@CHEAP
@given(parts=FRAGMENTS)
def test_any_bytes_are_texts_or_a_sentence(suffix, parts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"in{suffix}"
        path.write_bytes(b"".join(parts))
        require_texts_or_a_sentence(path, texts_of)
        if suffix == ".csv":
            require_texts_or_a_sentence(path, lambda path: read_rows([path])["text"])


@pytest.mark.slow
@CHEAP
@given(changes=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_parquet_file_is_texts_or_a_sentence(changes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.parquet"
        write_texts(path, [f"text {i}" for i in range(50)])
        data = bytearray(path.read_bytes())
        for place, value in changes:
            data[place % len(data)] = value
        path.write_bytes(data)
        require_texts_or_a_sentence(path, texts_of)


# Configurations


def numbers(low, high, **options):
    return st.floats(low, high, allow_nan=False, **options)


NAME = st.text(min_size=1, max_size=20)
SHARE, POSITIVE = numbers(0, 1, exclude_max=True), numbers(0, None, exclude_min=True, allow_infinity=False)
COUNT, SEED = st.integers(1, 2**31 - 1), st.integers(0, 2**32 - 1)
VALID = {
    **dict.fromkeys(("profile", "base_model", "dataset", "report_to"), NAME),
    **dict.fromkeys(("base_revision", "dataset_revision"), st.text("0123456789abcdef", min_size=40, max_size=40)),
    **dict.fromkeys(
        ("validation_share", "base_dropout", "lora_dropout", "adam_beta1", "adam_beta2", "label_smoothing_factor"),
        SHARE,
    ),
    **dict.fromkeys(("lora_alpha", "learning_rate", "adam_epsilon", "max_grad_norm"), POSITIVE),
    **dict.fromkeys(("validation_size", "batch_size", "eval_batch_size", "max_steps", "warmup_steps"), COUNT),
    **{
        name: st.booleans()
        for name in ("random_base", "stratified", "shuffled_labels", "mixed_precision", "committed_rows")
    },
    **dict.fromkeys(("seed", "split_seed"), SEED),
    "weight_decay": st.one_of(st.integers(0, 9), numbers(0, None, allow_infinity=False)),
    "max_length": st.integers(3, 2**31 - 1),
    "lora_rank": st.integers(1, 4096),
    "lora_targets": st.lists(NAME, min_size=1, max_size=3).map(tuple),
    "batch_order": st.sampled_from(BATCH_ORDERS),
    "lr_scheduler_type": st.sampled_from(SCHEDULERS),
    "eval_steps": st.integers(1, 1000),
}


def require_json_keeps(config):
    record_count("property examples run")
    again = RunConfig(**json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert again == config and config.differences(again.to_dict()) == {}


@pytest.mark.slow
@CHEAP
@given(values=st.fixed_dictionaries(VALID), saves=st.integers(1, 1000))
def test_any_valid_configuration_survives_json(values, saves):
    assert set(values) | {"save_steps"} == {field.name for field in fields(RunConfig)}
    require_json_keeps(RunConfig(**values, save_steps=values["eval_steps"] * saves))


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.text()), st.just({}),
    st.integers(10**300, 10**400),
)  # fmt: skip


@pytest.mark.slow
@tried(400)
@given(name=st.sampled_from([field.name for field in fields(RunConfig)]), value=ANYTHING)
def test_any_value_of_a_field_is_a_configuration_or_a_sentence(name, value):
    try:
        config = RunConfig(**{name: value})
    except InputError as error:
        record_count("property examples run")
        assert "\n" not in str(error) and name in str(error)
    else:
        require_json_keeps(config)


# Tokens and batches


def require_whole_prefix(tokenizer, encode, texts, max_length):
    """Begin and end as they should, at most `max_length` tokens, and between them the first tokens of the whole."""
    record_count("property examples run")
    from datasets import Dataset, Features, Value

    rows = Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))
    found = encode(rows, tokenizer, max_length)
    for ids, length, whole in zip(found["input_ids"], found["length"], tokenizer(texts)["input_ids"], strict=True):
        assert len(ids) == length == min(len(whole), max_length)
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert ids[:-1] == whole[: len(ids) - 1]


@pytest.mark.slow
@tried(100)
@given(texts=TEXTS, max_length=st.integers(3, 64))
def test_truncation_keeps_the_special_tokens_and_the_length(classifier, texts, max_length):
    require_whole_prefix(classifier.tokenizer, tokenize, texts, max_length)


def require_every_row_once(batches, lengths):
    record_count("property examples run")
    assert sorted(int(i) for batch in batches for i in batch) == list(range(len(lengths)))


@CHEAP
@given(lengths=LENGTHS, budget=st.integers(1, 5000))
def test_batches_by_tokens_hold_every_row_once_within_the_budget(lengths, budget):
    batches = batches_by_tokens(lengths, budget)
    require_every_row_once(batches, lengths)
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)


@CHEAP
@given(lengths=LENGTHS.filter(len), budget=st.integers(1, 5000), seed=SEED, epoch=st.integers(0, 50))
def test_token_budget_batches_hold_every_row_once_in_every_epoch(lengths, budget, seed, epoch):
    sampler = TokenBudgetBatches(lengths, budget, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    require_every_row_once(batches, lengths)


@CHEAP
@given(
    lengths=LENGTHS.filter(len),
    batch_size=st.integers(1, 40),
    order=st.sampled_from(BATCH_ORDERS),
    seed=SEED,
    epoch=st.integers(0, 50),
)
def test_an_epoch_holds_every_row_once(lengths, batch_size, order, seed, epoch):
    sampler = LengthGroupedSampler(lengths, batch_size, order=order, seed=seed)
    sampler.set_epoch(epoch)
    require_every_row_once([list(sampler)], lengths)


# Each property can fail: what it wants to be broken is broken here.


def without_mask(rows, pad_token_id):
    return {"input_ids": inference_pad(rows, pad_token_id)["input_ids"]}


inference_pad = inference.pad
SOME = ["oil", "goal " * 9, "chip " * 20, "vote bank"]


def test_predictions_that_see_their_neighbours_padding_fail(classifier):
    assert np.ptp(classifier.predict_probabilities(SOME), axis=0).max() > 1e-3  # the texts do differ
    with mock.patch.object(inference, "pad", without_mask), pytest.raises(AssertionError):
        require_same_predictions(classifier, SOME, [0, 1, 2, 3], budget=4096, window=9)


def test_rows_in_another_order_or_too_few_fail(classifier):
    stock = inference.read_documents
    for wrong in (lambda path, **_: reversed(list(stock(path))), lambda path, **_: list(stock(path))[1:]):
        with mock.patch.object(inference, "read_documents", wrong), pytest.raises(AssertionError):
            require_rows_in_order(classifier, ".jsonl", SOME)


def test_a_reader_with_another_error_or_another_type_fails(tmp_path):
    def raises(path):
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "as it was")

    for wrong in (raises, lambda path: [None]):
        with pytest.raises((AssertionError, UnicodeDecodeError)):
            require_texts_or_a_sentence(tmp_path, wrong)


def test_a_field_that_json_changes_fails():
    with mock.patch.object(RunConfig, "to_dict", lambda self: {"lora_rank": 3}), pytest.raises(AssertionError):
        require_json_keeps(RunConfig())


def test_a_row_cut_without_its_end_fails(classifier):
    def cut(rows, tokenizer, max_length):
        ids = [row[:max_length] for row in tokenizer(list(rows["text"]))["input_ids"]]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    with pytest.raises(AssertionError):
        require_whole_prefix(classifier.tokenizer, cut, SOME, 8)


def test_a_row_twice_or_never_fails():
    for wrong in ([[0, 1], [1, 2]], [[0], [2]]):
        with pytest.raises(AssertionError):
            require_every_row_once(wrong, [5, 6, 7])
