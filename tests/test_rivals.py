"""The rivals of LoRA see what LoRA sees: the same head, rows and batches; and their records hold what README compares."""

import json

import numpy as np
import pytest

from lora_helpers.bases import load_base
from lora_helpers.checkpoints import list_checkpoints
from lora_helpers.config import get_profile
from lora_helpers.data import load_split, tokenize
from lora_helpers.evaluation import from_digits
from lora_helpers.evidence import baselines, rivals, study
from lora_helpers.inference import Classifier
from lora_helpers.training.run import train

SHORT = {"max_steps": 8, "eval_steps": 8, "save_steps": 8, "warmup_steps": 2}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        runs, both = tmp_path_factory.mktemp("runs"), dict.fromkeys(rivals.RIVALS, (42, 43))
        for module in (rivals, study):
            patch.setattr(module, "RUNS", runs)
        patch.setattr(rivals, "RATES", {"head alone": (1e-3,), "full fine-tuning": (1e-4, 1e-3)})
        first = rivals.measure_rivals("mini", both, **SHORT)
        patch.setattr(rivals, "Trainer", None)  # a second time everything is read
        patch.setattr("lora_helpers.training.trainer.make_trainer", None)
        with pytest.MonkeyPatch.context() as no_encoder:
            no_encoder.setattr(rivals, "AutoModel", None)
            assert rivals.measure_rivals("mini", both, **SHORT) == first
        alone = rivals.measure_rivals("mini", {"head alone": (42,)}, **SHORT)  # one seed has no spread, not a NaN
        for arm, found in json.loads(json.dumps(alone, allow_nan=False))["arms"].items():
            assert found["runs"] == first["arms"][arm]["runs"][:1] and "difference" not in found
    return first


@pytest.mark.slow
def test_the_head_on_kept_vectors_ends_as_the_trainers_with_adapters_held_at_nothing(measured, tmp_path):
    train(get_profile("mini", lora_alpha=1e-9, **SHORT), tmp_path / "run")
    by_trainer = Classifier.from_checkpoint(list_checkpoints(tmp_path / "run")[-1], max_length=128)
    expected = by_trainer.predict_probabilities(load_split("bundled", "test")["text"][:]).argmax(axis=1)
    row = measured["arms"]["head alone"]["runs"][0]
    assert (from_digits(row["test_predictions"]) == expected).all()


@pytest.mark.slow
def test_few_labels_are_drawn_by_class_and_the_linear_model_sees_the_same(tmp_path, monkeypatch):
    for module in (rivals, study):
        monkeypatch.setattr(module, "RUNS", tmp_path)
        monkeypatch.setattr(module, "get_profile", lambda name, **changes: get_profile(name, **SHORT | changes))
    monkeypatch.setattr(rivals, "SEEDS", (42, 43))
    monkeypatch.setattr(baselines, "STRENGTHS", {"linear SVM": (1.0,), "logistic regression": (3.0,)})
    found = rivals.count_labels("mini", (40, 400))
    drawn = [load_split(str(tmp_path / f"mini-40-rows-{seed}"), "train") for seed in (42, 43)]
    assert [[rows["label"][:].count(label) for label in range(4)] for rows in drawn] == [[10] * 4] * 2
    assert len({*drawn[0]["text"][:], *drawn[1]["text"][:]}) > 60
    (few, few_linear), (many, many_linear) = ([arm["runs"] for arm in size["arms"].values()] for size in found["sizes"])
    assert [run["labelled_rows"] for run in few + few_linear] == [40] * 4
    assert many_linear[0]["test_accuracy"] > few_linear[0]["test_accuracy"]
    for run in few + few_linear + many + many_linear:
        right = from_digits(run["test_predictions"]) == from_digits(found["labels"])
        assert run["test_accuracy"] == np.mean(right)
    monkeypatch.setattr("lora_helpers.training.trainer.make_trainer", None)  # trained and scored once
    monkeypatch.setattr(study, "Classifier", None)
    assert rivals.count_labels("mini", (40, 400)) == found


def test_vectors_by_counts_are_fitted_on_training_rows_alone():
    texts = {
        "train": ["oil prices rise", "stocks and oil fall", "a cup final", "cup of oil"],
        "test": ["oil", "unheard"],
    }
    found = rivals.embed_by_counts(texts, width=2)
    assert {part: each.shape for part, each in found.items()} == {"train": (4, 2), "test": (2, 2)}
    assert np.abs(found["test"][0]).max() > 0 and not found["test"][1].any()


@pytest.mark.parametrize(("label", "strength"), [(0, 1e-4), (1, 100.0)])
def test_a_probe_is_chosen_on_validation_rows_and_fitted_on_those_seen(label, strength, monkeypatch):
    """Held back it gives all rows the label that is common, left free it heeds the vector; test rows want the other."""
    monkeypatch.setattr(rivals, "STRENGTHS", (1e-4, 100.0))
    vectors = {"train": [[0], [0], [0], [1], [1], [1]], "validation": [[1]], "test": [[1]]}
    vectors = {part: {"<s>": np.array(each)} for part, each in vectors.items()}
    labels = {"train": [0, 0, 0, 1, 0, 0], "validation": [label], "test": [1 - label]}
    found = rivals.probe(vectors, labels, seen=np.arange(4))
    assert found == [{"vectors": "<s>", "C": strength, "validation_accuracy": 1.0, "test_accuracy": 0.0}]


@pytest.mark.slow
def test_lora_is_the_run_that_train_makes(measured, tmp_path):
    record = train(get_profile("mini", **SHORT), tmp_path / "run")
    row = measured["arms"]["LoRA"]["runs"][0]
    assert row["validation_accuracy"] == record["log"][-1]["eval_accuracy"]
    assert row["trained_parameters"] == record["parameters"]["trainable"] == 70_916


@pytest.mark.slow
def test_everything_is_trained_in_full_at_the_rate_that_validation_rows_prefer(measured):
    tried, runs = measured["tried"]["full fine-tuning"], measured["arms"]["full fine-tuning"]["runs"]
    best = max(tried, key=lambda row: row["validation_accuracy"])
    assert {row["learning_rate"] for row in runs} == {best["learning_rate"]} and len(tried) == 2
    assert [row["trained_parameters"] for row in runs] == [7_454_212] * 2
    labels = from_digits(measured["labels"]["test"])
    for row in runs:
        assert row["test_accuracy"] == np.mean(from_digits(row["test_predictions"]) == labels)


@pytest.mark.slow
def test_frozen_vectors_of_a_text_do_not_depend_on_its_batch(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "RUNS", tmp_path)
    config, rows = get_profile("mini"), load_split("bundled", "validation")
    _, tokenizer, _ = load_base(config.base_model, config.base_revision)
    ids = tokenize(rows, tokenizer, config.max_length)["input_ids"][:]
    together, alone = rivals.encode(config, ids), rivals.encode(config, ids[7:8])
    for kind in ("<s>", "mean"):
        assert np.allclose(together[kind][7], alone[kind][0], atol=1e-5) and len(together[kind]) == len(ids)
        assert not np.allclose(together[kind][6], alone[kind][0], atol=1e-2)
    monkeypatch.setattr(rivals, "AutoModel", None)  # the second time they are read
    assert (rivals.encode(config, ids)["mean"] == together["mean"]).all()
    assert [row["vectors"] for row in measured["probes"]] == ["<s>", "mean", "LSA"]
