from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from lora_helpers.config import LABELS
from lora_helpers.evaluation import calibration, compare, from_digits, metric, scores, to_digits
from lora_helpers.files.places import CHECKPOINTS
from lora_helpers.inference import evaluate_classifier
from lora_helpers.records import read_evidence, read_record


def test_scores_by_hand():
    result = scores(np.array([0, 0, 1, 1, 2, 3, 3]), np.array([0, 0, 1, 2, 2, 3, 0]))
    assert result["accuracy"] == pytest.approx(5 / 7)
    assert result["confusion"] == [[2, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert result["per_class"]["Sports"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert result["macro_f1"] == pytest.approx((0.8 + 3 * 2 / 3) / 4)  # by rows it would be 0.724


def test_a_class_that_is_never_predicted_and_one_that_does_not_occur_score_nothing():
    result = scores(np.array([0, 0, 1]), np.array([0, 2, 1]))  # Business never predicted, Sci/Tech in neither
    nothing = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert result["per_class"]["Business"] == nothing | {"support": 1}
    assert result["per_class"]["Sci/Tech"] == nothing | {"support": 0}
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1) / 4)


def test_a_classifier_s_predictions_are_scored_against_the_labels_and_not_the_other_way_round():
    def predict_probabilities(texts):
        return np.tile(np.array([0, 1, 0, 0], np.float32), (len(texts), 1))

    rows = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [0, 0, 1, 2]})
    found = evaluate_classifier(SimpleNamespace(predict_probabilities=predict_probabilities), rows)
    assert found["confusion"] == [[0, 2, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert (found["per_class"]["Sports"]["precision"], found["per_class"]["Sports"]["recall"]) == (0.25, 1.0)
    assert found["predictions"] == "1111" and found["calibration"]["ece"] == pytest.approx(0.75)


@pytest.mark.parametrize("profile", ["mini", "mini-agnews", "mpnet-base"])
def test_the_committed_predictions_score_what_is_recorded(profile):
    wanted, labels = read_record(CHECKPOINTS / profile)["test"], read_evidence()["baselines"][profile]["labels"]
    found = scores(from_digits(wanted["predictions"]), from_digits(labels))
    assert [found[name] for name in ("examples", "confusion")] == [wanted[name] for name in ("examples", "confusion")]
    for name in ("accuracy", "interval", "macro_f1"):
        assert found[name] == pytest.approx(wanted[name]), name
    for label in LABELS:
        assert found["per_class"][label] == pytest.approx(wanted["per_class"][label]), label


def test_the_interval_is_wilsons():
    result = scores(np.repeat([0, 1], [90, 10]), np.zeros(100, dtype=int))
    assert result["interval"] == pytest.approx([0.8256, 0.9448], abs=1e-4)  # Newcombe (1998), the formula by hand


def test_the_metric_needs_no_network_and_agrees():
    computed = metric().compute(predictions=[0, 1, 2], references=[0, 1, 3])
    assert computed == scores(np.array([0, 1, 2]), np.array([0, 1, 3]))


def test_a_metric_needs_no_folder_and_threads_do_not_mix_their_rows(monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", "/dev/null/home")  # as read-only
    sizes = [*range(1, 9)] * 5

    def count(size):
        return metric().compute(predictions=[0] * size, references=[0] * size)["examples"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, sizes)) == sizes


def test_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0], [0.3, 0.5, 0.1, 0.1]], dtype=np.float32)
    found = calibration(probabilities, np.array([0, 1, 1]))
    assert found["ece"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.5)) / 3, abs=1e-6)
    assert found["bins"] == [
        {"confidence": 0.5, "accuracy": 1.0, "count": 1},
        {"confidence": pytest.approx(0.9), "accuracy": 0.5, "count": 2},
    ]
    near = np.array([[p, 1 - p, 0, 0] for p in (0.933, 0.934, 1.0)], dtype=np.float32)  # the last bin begins at 14/15
    assert [b["count"] for b in calibration(near, np.zeros(3, dtype=int))["bins"]] == [1, 2]
    sure = np.eye(4, dtype=np.float32)
    assert calibration(sure, np.arange(4))["ece"] == 0


def test_two_classifiers_are_compared_row_by_row():
    references = np.zeros(1000, dtype=int)
    first, second = (np.array([0] * 960 + [1] * 40), np.array([0] * 900 + [1] * 100))
    found = compare(first, second, references)
    assert found["difference"] == pytest.approx(0.06) and found["verdict"] == "ahead"
    assert found["p"] == pytest.approx(2 * 0.5**60)  # 60 rows against none
    # By hand: 60.5 and 0.5 of 1,002 rows, 60 / 1002 = 0.05988, its error sqrt((61 / 1002 - 0.05988**2) / 1002) = 0.00756.
    assert found["interval"] == pytest.approx([0.04506, 0.07470], abs=1e-5)
    assert compare(second, first, references)["verdict"] == "behind"
    # The same accuracies on rows that hardly overlap: the difference is as large, and far less sure.
    apart = compare(first, second[::-1], references)
    assert apart["difference"] == pytest.approx(0.06)
    assert np.diff(apart["interval"]) > 1.4 * np.diff(found["interval"])
    few = compare(np.array([0, 0, 1, 0]), np.array([0, 1, 1, 0]), np.zeros(4, dtype=int))
    assert few["verdict"] == "not told apart" and few["p"] == 1.0
    assert compare(first, first, references) | {"interval": 0} == {
        "difference": 0.0, "interval": 0, "p": 1.0, "verdict": "not told apart",
    }  # fmt: skip


def test_the_paired_interval_covers_what_it_should():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        first, second = (rng.random(500) > 0.10).astype(int), (rng.random(500) > 0.12).astype(int)
        low, high = compare(first, second, np.ones(500, dtype=int))["interval"]
        covered += low <= 0.02 <= high
    assert 0.92 < covered / 400 < 0.98


def test_predictions_are_a_digit_a_row():
    assert to_digits(np.array([0, 3, 1])) == "031"
    assert from_digits("031").tolist() == [0, 3, 1]
