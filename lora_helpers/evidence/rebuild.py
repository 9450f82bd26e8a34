"""`make evidence`: reruns everything that the repository claims, and is the only code that rewrites committed runs.

Each part writes a run folder under checkpoints/ or its own key of checkpoints/evidence.json. Needs AG News (the Hub,
or AG_NEWS_DIR). Choices are made on validation rows elsewhere; here the test splits are only reported.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np

from ..checkpoints import list_checkpoints
from ..config import AG_NEWS, AG_NEWS_REVISION, BUNDLED, RunConfig, get_profile
from ..data import load_ag_news, load_split, tokenize
from ..environment import environment
from ..errors import InputError
from ..evaluation import scores
from ..files.manifests import write_atomically
from ..files.places import CHECKPOINTS, COMMITTED_RUNS, REPOSITORY, RUNS
from ..inference import Classifier, evaluate_classifier
from ..records import EVIDENCE, read_evidence, read_record, validation_rows, write_record
from ..training.run import next_run_dir, train
from .growth import measure_growth
from .study import run_ablations
from .training_speed import run_benchmark

logger = logging.getLogger(__name__)

SEEDS = (42, 43, 44)


def rebuild(parts: list[str]) -> None:
    """Run the named parts; if none is named, all but `base`, which everything else stands on."""
    known = {"base": rebuild_base} | PARTS
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise InputError(f"unknown part {unknown[0]!r}; there are {', '.join(known)}")
    for part in parts or PARTS:
        logger.info("evidence: %s", part)
        result = known[part]()
        if isinstance(result, dict):  # the other parts write folders and figures
            evidence = read_evidence() | {part: result | {"environment": environment()}}
            write_atomically(EVIDENCE, json.dumps(evidence, indent=1) + "\n")


def rerun(profile: str) -> None:
    """The committed run of a profile, evaluated on its test split; the old folder is replaced when all is done."""
    config = get_profile(profile)
    target, fresh = CHECKPOINTS / profile, next_run_dir(profile)
    record = train(config, fresh)
    record["test"] = test_scores(config, fresh)
    write_record(fresh, record)
    (fresh / ".lock").unlink(missing_ok=True)
    _replace(target, fresh)


def test_scores(config: RunConfig, run_dir: Path) -> dict:
    """Scores of a run's last checkpoint on the test split of its data."""
    classifier = Classifier.from_checkpoint(list_checkpoints(run_dir)[-1], max_length=config.max_length)
    return evaluate_classifier(classifier, load_split(config.dataset, "test", config.dataset_revision))


def rebuild_base() -> None:
    """The bundled base, pretrained anew; every committed run has to follow. Takes more than an hour on two cores."""
    from ..pretraining.config import PretrainingConfig
    from ..pretraining.run import pretrain

    target, fresh = CHECKPOINTS / "roberta-mini", RUNS / "roberta-mini"
    pretrain(PretrainingConfig(), fresh, resume=True)
    _replace(target, fresh)


def repeat_seeds(profile: str, **fields) -> dict:
    """The profile with each of `SEEDS`: test and validation accuracy, mean and standard deviation (n - 1)."""
    rows = []
    for seed in SEEDS:
        config = get_profile(profile, seed=seed, **fields)
        if config == get_profile(profile) and (CHECKPOINTS / profile).is_dir():  # the committed run is this one
            record = read_record(CHECKPOINTS / profile)
            rows.append(_seed_row(seed, record, record["test"]))
        else:
            rows.append(_throw_away(config))
    return {"runs": rows} | {
        f"{split}_{name}": float(function([row[f"{split}_accuracy"] for row in rows]))
        for split in ("test", "validation")
        for name, function in (("mean", np.mean), ("std", lambda values: np.std(values, ddof=1)))
    }


def head_only() -> dict:
    """What the head does alone: mini-agnews with the adapters' factor alpha / r as good as 0; validation rows alone."""
    return _throw_away(get_profile("mini-agnews", lora_alpha=1e-9), test=False)


def random_base() -> dict:
    """Negative control: mini-agnews on a base of the same shape with random weights; validation rows alone."""
    return _throw_away(get_profile("mini-agnews", random_base=True), test=False)


