"""What bounds the numbers: labels of AG News that contradict each other, and confidence that promises too much.

`rebuild` records both. The temperature is fitted on validation rows; test rows are only counted.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import binomtest, bootstrap
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from ..checkpoints import list_checkpoints
from ..config import AG_NEWS, AG_NEWS_REVISION, get_profile
from ..data import load_ag_news, load_split
from ..evaluation import calibration
from ..files.places import CHECKPOINTS
from ..inference import Classifier


def count_contradictions(near: float = 0.9) -> dict:
    """Of AG News' test rows those with a near-duplicate among the training rows (`near` or more, cosine of TF-IDF over
    words), and how many of these bear another label than it: counts, share, and its 95 % interval (Wilson)."""
    train, test = (load_split(AG_NEWS, split, AG_NEWS_REVISION) for split in ("train", "test"))
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute")
    nearest.fit(vectorizer.fit_transform(train["text"][:]))
    distance, index = (column[:, 0] for column in nearest.kneighbors(vectorizer.transform(test["text"][:])))
    close = distance <= 1 - near
    other = np.array(train["label"][:])[index] != np.array(test["label"][:])
    counts = {"near_duplicates": int(close.sum()), "contradictions": int((close & other).sum())}
    found = binomtest(counts["contradictions"], counts["near_duplicates"])
    interval = found.proportion_ci(method="wilson")
    return {"cosine": near, **counts, "share": found.statistic, "interval": [float(interval.low), float(interval.high)]}


def fit_temperature(profile: str = "mini-agnews", resamples: int = 1000) -> dict:
    """The one temperature that logits are divided by (Guo et al., ICML 2017, section 4.2), by the loss on a run's validation
    rows; its expected calibration error on test rows `before` and `after`, and the `difference`, each with its 95 % interval
    (bootstrap over rows, percentiles; the two are drawn together, so the difference is paired)."""
    config, parts = get_profile(profile), {}
    classifier = Classifier.from_checkpoint(list_checkpoints(CHECKPOINTS / profile)[-1])
    test = load_split(config.dataset, "test", config.dataset_revision)
    for part, rows in (("validation", load_ag_news(config).validation), ("test", test)):
        # Logarithms of the probabilities are the logits but for a number a row, which softmax takes out again.
        logits = np.log(classifier.predict_probabilities(rows["text"][:]).astype(np.float64).clip(min=1e-30))
        parts[part] = logits, np.array(rows["label"][:])

    def loss(temperature: float) -> float:
        logits, labels = parts["validation"]
        return -np.log(softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels]).mean()

    temperature = float(minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x)
    logits, labels = parts["test"]
    probabilities = [softmax(logits / t, axis=1) for t in (1.0, temperature)]

    def errors(rows: np.ndarray) -> np.ndarray:
        before, after = (calibration(each[rows], labels[rows])["ece"] for each in probabilities)
        return np.array([before, after, before - after])

    rows = np.arange(len(labels))
    drawn = bootstrap((rows,), errors, n_resamples=resamples, vectorized=False, method="percentile", rng=0)
    found = zip(("before", "after", "difference"), errors(rows), *drawn.confidence_interval, strict=True)
    named = {name: {"ece": float(ece), "interval": [float(low), float(high)]} for name, ece, low, high in found}
    return {"profile": profile, "temperature": temperature} | named
