"""The numbers in README and model cards: written there from the committed records, and checked against them.

A number stands between `<!--name-->` and `<!--/-->`; `VALUES` says what each name means.
"""

from __future__ import annotations

import re
from pathlib import Path

from .checkpoints import write_atomically
from .config import REPOSITORY
from .errors import CheckFailed, InputError
from .evidence import CHECKPOINTS, read_evidence
from .records import read_record, validation_rows

MARK = re.compile(r"<!--(?P<name>[a-z][a-z0-9-]*)-->(?P<value>.*?)<!--/-->", re.DOTALL)


def update_documents(*, check: bool = False) -> list[Path]:
    """Write every number into its place; returns the documents that changed.

    Raises:
        CheckFailed: with `check`, if a number differs from the records; nothing is written then.
        InputError: a document asks for a number that no record has.
    """
    try:
        values = collect_values()
    except KeyError as error:
        raise InputError(f"checkpoints/evidence.json has no {error} yet; run: make evidence") from error
    changed, wrong = [], []
    for path in [REPOSITORY / "README.md", *sorted(CHECKPOINTS.glob("*/README.md"))]:
        old = path.read_text(encoding="utf-8")

        def fill(match, path=path):
            name = match["name"]
            if name not in values:
                raise InputError(f"{path}: no record has a number called {name!r}; known are {', '.join(values)}")
            if match["value"] != values[name]:
                wrong.append(f"{path.name}: {name} is {match['value']!r}, the records say {values[name]!r}")
            return f"<!--{name}-->{values[name]}<!--/-->"

        new = MARK.sub(fill, old)
        if new != old:
            changed.append(path)
            if not check:
                write_atomically(path, new)
    if check and wrong:
        raise CheckFailed("; ".join(wrong) + "; run: python -m lora_helpers report")
    return changed


def collect_values() -> dict[str, str]:
    """Every number by name, formatted as the documents show it."""
    evidence = read_evidence()
    values = {}
    for profile in ("mini", "mini-agnews"):
        values |= _run_values(profile, read_record(CHECKPOINTS / profile))
        seeds = evidence.get(f"{profile}-seeds")
        if seeds:
            values[f"{profile}-seeds"] = f"{seeds['test_mean']:.4f} ± {seeds['test_std']:.4f}"
            values[f"{profile}-seeds-count"] = str(len(seeds["runs"]))
        baseline = evidence["baselines"][profile]
        values[f"{profile}-baseline"] = f"{baseline['accuracy']:.4f}"
        values[f"{profile}-baseline-model"] = baseline["model"]
    values["shuffled-labels"] = f"{evidence['shuffled-labels']['test_accuracy']:.4f}"
    values["random-base"] = f"{evidence['random-base']['validation_accuracy']:.4f}"
    values["transfer"] = f"{evidence['transfer']['accuracy']:.4f}"
    speed, notebook = evidence["prediction-speed"], evidence.get("notebook")
    values["predict-rows"] = f"{speed['rows']:,}"
    values["predict-seconds"] = f"{speed['seconds']:.0f}"
    if notebook:
        values["notebook-seconds"] = f"{notebook['seconds']:.0f}"
        values["notebook-memory"] = f"{notebook['peak_memory_mib'] / 1024:.1f}"
    return values | _base_values()


def _run_values(profile: str, record: dict) -> dict[str, str]:
    test, last = record["test"], validation_rows(record)[-1]
    low, high = test["interval"]
    padding = record["padding"]
    return {
        f"{profile}-{name}": value
        for name, value in {
            "accuracy": f"{test['accuracy']:.4f}",
            "interval": f"{low:.3f} to {high:.3f}",
            "macro-f1": f"{test['macro_f1']:.4f}",
            "ece": f"{test['calibration']['ece']:.3f}",
            "test-rows": f"{test['examples']:,}",
            "train-rows": f"{record['data']['rows']['train']:,}",
            "validation-rows": f"{record['data']['rows']['validation']:,}",
            "validation-accuracy": f"{last['eval_accuracy']:.4f}",
            "steps": f"{last['step']:,}",
            "minutes": f"{record['timing']['seconds'] / 60:.1f}",
            "memory": f"{record['timing']['peak_memory_mib']['process'] / 1024:.1f}",
            "trainable": f"{record['parameters']['trainable']:,}",
            "lora": f"{record['parameters']['lora']:,}",
            "head": f"{record['parameters']['head']:,}",
            "best-step": f"{record['best_saved_step']:,}",
            "padding": f"{padding['length-grouped']:.2f}",
            "padding-random": f"{padding['random']:.2f}",
            "processor": str(record["environment"]["processor"]),
            "cores": str(record["environment"]["cores"]),
        }.items()
    }


def _base_values() -> dict[str, str]:
    import json

    from .pretraining import RECORD

    record = json.loads((CHECKPOINTS / "roberta-mini" / RECORD).read_text())
    loss = [row for row in record["log"] if "eval_masked_loss" in row][-1]
    size = sum(f.stat().st_size for f in (CHECKPOINTS / "roberta-mini").iterdir() if f.name != "README.md")
    return {
        "base-parameters": f"{record['parameters']:,}",
        "base-vocabulary": f"{record['config']['vocab_size']:,}",
        "base-steps": f"{record['config']['max_steps']:,}",
        "base-tokens": f"{record['tokens']['seen'] / 1e6:.1f}",
        "base-epochs": f"{record['tokens']['seen'] / record['tokens']['an_epoch']:.1f}",
        "base-minutes": f"{record['seconds'] / 60:.0f}",
        "base-loss": f"{loss['eval_masked_loss']:.2f}",
        "base-megabytes": f"{size / 1e6:.0f}",
        "base-rows": f"{record['data']['rows']:,}",
        "base-processor": str(record["environment"]["processor"]),
    }
