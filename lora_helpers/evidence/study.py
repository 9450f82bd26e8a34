"""No speed bought with accuracy: `mini-agnews` with and without what makes it fast, over the same seeds.

`make evidence PARTS=ablations` trains each variant with each seed and compares them on validation rows, which decide
what the profiles use. A run that is finished is not trained again.
"""

from __future__ import annotations

import numpy as np

from ..config import get_profile
from ..files.places import RUNS
from ..records import validation_rows
from ..training.run import train

PROFILE = "mini-agnews"
SEEDS = range(42, 47)
REFERENCE = "ours"
VARIANTS = {
    REFERENCE: {},  # rows of like length share a batch; no dropout in the frozen base
    "random-order": {"batch_order": "random"},
    "base-dropout": {"base_dropout": 0.1},
}


def run_ablations() -> dict:
    """Validation accuracy of every variant and seed, and each variant's difference from ours; see `compare`."""
    accuracies = {name: [_accuracy(name, fields, seed) for seed in SEEDS] for name, fields in VARIANTS.items()}
    return {"profile": PROFILE, "seeds": list(SEEDS), "variants": compare(accuracies)}


def compare(accuracies: dict[str, list[float]]) -> dict[str, dict]:
    """Mean, standard deviation (n - 1) and, against the reference with the same seeds, the mean difference (ours
    minus the variant) with its 95 % interval: Student's t on the paired differences.

    `accuracies`: one list a variant, in the order of the seeds.
    """
    from scipy.stats import t

    compared = {}
    for name, values in accuracies.items():
        compared[name] = {
            "validation_accuracy": values,
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)),
        }
        if name != REFERENCE:
            differences = np.subtract(accuracies[REFERENCE], values)
            error = np.std(differences, ddof=1) / len(differences) ** 0.5
            reach = t.ppf(0.975, len(differences) - 1) * error
            mean = float(differences.mean())
            compared[name]["difference"] = mean
            compared[name]["interval"] = [mean - float(reach), mean + float(reach)]
    return compared


def _accuracy(name: str, fields: dict, seed: int) -> float:
    last = get_profile(PROFILE).max_steps  # the end is all that is compared
    config = get_profile(PROFILE, seed=seed, eval_steps=last, save_steps=last, **fields)
    record = train(config, RUNS / f"ablation-{name}-{seed}", resume=True)
    return validation_rows(record)[-1]["eval_accuracy"]
