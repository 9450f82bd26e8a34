"""Questions that trainings answer: arms of a study, the same seeds in each, and how they compare.

Every run has its folder in checkpoints/runs/, goes on there if it was stopped, and is not trained again once it is
finished; so each row says which code trained it. `rebuild` records each study as a part.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from ..checkpoints import list_checkpoints
from ..config import RunConfig, get_profile
from ..data import load_split
from ..environment import code_mark, environment
from ..errors import InputError
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
LEARNING_RATES = {"2e-3": {}} | {text: {"learning_rate": float(text)} for text in ("5e-4", "1e-3", "4e-3", "8e-3")}
LOSSES = {  # of the bundled base's pretraining
    "all three": {},
    "without words": {"words_weight": 0.0},
    "without halves": {"contrast_weight": 0.0},
    "masked tokens alone": {"words_weight": 0.0, "contrast_weight": 0.0},
}


def at_its_end(config: RunConfig) -> dict[str, int]:
    """Fields of a run that is evaluated and saved at its end, which is all that a study compares."""
    return dict.fromkeys(("eval_steps", "save_steps"), config.max_steps)


def run_study(
    arms: dict[str, dict], *, profile: str = "mini-agnews", seeds: Sequence[int] = MORE_SEEDS, tested: bool = False
) -> dict:
    """Every arm with the same seeds, compared by `compare_runs`; if `tested`, each run with its scores on test rows."""
    ends = at_its_end(get_profile(profile))
    runs = {arm: run_seeds(profile, seeds, tested=tested, **ends, **fields) for arm, fields in arms.items()}
    return {"profile": profile, "variants": compare_runs(runs)}


def compare_runs(runs: dict[str, list[dict]], key: str = "validation_accuracy") -> dict[str, dict]:
    """By arm: its `runs`, one a seed, their values of `key`, and what `compare_arms` says of these."""
    values = {arm: [run[key] for run in its] for arm, its in runs.items()}
    return {arm: {key: values[arm], **found, "runs": runs[arm]} for arm, found in compare_arms(values).items()}


def compare_arms(accuracies: dict[str, Sequence[float]]) -> dict[str, dict]:
    """Mean, standard deviation (n - 1) and the mean difference (first arm minus this one, seed by seed) with its 95 %
    interval: Student's t on the paired differences; of one seed the mean alone. `accuracies`: one value a seed, in the
    same order in each arm, of which only the first may have more.
    """
    from scipy.stats import ttest_1samp

    compared, reference = {}, next(iter(accuracies))
    for arm, values in accuracies.items():
        compared[arm] = _mean_and_std(values)
        if arm != reference and len(values) > 1:
            differences = np.subtract(accuracies[reference][: len(values)], values)
            low, high = ttest_1samp(differences, 0).confidence_interval()
            compared[arm] |= {"difference": float(differences.mean()), "interval": [float(low), float(high)]}
    return compared


def compare_arithmetic(profile: str = "mini-agnews") -> dict:
    """The profile in float32 on this machine, beside the same seeds of `PLACES`, which a GPU trained in bfloat16."""
    there = read_evidence()["places"]["variants"]["on query"]["validation_accuracy"]
    here = run_seeds(profile, MORE_SEEDS, tested=False, **at_its_end(get_profile(profile)))
    if other := {run["arithmetic"] for run in here} - {"float32"}:
        raise InputError(f"arithmetic: the runs here are in {other.pop()}; wanted float32, so run it on a CPU")
    variants = compare_arms({"float32": [run["validation_accuracy"] for run in here], "bfloat16": there})
    return {"profile": profile, "variants": variants, "runs": here}


def repeat_seeds(profile: str, seeds: Sequence[int] = SEEDS, **fields) -> dict:
    """The profile with several seeds: its runs, and mean and standard deviation (n - 1) of their test accuracy."""
    rows = run_seeds(profile, seeds, **fields)
    found = _mean_and_std([row["test_accuracy"] for row in rows])
    return {"runs": rows} | {f"test_{name}": value for name, value in found.items()}


def run_seeds(profile: str, seeds: Sequence[int], *, tested: bool = True, **fields) -> list[dict]:
    """What came of the profile with each seed, if `tested` also on the test split; the committed run is not made again."""
    rows, committed, make = [], CHECKPOINTS / profile, train_and_test if tested else partial(train, resume=True)
    for seed in seeds:
        config = get_profile(profile, seed=seed, **fields)
        here = config == get_profile(profile) and committed.is_dir()
        rows.append(_describe(read_record(committed) if here else make(config, run_folder(config)), tested))
    return rows


def compare_losses(profile: str = "mini-agnews", steps: int = 4000) -> dict:
    """What the losses of the pretraining are worth: the profile on bases that were pretrained with all or fewer of them, for
    fewer steps than the bundled one; base and run share their seed. `masked_loss`: each base's, in nats, on validation text."""
    from ..pretraining.run import PretrainingConfig, pretrain

    runs, masked, ends = defaultdict(list), defaultdict(list), at_its_end(get_profile(profile))
    for (arm, changes), seed in product(LOSSES.items(), SEEDS):
        folder = RUNS / f"base-{steps}-steps-{arm.replace(' ', '-')}-{seed}"
        record = pretrain(PretrainingConfig(max_steps=steps, seed=seed, **changes), folder, resume=True)
        masked[arm].append(record["log"][-1]["eval_masked_loss"])
        runs[arm] += run_seeds(profile, (seed,), tested=False, base_model=str(folder), **ends)
    return {"profile": profile, "steps": steps, "masked_loss": masked, "variants": compare_runs(runs)}