def baselines() -> dict:
    """TF-IDF with a linear model, the bar that any transformer has to clear; no setting of it was searched for."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    found = {}
    pairs = {"sublinear_tf": True, "ngram_range": (1, 2)}
    for profile, name, words, linear in (
        ("mini", "TF-IDF, logistic regression", TfidfVectorizer(), LogisticRegression(max_iter=1000)),
        ("mini-agnews", "TF-IDF of words and pairs, linear SVM", TfidfVectorizer(**pairs), LinearSVC()),
    ):
        config = get_profile(profile)
        train_rows = load_ag_news(config).train
        test_rows = load_split(config.dataset, "test", config.dataset_revision)
        model = make_pipeline(words, linear).fit(train_rows["text"][:], train_rows["label"][:])
        result = scores(model.predict(test_rows["text"][:]), np.array(test_rows["label"][:]))
        found[profile] = {
            "model": name,
            "train_rows": len(train_rows),
            **{key: result[key] for key in ("accuracy", "interval", "macro_f1")},
        }
    return found


def transfer() -> dict:
    """The AG News checkpoint on the bundled test split, which it never saw."""
    classifier = Classifier.from_checkpoint(CHECKPOINTS / "mini-agnews" / "checkpoint-2400")
    result = evaluate_classifier(classifier, load_split(BUNDLED, "test"))
    return {key: result[key] for key in ("accuracy", "interval", "macro_f1", "examples")}


def prediction_speed() -> dict:
    """Seconds to label a file, the unlabelled rows in AG_NEWS_DIR if they are there, else the test split; and to
    tokenise the training rows."""
    unlabelled = Path(os.environ.get("AG_NEWS_DIR", "")) / "unlabelled.csv"
    source, target = unlabelled, RUNS / "predictions.csv"
    RUNS.mkdir(parents=True, exist_ok=True)
    if not unlabelled.is_file():
        source = RUNS / "test.jsonl"
        load_split(AG_NEWS, "test", AG_NEWS_REVISION).select_columns("text").to_json(source)
    target.unlink(missing_ok=True)
    began = time.monotonic()
    classifier = Classifier.from_checkpoint(CHECKPOINTS / "mini-agnews" / "checkpoint-2400")
    rows = classifier.predict_file(source, target, progress=False)
    seconds = time.monotonic() - began
    config = get_profile("mini-agnews")
    training_rows = load_ag_news(config).train
    began = time.monotonic()
    tokenize(training_rows, classifier.tokenizer, config.max_length)
    tokenisation = {"rows": len(training_rows), "seconds": time.monotonic() - began}
    return {"rows": rows, "seconds": seconds, "rows_per_second": rows / seconds, "tokenisation": tokenisation}


def time_notebook() -> dict:
    """Wall time and peak memory of the notebook on its default profile, offline, as `make run` executes it."""
    import resource
    import subprocess

    began = time.monotonic()
    subprocess.run(
        ["make", "run"], check=True, cwd=REPOSITORY, env=os.environ | {"HF_HUB_OFFLINE": "1", "PROFILE": "mini"}
    )
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # the largest of the child processes
    return {"seconds": seconds, "peak_memory_mib": peak}


def draw(output_dir: Path = REPOSITORY / "figures") -> list[Path]:
    """Every figure of the committed runs and of the evidence; returns the files."""
    from ..architecture import draw_roberta_base
    from ..figures import draw_figures
    from .speed_figures import draw_benchmark_figures

    runs = [path for files in draw_figures(COMMITTED_RUNS, output_dir).values() for path in files.values()]
    return [draw_roberta_base(output_dir), *runs, *draw_benchmark_figures(read_evidence(), output_dir)]


PARTS = {
    "mini": lambda: rerun("mini"),
    "mini-agnews": lambda: rerun("mini-agnews"),
    "mini-seeds": lambda: repeat_seeds("mini"),
    "mini-agnews-seeds": lambda: repeat_seeds("mini-agnews"),
    "shuffled-labels": lambda: repeat_seeds("mini", shuffled_labels=True),  # negative control, a permutation a seed
    "random-base": random_base,
    "head-only": head_only,
    "baselines": baselines,
    "transfer": transfer,
    "prediction-speed": prediction_speed,
    "bench": run_benchmark,
    "growth": measure_growth,
    "ablations": run_ablations,
    "notebook": time_notebook,
    "figures": draw,
}


def _replace(target: Path, fresh: Path) -> None:
    """Put a finished folder in the place of a committed one, which keeps its card."""
    shutil.copy(target / "README.md", fresh)
    shutil.rmtree(target)
    fresh.rename(target)


def _throw_away(config: RunConfig, *, test: bool = True) -> dict:
    """Train into a run folder, keep the accuracies, remove the folder."""
    run_dir = next_run_dir(config.profile)
    record = train(config, run_dir)
    row = _seed_row(config.seed, record, test_scores(config, run_dir) if test else None)
    shutil.rmtree(run_dir)
    return row


def _seed_row(seed: int, record: dict, test: dict | None) -> dict:
    row = {
        "seed": seed,
        "validation_accuracy": validation_rows(record)[-1]["eval_accuracy"],
        "seconds": record["timing"]["seconds"],
    }
    return row | ({"test_accuracy": test["accuracy"], "test_interval": test["interval"]} if test else {})
