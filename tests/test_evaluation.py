import numpy as np
import pytest

from lora_helpers.evaluation import calibration, metric, scores


def test_scores_by_hand():
    result = scores(np.array([0, 1, 1, 2, 3, 3]), np.array([0, 1, 2, 2, 3, 0]))
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["confusion"] == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert result["per_class"]["Sports"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert result["macro_f1"] == pytest.approx(2 / 3)


def test_the_interval_is_wilsons():
    result = scores(np.repeat([0, 1], [90, 10]), np.zeros(100, dtype=int))
    assert result["interval"] == pytest.approx([0.8256, 0.9448], abs=1e-4)  # Newcombe (1998), the formula by hand


def test_the_metric_needs_no_network_and_agrees():
    computed = metric().compute(predictions=[0, 1, 2], references=[0, 1, 3])
    assert computed == scores(np.array([0, 1, 2]), np.array([0, 1, 3]))


def test_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.9, 0.1, 0, 0], [0.3, 0.5, 0.1, 0.1]], dtype=np.float32)
    found = calibration(probabilities, np.array([0, 1, 1]))
    assert found["ece"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.5)) / 3, abs=1e-6)
    assert sum(b["count"] for b in found["bins"]) == 3
    sure = np.eye(4, dtype=np.float32)
    assert calibration(sure, np.arange(4))["ece"] == 0
