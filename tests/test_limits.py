"""What bounds the numbers: contradictions are counted, and a temperature is found where there is one to find."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import bootstrap

from lora_helpers.data import _as_dataset
from lora_helpers.evidence import limits

TRAIN = {"oil prices rise as stocks fall": 2, "striker scores twice in the cup final": 1, "new moon of saturn found": 3}


def test_contradictions_are_near_duplicates_with_another_label(monkeypatch):
    tests = {
        "Oil prices rise, as stocks fall": 2,  # near, and agrees
        "Striker scores twice in the cup final!": 0,  # near, and does not
        "New moon of Saturn found.": 3,
        "rebels and government sign a ceasefire": 1,  # near nothing, whatever its label
    }
    splits = {name: _as_dataset(list(rows), list(rows.values())) for name, rows in (("train", TRAIN), ("test", tests))}
    monkeypatch.setattr(limits, "load_split", lambda _, split, __: splits[split])
    found = limits.count_contradictions(near=0.9)
    counts = ("train_rows", "test_rows", "near_duplicates", "contradictions")
    assert [found[name] for name in counts] == [3, 4, 3, 1]
    assert found["share"] == pytest.approx(1 / 3) and 0 < found["interval"][0] < 1 / 3 < found["interval"][1] < 1
    assert limits.count_contradictions(near=0.0)["near_duplicates"] == 4


class Promising:
    """Predicts each part with confidences that are so many times as sure, in logits, as the labels were drawn."""

    def __init__(self, **too_sure):
        self.too_sure, self.rng = too_sure, np.random.default_rng(0)
        self.drawn = {part: self.rng.normal(size=(4000, 4)) * 2 for part in too_sure}

    def rows(self, part):
        labels = [self.rng.choice(4, p=softmax(logits)) for logits in self.drawn[part]]
        return _as_dataset([part] * len(labels), labels)

    def predict_probabilities(self, texts):
        return softmax(self.drawn[texts[0]] * self.too_sure[texts[0]], axis=1).astype(np.float32)


def fit(monkeypatch, model):
    splits = type("Splits", (), {"validation": model.rows("validation")})
    monkeypatch.setattr(limits, "load_committed", lambda _: model)
    monkeypatch.setattr(limits, "load_ag_news", lambda _: splits)
    monkeypatch.setattr(limits, "load_split", lambda *_: model.rows("test"))
    monkeypatch.setattr(limits, "bootstrap", lambda *rows, **how: bootstrap(*rows, **how | {"n_resamples": 200}))
    return limits.fit_temperature("mini")


def test_the_temperature_is_fitted_on_validation_rows_alone(monkeypatch):
    found = fit(monkeypatch, Promising(validation=2.0, test=1.0))
    assert found["temperature"] == pytest.approx(2.0, rel=0.1) and found["difference"]["ece"] < -0.05


@pytest.mark.parametrize("too_sure", [0.3, 4.0])
def test_temperatures_are_sought_far_from_one(too_sure, monkeypatch):
    found = fit(monkeypatch, Promising(validation=too_sure, test=too_sure))
    assert found["temperature"] == pytest.approx(too_sure, rel=0.1)


@pytest.mark.parametrize("too_sure", [2.0, 1.0])
def test_the_temperature_undoes_what_is_too_sure(too_sure, monkeypatch):
    found = fit(monkeypatch, Promising(validation=too_sure, test=too_sure))
    assert found["temperature"] == pytest.approx(too_sure, rel=0.1)
    before, difference = found["before"], found["difference"]
    assert before["ece"] - difference["ece"] < 0.03 and (before["ece"] > 0.05) == (too_sure > 1)
    lows, highs = zip(*(each["ece_interval"] for each in (before, difference)), strict=True)
    assert [low > 0.005 for low in lows] == [too_sure > 1] * 2
    assert all(low < high < low + 0.04 for low, high in zip(lows, highs, strict=True))
