"""The run record: what was run, on what, with what result. One JSON file a run, the only source of every number.

Training and evaluation write it; figures, README and model cards are drawn from it, without model or data.
"""

import json
from pathlib import Path

from .config import PROFILES
from .errors import InputError
from .files.manifests import write_atomically
from .files.places import CHECKPOINTS, RUNS

RECORD = "run.json"
EVIDENCE = CHECKPOINTS / "evidence.json"
SCHEMA = 1
# What a run record must hold to be drawn and reported.
REQUIRED = (
    *("schema", "profile", "config", "adapter_config", "base", "data", "environment", "parameters"),
    *("log", "checkpoints", "best_saved_step", "shape", "lengths", "padding", "lora_norms", "timing"),
)


class RunRecord(dict):
    """A run record that shows itself in three lines, and not in the four hundred that it has."""

    def __repr__(self) -> str:
        last, best, shown = validation_rows(self)[-1], self["best_saved_step"], "not measured yet"
        its = self["checkpoints"][str(best)]["validation_accuracy"]
        if test := self.get("test"):
            low, high = test["interval"]
            shown = f"{test['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, {test['examples']:,} rows)"
        return (
            f"{self['profile']}: {last['step']:,} steps in {self['timing']['seconds']:,.0f} s\n"
            f"validation accuracy {last['eval_accuracy']:.4f}; of the saved checkpoints step {best:,} is best, {its:.4f}\n"
            f"test accuracy {shown}"
        )


def write_record(run_dir: Path, record: dict) -> None:
    """Write `run.json`."""
    write_atomically(Path(run_dir) / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_record(run_dir: Path | str) -> RunRecord:
    """The record of a run folder. Raises: InputError: none there, not JSON, or of another schema."""
    path = Path(run_dir) / RECORD
    if not path.is_file():
        raise InputError(f"{run_dir}: no {RECORD}; wanted the folder of a finished run, e.g. checkpoints/mini-agnews")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); restore it or run again") from error
    missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
    if missing or record["schema"] != SCHEMA:
        raise InputError(f"{path}: not a run record of schema {SCHEMA} (missing: {', '.join(missing) or 'nothing'})")
    return RunRecord(record)


def validation_rows(record: dict) -> list[dict]:
    """Rows of the log that hold an evaluation, by step: `step`, `eval_loss`, `eval_accuracy`, …"""
    return [row for row in record["log"] if "eval_loss" in row]


def training_rows(record: dict) -> list[dict]:
    """Rows of the log that hold a training loss (its mean over the steps since the row before)."""
    return [row for row in record["log"] if "loss" in row]


def count_labelled(record: dict) -> int:
    """How many training rows, whose labels it saw, the batches of a run held."""
    config = record["config"]
    return min(record["data"]["rows"]["train"], config["max_steps"] * config["batch_size"])


def committed_runs() -> list[Path]:
    """Folders of the profiles that have a committed run."""
    return [CHECKPOINTS / profile for profile in PROFILES if (CHECKPOINTS / profile / RECORD).is_file()]


def read_evidence() -> dict:
    """What the parts have recorded so far, by part."""
    return json.loads(EVIDENCE.read_text(encoding="utf-8")) if EVIDENCE.is_file() else {}


def find_rivals(profile: str, records: dict) -> dict:
    """The part of the evidence that compares ways to train on a profile's base: `arms` by name, LoRA first. Of several
    parts, the one with the most seeds; if there is none, no arms."""
    parts = (part for part in records.values() if "arms" in part and part["profile"] == profile)
    return max(parts, key=lambda part: len(part["arms"]["LoRA"]["runs"]), default={"arms": {}})


def write_evidence(part: str, result: dict) -> None:
    """Put the result of a part beside those of the others; parts that end together take turns, so that none is lost."""
    from filelock import FileLock

    RUNS.mkdir(parents=True, exist_ok=True)
    with FileLock(RUNS / "evidence.lock"):
        write_atomically(EVIDENCE, json.dumps(read_evidence() | {part: result}, indent=1) + "\n")
