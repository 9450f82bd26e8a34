"""Questions that trainings answer: arms of a study, the same seeds in each, and how they compare.

Every run has its folder in checkpoints/runs/, goes on there if it was stopped, and is not trained again once it is
finished; so each row says which code trained it. `rebuild` records each study as a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..checkpoints import list_checkpoints
from ..config import RunConfig, get_profile
from ..data import load_split
from ..environment import code_mark
from ..files.places import CHECKPOINTS, RUNS
from ..inference import Classifier, evaluate_classifier
from ..records import read_record, validation_rows
from ..training.run import train

SEEDS = (42, 43, 44)
RATES = ("5e-4", "1e-3", "2e-3")  # learning rate at its peak

# No speed bought with accuracy: with and without what makes a step fast. Each arm changes fields of the profile.
ABLATIONS = {
    "ours": {},  # rows of like length share a batch; no dropout in the frozen base
    "random-order": {"batch_order": "random"},
    "base-dropout": {"base_dropout": 0.1},
}
AT_THE_END = {"eval_steps": 2400, "save_steps": 2400}  # which is all that is compared


def run_study(
    name: str, profile: str, arms: dict[str, dict], *, seeds: Sequence[int] = range(42, 47), **shared
) -> dict:
    """Validation accuracy of every arm and seed, and how each arm compares with the first; see `compare_arms`."""
    runs = {}
    for arm, fields in arms.items():
        configs = [get_profile(profile, seed=seed, **shared, **fields) for seed in seeds]
        runs[arm] = [train_once(config, f"{name}-{arm}-{config.seed}") for config in configs]
    found = compare_arms({arm: [row["validation_accuracy"] for row in rows] for arm, rows in runs.items()})
    code = sorted({row["code"] for rows in runs.values() for row in rows})
    return {"profile": profile, "seeds": list(seeds), "variants": found, "code": code}


def compare_arms(accuracies: dict[str, Sequence[float]]) -> dict[str, dict]:
    """Mean, standard deviation (n - 1) and the mean difference (first arm minus this one, seed by seed) with its 95 %
    interval: Student's t on the paired differences. `accuracies`: one value a seed, the same seeds first in each arm.
    """
    from scipy.stats import t

    compared, reference = {}, next(iter(accuracies))
    for arm, values in accuracies.items():
        compared[arm] = {"validation_accuracy": list(values)} | _mean_and_std(values)
        if arm != reference and len(values) > 1:
            mean, std = _mean_and_std(np.subtract(accuracies[reference][: len(values)], values)).values()
            reach = float(t.ppf(0.975, len(values) - 1) * std / len(values) ** 0.5)
            compared[arm] |= {"difference": mean, "interval": [mean - reach, mean + reach]}
    return compared


def repeat_seeds(profile: str, **fields) -> dict:
    """The profile with three seeds: test and validation accuracy, mean and standard deviation (n - 1), curves."""
    rows = []
    for seed in SEEDS:
        config, name = get_profile(profile, seed=seed, **fields), "-".join([profile, *fields, str(seed)])
        if config == get_profile(profile) and (CHECKPOINTS / profile).is_dir():  # the committed run is this one
            record = read_record(CHECKPOINTS / profile)
            row, test = _describe(record), record["test"]
        else:
            row, test = train_once(config, name), score_on_test(config, RUNS / name)
        rows.append(row | {f"test_{key}": test[key] for key in ("accuracy", "interval", "predictions")})
    means = {each: _mean_and_std([row[f"{each}_accuracy"] for row in rows]) for each in ("test", "validation")}
    return {"runs": rows} | {f"{each}_{name}": value for each in means for name, value in means[each].items()}


def choose_rate(profile: str = "mpnet-base", steps: int = 300) -> dict:
    """Learning rate of a profile by short runs, a tenth of each its warm-up; the lowest validation loss is taken."""
    rows, warmup = [], steps // 10
    shared = dict.fromkeys(("max_steps", "eval_steps", "save_steps"), steps) | {"warmup_steps": warmup}
    for rate in RATES:
        config = get_profile(profile, learning_rate=float(rate), **shared)
        rows.append({"learning_rate": float(rate)} | train_once(config, f"{profile}-rate-{rate}-warmup-{warmup}"))
    best = min(rows, key=lambda row: row["validation_loss"])["learning_rate"]
    return {"profile": profile, "steps": steps, "learning_rate": best, "runs": rows}


def train_once(config: RunConfig, name: str) -> dict:
    """What came of the run in checkpoints/runs/NAME: trained, gone on with, or finished before."""
    return _describe(train(config, RUNS / name, resume=True))


def score_on_test(config: RunConfig, run_dir) -> dict:
    """Scores of a run's last checkpoint on the test split of its data."""
    classifier = Classifier.from_checkpoint(list_checkpoints(run_dir)[-1], max_length=config.max_length)
    return evaluate_classifier(classifier, load_split(config.dataset, "test", config.dataset_revision))


def _describe(record: dict) -> dict:
    evaluations = validation_rows(record)
    return {
        "seed": record["config"]["seed"],
        "validation_accuracy": evaluations[-1]["eval_accuracy"],
        "validation_loss": evaluations[-1]["eval_loss"],
        "curve": [[row["step"], row["eval_accuracy"]] for row in evaluations],
        "seconds": record["timing"]["seconds"],
        "code": code_mark(record["environment"]),
    }


def _mean_and_std(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}
