"""What bounds the numbers: labels of AG News that contradict each other, and confidence that promises too much.

`rebuild` records both. The temperature is fitted on validation rows; test rows are only counted and scored.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestNeighbors

from ..config import AG_NEWS, AG_NEWS_REVISION, LABELS, get_profile
from ..data import load_ag_news, load_split
from ..evaluation import accuracy_interval, calibration
from .study import load_committed


def count_contradictions(near: float = 0.9) -> dict:
    """Of AG News' test rows those with a near-duplicate among the training rows that are here (`near` or more, cosine of
    TF-IDF over words), and how many of these bear another label than it: counts, share, its 95 % interval (Wilson)."""
    train, test = (load_split(AG_NEWS, split, AG_NEWS_REVISION) for split in ("train", "test"))
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute")
    nearest.fit(vectorizer.fit_transform(train["text"][:]))
    distance, index = (column[:, 0] for column in nearest.kneighbors(vectorizer.transform(test["text"][:])))
    differs = (np.array(train["label"][:])[index] != np.array(test["label"][:]))[distance <= 1 - near]
    count, of = int(differs.sum()), len(differs)
    counts = {"train_rows": len(train), "test_rows": len(test), "near_duplicates": of, "contradictions": count}
    return {"cosine": near, **counts, "share": count / of, "interval": accuracy_interval(count, of)}


def fit_temperature(profile: str = "mini-agnews") -> dict:
    """The one temperature that logits are divided by (Guo et al., ICML 2017, section 4.2), by the loss on a run's validation
    rows; on test rows, the expected calibration error `before`, and the `difference` from that after it, paired by row,
    with 95 % intervals: it is no mean over rows, so a bootstrap of rows."""
    config, classifier, logits, labels = get_profile(profile), load_committed(profile), {}, {}
    test = load_split(config.dataset, "test", config.dataset_revision)
    for part, rows in (("validation", load_ag_news(config).validation), ("test", test)):
        # Log-probabilities are the logits up to a constant per row, which softmax cancels.
        logits[part] = np.log(classifier.predict_probabilities(rows["text"][:]).astype(np.float64).clip(min=1e-30))
        labels[part] = np.array(rows["label"][:])

    def loss(temperature: float) -> float:
        probabilities = softmax(logits["validation"] / temperature, axis=1)
        return log_loss(labels["validation"], probabilities, labels=range(len(LABELS)))

    temperature = float(minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x)

    def error(rows: np.ndarray, divisor: float = 1.0) -> float:
        return calibration(softmax(logits["test"][rows] / divisor, axis=1), labels["test"][rows])["ece"]

    before = _with_interval(error, len(test))
    difference = _with_interval(lambda rows: error(rows) - error(rows, temperature), len(test))
    return {"profile": profile, "temperature": temperature, "before": before, "difference": difference}


def _with_interval(error: Callable[[np.ndarray], float], count: int) -> dict:
    """A calibration error of all `count` rows, given by their numbers, and its 95 % interval over rows drawn anew. Chance
    alone makes it larger than it is; the basic bootstrap takes that off, so the interval may end below it."""
    rows, options = np.arange(count), {"vectorized": False, "n_resamples": 2000, "method": "basic", "rng": 0}
    low, high = bootstrap((rows,), error, **options).confidence_interval
    return {"ece": error(rows), "ece_interval": [float(low), float(high)]}
