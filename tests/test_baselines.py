"""The linear baselines: chosen on validation rows, fitted on the rows that a run saw."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from lora_helpers.config import get_profile
from lora_helpers.data import load_ag_news, load_split
from lora_helpers.evaluation import from_digits
from lora_helpers.evidence import baselines


def test_rows_seen_are_those_of_the_runs_own_batches(tiny_config):
    train = load_ag_news(tiny_config).train
    few = baselines.rows_seen(tiny_config.replace(max_steps=20, eval_steps=10, save_steps=10), train)
    assert len(few) == 20 * 16 and few.tolist() == sorted(set(few.tolist()))
    more = baselines.rows_seen(tiny_config.replace(max_steps=30, eval_steps=10, save_steps=10), train)
    assert set(few) < set(more)
    other = baselines.rows_seen(tiny_config.replace(max_steps=20, eval_steps=10, save_steps=10, seed=1), train)
    assert set(other) != set(few)
    assert len(baselines.rows_seen(tiny_config, train)) == len(train)  # 150 steps of 16 rows are three epochs


def test_a_short_batch_ends_an_epoch(tiny_config):
    config, lengths = tiny_config.replace(batch_size=16, max_steps=4), list(range(10, 50))
    rows = baselines.rows_in_batches(config, lengths)  # 16, 16 and 8 rows, and 16 of the next epoch
    assert len(rows) == 56 and sorted(rows[:40]) == list(range(40)) and len({*rows[40:]}) == 16


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "FEATURES", {"words and pairs of words": {"sublinear_tf": True}})
        patch.setattr(baselines, "STRENGTHS", {"linear SVM": (1e-4, 1.0), "logistic regression": (3.0,)})
        few = dict.fromkeys(("max_steps", "eval_steps", "save_steps"), 20)
        patch.setattr(baselines, "get_profile", lambda name: get_profile(name, **few))
        return baselines.measure_baselines(("mini",))["mini"]


def test_the_choice_is_the_best_on_validation_rows_and_every_try_is_recorded(found):
    assert [(row["model"], row["C"]) for row in found["tried"]] == [
        ("linear SVM", 1e-4), ("linear SVM", 1.0), ("logistic regression", 3.0),
    ]  # fmt: skip
    accuracies = [row["validation_accuracy"] for row in found["tried"]]
    assert found["chosen"]["validation_accuracy"] == max(accuracies) > min(accuracies)
    splits, model = load_ag_news(get_profile("mini")), LinearSVC(C=1e-4, random_state=0)
    by_hand = make_pipeline(TfidfVectorizer(sublinear_tf=True), model).fit(*columns(splits.train))
    assert accuracies[0] == by_hand.score(*columns(splits.validation))


def columns(rows):
    return rows["text"][:], rows["label"][:]


def test_predictions_by_row_give_the_recorded_accuracy(found):
    labels = np.array(load_split(get_profile("mini").dataset, "test")["label"][:])
    assert from_digits(found["labels"]).tolist() == labels.tolist()
    for part in ("all_rows", "rows_seen"):
        predictions = from_digits(found[part]["predictions"])
        assert (predictions == labels).mean() == pytest.approx(found[part]["accuracy"])
        assert found[part]["accuracy"] > 0.8 > (predictions == labels[::-1]).mean()
    assert (found["rows_seen"]["train_rows"], found["all_rows"]["train_rows"]) == (320, 840)  # 20 steps of 16 rows
