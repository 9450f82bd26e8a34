"""Questions that a few trainings answer: the arms of a study, the same seeds in each, and how they compare.

`rebuild` records every study of `STUDIES` as a part of its own. An arm is trained into a folder of its own under
checkpoints/runs/, goes on there if it was stopped, and is not trained again once it is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..checkpoints import list_checkpoints
from ..config import RunConfig, get_profile
from ..data import load_split
from ..environment import code_mark
from ..files.places import CHECKPOINTS, RUNS
from ..inference import Classifier, evaluate_classifier
from ..records import RunRecord, read_record, validation_rows
from ..training.run import train

THREE_SEEDS = (42, 43, 44)  # how far a score moves by itself
FIVE_SEEDS = (42, 43, 44, 45, 46)  # to compare
RATES = (("5e-4", 30), ("1e-3", 30), ("2.5e-4", 30), ("5e-4", 100))  # learning rate at its peak, warm-up steps


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms of one profile, each a change of its fields, over the same seeds; `reference` is the arm that all are held to."""

    profile: str
    arms: dict[str, dict]
    seeds: tuple[int, ...] = FIVE_SEEDS
    reference: str = "ours"
    shared: dict = field(default_factory=dict)  # fields of every arm


STUDIES = {
    # No speed bought with accuracy: with and without what makes a step fast.
    "ablations": Study(
        profile="mini-agnews",
        arms={
            "ours": {},  # rows of like length share a batch; no dropout in the frozen base
            "random-order": {"batch_order": "random"},
            "base-dropout": {"base_dropout": 0.1},
        },
        shared={"eval_steps": 2400, "save_steps": 2400},  # the end is all that is compared
    )
}


def run_study(study: Study, name: str) -> dict:
    """Validation accuracy of every arm and seed, and each arm's difference from the reference; see `compare_arms`."""
    accuracies, marks = {}, set()
    for arm, fields in study.arms.items():
        records = []
        for seed in study.seeds:
            config = get_profile(study.profile, seed=seed, **study.shared, **fields)
            records.append(train_arm(config, f"{name}-{arm}-{seed}"))
        accuracies[arm] = [final_accuracy(record) for record in records]
        marks |= {code_mark(record["environment"]) for record in records}
    found = compare_arms(accuracies, study.reference)
    return {"profile": study.profile, "seeds": list(study.seeds), "variants": found, "code": sorted(marks)}


def compare_arms(accuracies: dict[str, Sequence[float]], reference: str = "ours") -> dict[str, dict]:
    """Mean, standard deviation (n - 1) and, against the reference with the same seeds, the mean difference (reference
    minus arm) with its 95 % interval: Student's t on the paired differences.

    `accuracies`: one value a seed for each arm, in the order of the seeds.
    """
    from scipy.stats import t

    compared = {}
    for name, values in accuracies.items():
        compared[name] = {"validation_accuracy": list(values)} | _mean_and_std(values)
        if name != reference:
            differences = np.subtract(accuracies[reference], values)
            error = np.std(differences, ddof=1) / len(differences) ** 0.5
            reach = float(t.ppf(0.975, len(differences) - 1) * error)
            mean = float(differences.mean())
            compared[name] |= {"difference": mean, "interval": [mean - reach, mean + reach]}
    return compared


def repeat_seeds(profile: str, **fields) -> dict:
    """The profile with each of `THREE_SEEDS`: test and validation accuracy, mean and standard deviation (n - 1)."""
    rows = []
    for seed in THREE_SEEDS:
        config = get_profile(profile, seed=seed, **fields)
        if config == get_profile(profile) and (CHECKPOINTS / profile).is_dir():  # the committed run is this one
            record = read_record(CHECKPOINTS / profile)
            test = record["test"]
        else:
            name = "-".join([profile, *fields, str(seed)])
            record, test = train_arm(config, name), score_on_test(config, RUNS / name)
        curve = [[row["step"], row["eval_accuracy"]] for row in validation_rows(record)]
        rows.append(_describe_run(record, test) | {"curve": curve})
    summaries = {split: _mean_and_std([row[f"{split}_accuracy"] for row in rows]) for split in ("test", "validation")}
    return {"runs": rows} | {f"{split}_{name}": v for split, each in summaries.items() for name, v in each.items()}


def run_control(name: str, **fields) -> dict:
    """`mini-agnews` with something taken from it; validation rows alone."""
    return _describe_run(train_arm(get_profile("mini-agnews", **fields), f"mini-agnews-{name}"))


def choose_rate(profile: str = "mpnet-base", steps: int = 300) -> dict:
    """Learning rate and warm-up of a profile by short runs; the lowest loss on its validation rows is taken."""
    rows = []
    for rate, warmup in RATES:
        fields = {"learning_rate": float(rate), "warmup_steps": warmup}
        ends = dict.fromkeys(("max_steps", "eval_steps", "save_steps"), steps)
        record = train_arm(get_profile(profile, **fields, **ends), f"{profile}-rate-{rate}-warmup-{warmup}")
        rows.append(fields | _describe_run(record) | {"validation_loss": validation_rows(record)[-1]["eval_loss"]})
    best = min(rows, key=lambda row: row["validation_loss"])
    return {"profile": profile, "steps": steps, "runs": rows} | {k: best[k] for k in ("learning_rate", "warmup_steps")}


def train_arm(config: RunConfig, name: str) -> RunRecord:
    """The record of a run in checkpoints/runs/NAME, trained, gone on with, or finished before."""
    return train(config, RUNS / name, resume=True)


def score_on_test(config: RunConfig, run_dir) -> dict:
    """Scores of a run's last checkpoint on the test split of its data."""
    classifier = Classifier.from_checkpoint(list_checkpoints(run_dir)[-1], max_length=config.max_length)
    return evaluate_classifier(classifier, load_split(config.dataset, "test", config.dataset_revision))


def final_accuracy(record: RunRecord) -> float:
    """Share of validation rows right after the last step."""
    return validation_rows(record)[-1]["eval_accuracy"]


def _describe_run(record: RunRecord, test: dict | None = None) -> dict:
    row = {
        "seed": record["config"]["seed"],
        "validation_accuracy": final_accuracy(record),
        "seconds": record["timing"]["seconds"],
        "code": code_mark(record["environment"]),  # a finished run may be older than the code that reports it
    }
    return row | ({f"test_{key}": test[key] for key in ("accuracy", "interval", "predictions")} if test else {})


def _mean_and_std(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}


CONTROLS = {
    # The adapters' factor alpha / r as good as 0: what the head does alone.
    "head-only": partial(run_control, "head-only", lora_alpha=1e-9),
    # A base of the same shape with random weights.
    "random-base": partial(run_control, "random-base", random_base=True),
}
