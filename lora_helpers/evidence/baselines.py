"""Linear models on TF-IDF: the bar that any transformer has to clear, chosen as carefully as ours.

Features, model and C are chosen on a profile's validation rows; the winner is fitted on all its training rows, and again
on the very rows that the profile's run saw. `rebuild` records both, with the prediction for every test row.
"""

import math
from functools import partial

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from ..batching import LengthGroupedSampler
from ..config import RunConfig, get_profile
from ..data import Splits, load_ag_news, load_split, tokenize
from ..evaluation import to_digits
from ..model import load_base

FEATURES = {
    "words and pairs of words": {"sublinear_tf": True, "ngram_range": (1, 2)},
    "2 to 5 characters": {"sublinear_tf": True, "analyzer": "char_wb", "ngram_range": (2, 5), "min_df": 2},
}
MODELS = {
    "linear SVM": partial(LinearSVC, random_state=0),
    "logistic regression": partial(LogisticRegression, max_iter=1000),
}
STRENGTHS = {"linear SVM": (0.1, 0.3, 1.0, 3.0), "logistic regression": (3.0, 10.0, 30.0)}  # C, inverse of the penalty


def measure_baselines(profiles: tuple[str, ...] = ("mini", "mini-agnews", "mpnet-base")) -> dict[str, dict]:
    """By profile: every choice that was tried, the one taken (`chosen`), and its scores on the test split.

    `all_rows`: fitted on all training rows; `rows_seen`: on those in the batches of the profile's own run.
    """
    found, linear = {}, {}
    for profile in profiles:
        config = get_profile(profile)
        splits, test = load_ag_news(config), load_split(config.dataset, "test", config.dataset_revision)
        data = splits.fingerprints()["train"]  # two profiles may share their data, and with them the choice
        linear[data] = linear.get(data) or fit_linear(splits, test)
        seen = splits.train.select(rows_seen(config, splits.train))
        labels = to_digits(test["label"][:])  # by row, for whoever compares predictions from the records alone
        found[profile] = linear[data] | {"labels": labels, "rows_seen": _score(linear[data]["chosen"], seen, test)}
    return found


def fit_linear(splits: Splits, test: Dataset) -> dict:
    """Every choice that was `tried`, the best of them on validation rows (`chosen`), and its test scores (`all_rows`)."""
    tried = _try_all(splits)
    best = max(tried, key=lambda row: row["validation_accuracy"])
    return {"tried": tried, "chosen": best, "all_rows": _score(best, splits.train, test)}


def rows_seen(config: RunConfig, train) -> np.ndarray:
    """Indices <int64> of the training rows in the batches of the run `config`, each once, in ascending order."""
    _, tokenizer, _ = load_base(config.base_model, config.base_revision)
    return np.unique(rows_in_batches(config, tokenize(train, tokenizer, config.max_length)["length"][:]))


def rows_in_batches(config: RunConfig, lengths: list[int]) -> np.ndarray:
    """Indices <int64>[n] of the training rows, of `lengths` tokens, as the batches of a run bring them; the last batch of an
    epoch may be short."""
    sampler = LengthGroupedSampler(lengths, config.batch_size, order=config.batch_order, seed=config.seed)
    epochs, rest = divmod(config.max_steps, math.ceil(len(lengths) / config.batch_size))
    seen = []
    for epoch in range(epochs + 1):
        sampler.set_epoch(epoch)
        seen += list(sampler) if epoch < epochs else list(sampler)[: rest * config.batch_size]
    return np.array(seen)


def _try_all(splits: Splits) -> list[dict]:
    """Validation accuracy of every kind of features, of model, and every C."""
    labels, rows = splits.validation["label"][:], []
    for features, options in FEATURES.items():
        vectorizer = TfidfVectorizer(**options).fit(splits.train["text"][:])
        train, validation = (vectorizer.transform(part["text"][:]) for part in (splits.train, splits.validation))
        for name, strengths in STRENGTHS.items():
            for strength in strengths:
                model = MODELS[name](C=strength).fit(train, splits.train["label"][:])
                accuracy = float(model.score(validation, labels))
                rows.append({"features": features, "model": name, "C": strength, "validation_accuracy": accuracy})
    return rows


def _score(choice: dict, rows, test) -> dict:
    model = make_pipeline(TfidfVectorizer(**FEATURES[choice["features"]]), MODELS[choice["model"]](C=choice["C"]))
    predictions = model.fit(rows["text"][:], rows["label"][:]).predict(test["text"][:])
    accuracy = float((predictions == np.array(test["label"][:])).mean())
    return {"train_rows": len(rows), "predictions": to_digits(predictions), "accuracy": accuracy}
