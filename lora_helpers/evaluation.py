"""How good predictions are: accuracy with its interval, macro F1, per-class scores, confusion, calibration.

`metric()` serves the Trainer and `evaluate_classifier` alike: every accuracy is computed by the same lines.
"""

import numpy as np

from .config import LABELS

BINS = 15  # of the reliability diagram; Guo et al. (ICML 2017), section 2


def metric():
    """An `evaluate.Metric` of our own: `evaluate.load("accuracy")` would fetch a script from the Hub. A new one each time,
    since it holds its rows, and two threads would mix theirs.

    `compute(predictions=…, references=…)`, both <int64>[n], returns what `scores` returns.
    """
    import datasets
    import evaluate

    class ClassificationMetric(evaluate.Metric):
        def _info(self):
            columns = dict.fromkeys(("predictions", "references"), datasets.Value("int64"))
            return evaluate.MetricInfo(description=scores.__doc__, citation="", features=datasets.Features(columns))

        def _build_data_dir(self):
            return ""  # what is kept in memory needs no folder in a home that may be read-only

        def _compute(self, predictions, references):
            return scores(np.asarray(predictions), np.asarray(references))

    return ClassificationMetric(keep_in_memory=True)


def scores(predictions: np.ndarray, references: np.ndarray) -> dict:
    """Accuracy, its 95 % interval, macro F1, per-class scores and the confusion matrix (rows: true class)."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes = range(len(LABELS))
    hits = int((predictions == references).sum())
    each = precision_recall_fscore_support(references, predictions, labels=classes, zero_division=0.0)
    named = dict(zip(("precision", "recall", "f1", "support"), each, strict=True))
    return {
        "accuracy": hits / len(references),
        "interval": accuracy_interval(hits, len(references)),
        "macro_f1": float(named["f1"].mean()),
        "per_class": {
            label: {name: column[i].item() for name, column in named.items()} for i, label in enumerate(LABELS)
        },
        "confusion": confusion_matrix(references, predictions, labels=classes).tolist(),
        "examples": len(references),
    }


def accuracy_interval(hits: int, rows: int) -> list[float]:
    """Wilson's 95 % interval (JASA 1927), which holds for proportions near 1 and for few rows."""
    from scipy.stats import binomtest

    return list(map(float, binomtest(hits, rows).proportion_ci(method="wilson")))


def calibration(probabilities: np.ndarray, references: np.ndarray) -> dict:
    """Expected calibration error (Guo et al. 2017, eq. 3) of probabilities <float32>[n, 4], whose rows sum to 1, against
    classes <int64>[n]: `ece`, and `bins` with mean confidence, accuracy and count of each bin that holds rows."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == references
    index = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {"confidence": float(confidence[own].mean()), "accuracy": float(correct[own].mean()), "count": int(own.sum())}
        for own in (index == b for b in np.unique(index))
    ]
    error = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(references)
    return {"ece": float(error), "bins": bins}


def compare(first: np.ndarray, second: np.ndarray, references: np.ndarray) -> dict:
    """Two classifiers on the same rows, paired row by row; classes <int64>[n], as predicted by each and as they are.

    Returns:
        `difference` of accuracy (first minus second), its 95 % `interval` (Agresti and Min, Statistics in Medicine
        2005, section 2.3: half a row added to each of the four cells), `p` of McNemar's exact test, and `verdict`,
        the one standard for these words: "ahead" or "behind" where the interval excludes 0, else "not told apart".
    """
    from scipy.stats import binomtest, norm

    right, other = first == references, second == references
    wins, losses, n = int((right & ~other).sum()), int((other & ~right).sum()), len(references)
    mean = (wins - losses) / (n + 2)
    error = ((wins + losses + 1) / (n + 2) - mean**2) ** 0.5 / (n + 2) ** 0.5
    low, high = mean - norm.ppf(0.975) * error, mean + norm.ppf(0.975) * error
    return {
        "difference": (wins - losses) / n,
        "interval": [float(low), float(high)],
        "p": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
        "verdict": "ahead" if low > 0 else "behind" if high < 0 else "not told apart",
    }


def to_digits(classes: np.ndarray) -> str:
    """Predictions by row as a record stores them: a digit each. `from_digits` reads them."""
    return "".join(map(str, np.asarray(classes).tolist()))


def from_digits(digits: str) -> np.ndarray:
    """Classes <int64>[n] of what `to_digits` wrote."""
    return np.array(list(digits), dtype=np.int64)


def trainer_metrics(prediction) -> dict[str, float]:
    """What the Trainer logs at every evaluation; `prediction.predictions` are logits <float32>[n, 4]."""
    result = metric().compute(predictions=prediction.predictions.argmax(axis=-1), references=prediction.label_ids)
    return {name: result[name] for name in ("accuracy", "macro_f1")}
