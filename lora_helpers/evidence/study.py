"""Questions that trainings answer: arms of a study, the same seeds in each, and how they compare.

Every run has its folder in checkpoints/runs/, goes on there if it was stopped, and is not trained again once it is
finished; so each row says which code trained it. `rebuild` records each study as a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..checkpoints import list_checkpoints
from ..config import RunConfig, get_profile
from ..data import load_split
from ..environment import code_mark, environment
from ..files.places import CHECKPOINTS, RUNS
from ..inference import Classifier, evaluate_classifier
from ..records import RunRecord, count_labelled, read_evidence, read_record, validation_rows, write_record
from ..training.run import train

SEEDS, MORE_SEEDS = (42, 43, 44), (42, 43, 44, 45, 46)
RATES = (5e-4, 1e-3, 2e-3)  # learning rate at its peak

# Each arm changes fields of the profile; the first, to which the others are compared, none.
ABLATIONS = {  # no speed bought with accuracy: with and without what makes a step fast
    "ours": {},  # rows of like length share a batch; no dropout in the frozen base
    "random-order": {"batch_order": "random"},
    "base-dropout": {"base_dropout": 0.1},
}
PLACES = {  # as many trained numbers in each
    "on query": {},
    "on value": {"lora_targets": ("value",)},
    "on key": {"lora_targets": ("key",)},
    "on query and value at rank 1": {"lora_targets": ("query", "value"), "lora_rank": 1, "lora_alpha": 2.0},
}
RANKS = {"rank 2": {}} | {f"rank {r}": {"lora_rank": r, "lora_alpha": 2.0 * r} for r in (1, 8, 64)}  # alpha / r stays
OF_THE_COURSE = "learning_rate", "warmup_steps", "base_dropout", "batch_order", "max_length", "mixed_precision"
AT_FULL_SIZE = {  # of `mpnet-base`
    "ours": {},
    "recipe of the course": {name: getattr(get_profile("original"), name) for name in OF_THE_COURSE},
    "batches of 32": {"batch_size": 32},
    "learning rate 4e-3": {"learning_rate": 4e-3},
}
BATCH_SIZES = {"batches of 32": {}, "batches of 16": {"batch_size": 16}}  # whose steps see half of the rows
BASES = {"pretrained": {}, "random": {"random_base": True}}  # what rests on the pretraining
LEARNING_RATES = {"2e-3": {}} | {text: {"learning_rate": float(text)} for text in ("5e-4", "1e-3", "4e-3")}


def at_its_end(config: RunConfig) -> dict[str, int]:
    """Fields of a run that is evaluated and saved at its end, which is all that a study compares."""
    return dict.fromkeys(("eval_steps", "save_steps"), config.max_steps)


def run_study(
    arms: dict[str, dict], *, profile: str = "mini-agnews", seeds: Sequence[int] = MORE_SEEDS, tested: bool = False
) -> dict:
    """Validation accuracy of every arm and seed, and how each arm compares with the first; see `compare_arms`. If `tested`,
    also the runs of every arm with their scores on the test split."""
    runs, ends = {}, at_its_end(get_profile(profile))
    for arm, fields in arms.items():
        if tested:
            runs[arm] = run_seeds(profile, seeds, **ends, **fields)
        else:
            runs[arm] = [train_once(get_profile(profile, seed=seed, **ends, **fields)) for seed in seeds]
    found = compare_arms({arm: [row["validation_accuracy"] for row in rows] for arm, rows in runs.items()})
    if tested:
        found = {arm: found[arm] | {"runs": rows} for arm, rows in runs.items()}
        for row in (row for rows in runs.values() for row in rows[1:]):
            del row["test_predictions"]  # row by row, the first seed alone is compared
    code = sorted({row["code"] for rows in runs.values() for row in rows})
    return {"profile": profile, "seeds": list(seeds), "variants": found, "code": code}


def compare_arms(accuracies: dict[str, Sequence[float]], called: str = "validation_accuracy") -> dict[str, dict]:
    """Mean, standard deviation (n - 1) and the mean difference (first arm minus this one, seed by seed) with its 95 %
    interval: Student's t on the paired differences; of one seed the mean alone. `accuracies`: one value a seed, in the
    same order in each arm, of which only the first may have more.
    """
    from scipy.stats import ttest_1samp

    compared, reference = {}, next(iter(accuracies))
    for arm, values in accuracies.items():
        compared[arm] = {called: list(values)} | _mean_and_std(values)
        if arm != reference and len(values) > 1:
            differences = np.subtract(accuracies[reference][: len(values)], values)
            low, high = ttest_1samp(differences, 0).confidence_interval()
            compared[arm] |= {"difference": float(differences.mean()), "interval": [float(low), float(high)]}
    return compared


def compare_arithmetic() -> dict:
    """`mini-agnews` in float32 on a CPU and in bfloat16 on a GPU, by the same seeds: the first arms of two studies."""
    evidence, arms = read_evidence(), {"float32": ("ablations", "ours"), "bfloat16": ("places", "on query")}
    accuracies = {name: evidence[part]["variants"][arm]["validation_accuracy"] for name, (part, arm) in arms.items()}
    devices = {name: evidence[part]["environment"]["device"] for name, (part, _) in arms.items()}
    return {"variants": compare_arms(accuracies), "devices": devices}


def repeat_seeds(profile: str, seeds: Sequence[int] = SEEDS, **fields) -> dict:
    """The profile with several seeds: test and validation accuracy, mean and standard deviation (n - 1), curves."""
    rows = run_seeds(profile, seeds, **fields)
    means = {each: _mean_and_std([row[f"{each}_accuracy"] for row in rows]) for each in ("test", "validation")}
    return {"runs": rows} | {f"{each}_{name}": value for each in means for name, value in means[each].items()}


def run_seeds(profile: str, seeds: Sequence[int], **fields) -> list[dict]:
    """What came of the profile with each seed, and its scores on the test split; the committed run is not made again."""
    rows, committed = [], CHECKPOINTS / profile
    for seed in seeds:
        config = get_profile(profile, seed=seed, **fields)
        here = config == get_profile(profile) and committed.is_dir()
        record = read_record(committed) if here else train_and_test(config, run_folder(config))
        scores = {f"test_{key}": record["test"][key] for key in ("accuracy", "interval", "predictions")}
        facts = {"trained_parameters": record["parameters"]["trainable"], "labelled_rows": count_labelled(record)}
        rows.append(_describe(record) | scores | facts)
    return rows


def choose_rate(profile: str = "mpnet-base", steps: int = 300) -> dict:
    """Learning rate of a profile by short runs, a tenth of each its warm-up; the lowest validation loss is taken."""
    ends = dict.fromkeys(("max_steps", "eval_steps", "save_steps"), steps) | {"warmup_steps": steps // 10}
    rows = [{"learning_rate": rate} | train_once(get_profile(profile, learning_rate=rate, **ends)) for rate in RATES]
    best = min(rows, key=lambda row: row["validation_loss"])["learning_rate"]
    return {"profile": profile, "steps": steps, "learning_rate": best, "runs": rows}


def train_once(config: RunConfig) -> dict:
    """What came of a run in checkpoints/runs/: trained, gone on with, or finished before."""
    return _describe(train(config, run_folder(config), resume=True))


def train_and_test(config: RunConfig, folder: Path) -> RunRecord:
    """The record of a run in `folder`, trained, gone on with or finished before, with its scores on the test split."""
    record = train(config, folder, resume=True)
    if "test" not in record:
        record["test"] = score_on_test(config, folder)
        write_record(folder, record)
    return record


def load_committed(profile: str = "mini-agnews", **options) -> Classifier:
    """The last checkpoint of a committed run; `options` are those of `Classifier.from_checkpoint`."""
    return Classifier.from_checkpoint(list_checkpoints(CHECKPOINTS / profile)[-1], **options)


def resume_into(folder: Path, config: RunConfig, start: Path) -> None:
    """Continue the checkpoint `start` into `folder`, or, if that holds checkpoints of it already, their last one."""
    train(config, folder, **({"resume": True} if list_checkpoints(folder) else {"resume_from": start}))


def run_folder(config: RunConfig) -> Path:
    """The folder in checkpoints/runs/, named after profile and changed fields, so that studies share runs."""
    changed = config.portable().differences(get_profile(config.profile).to_dict())
    values = {name: "+".join(mine) if isinstance(mine, list) else mine for name, (mine, _) in changed.items()}
    parts = (f"{name}={str(value).rpartition('/')[2]}" for name, value in values.items())
    return RUNS / "-".join([config.profile, *parts])


def score_on_test(config: RunConfig, run_dir) -> dict:
    """Scores of a run's last checkpoint on the test split of its data, and which code computed them."""
    classifier = Classifier.from_checkpoint(list_checkpoints(run_dir)[-1], max_length=config.max_length)
    test = load_split(config.dataset, "test", config.dataset_revision)
    return evaluate_classifier(classifier, test) | {"code": code_mark(environment())}


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


def _mean_and_std(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values))} | ({"std": float(np.std(values, ddof=1))} if len(values) > 1 else {})