def choose_rate(profile: str = "mpnet-base", steps: int = 300) -> dict:
    """Learning rate of a profile by short runs, a tenth of each its warm-up; the lowest validation loss is taken."""
    ends = dict.fromkeys(("max_steps", "eval_steps", "save_steps"), steps) | {"warmup_steps": steps // 10}
    run = partial(run_seeds, profile, SEEDS[:1], tested=False, **ends)
    rows = [row for rate in RATES for row in run(learning_rate=rate)]
    best = min(rows, key=lambda row: row["validation_loss"])["learning_rate"]
    return {"profile": profile, "steps": steps, "learning_rate": best, "runs": rows}


def train_and_test(config: RunConfig, folder: Path) -> RunRecord:
    """The record of a run in `folder`, trained, gone on with or finished before, with its scores on the test split of its
    data and which code computed them."""
    record = train(config, folder, resume=True)
    if "test" not in record:
        classifier = Classifier.from_checkpoint(list_checkpoints(folder)[-1], max_length=config.max_length)
        test = load_split(config.dataset, "test", config.dataset_revision)
        record["test"] = evaluate_classifier(classifier, test) | {"code": code_mark(environment())}
        write_record(folder, record)
    return record


def load_committed(profile: str = "mini-agnews", **options) -> Classifier:
    """The last checkpoint of a committed run; `options` are those of `Classifier.from_checkpoint`."""
    return Classifier.from_checkpoint(list_checkpoints(CHECKPOINTS / profile)[-1], **options)


def resume_into(folder: Path, config: RunConfig, start: Path) -> RunRecord:
    """Continue the checkpoint `start` into `folder`, or, if that holds checkpoints of it already, their last one."""
    return train(config, folder, **({"resume": True} if list_checkpoints(folder) else {"resume_from": start}))


def run_folder(config: RunConfig) -> Path:
    """The folder in checkpoints/runs/, named after profile and changed fields, so that studies share runs."""
    changed = config.portable().differences(get_profile(config.profile).to_dict())
    values = {name: "+".join(mine) if isinstance(mine, list) else mine for name, (mine, _) in changed.items()}
    parts = (f"{name}={str(value).rpartition('/')[2]}" for name, value in values.items())
    return RUNS / "-".join([config.profile, *parts])


def _describe(record: dict, tested: bool) -> dict:
    evaluations, scores = validation_rows(record), {}
    if tested:
        scores = {f"test_{key}": record["test"][key] for key in ("accuracy", "predictions")}
        scores |= {"trained_parameters": record["parameters"]["trainable"], "labelled_rows": count_labelled(record)}
    return {
        **{name: record["config"][name] for name in ("seed", "learning_rate")},
        "validation_accuracy": evaluations[-1]["eval_accuracy"],
        "validation_loss": evaluations[-1]["eval_loss"],
        "curve": [[row["step"], row["eval_accuracy"]] for row in evaluations],
        "seconds": record["timing"]["seconds"],
        "arithmetic": record.get("arithmetic"),  # unknown of a run of version 1.0.0
        "code": code_mark(record["environment"]),
    } | scores


def _mean_and_std(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values))} | ({"std": float(np.std(values, ddof=1))} if len(values) > 1 else {})
