"""The drill: runs killed at random moments, resumed, and compared with a run that was never stopped.

`make drill` runs all of it (`python tests/drill.py`) and keeps the counts; `test_stops.py` runs a shorter one. A run
is a process of its own that tells through shared memory what it is doing, and SIGKILL is all that it ever gets.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project is run from its folder, not installed

import drill_hub

from lora_helpers.checkpoints import list_checkpoints
from lora_helpers.config import RunConfig, get_profile
from lora_helpers.environment import environment
from lora_helpers.files.manifests import hash_file, write_atomically
from lora_helpers.files.places import REPOSITORY
from lora_helpers.records import read_record
from lora_helpers.training.run import train

PLACES = ("starting", "training", "evaluation", "writing")  # what a run can be busy with, as numbers in shared memory
STARTING, TRAINING, EVALUATION, WRITING = range(4)
OUTSIDE = ("ROBERTA_BASE_DIR", "AG_NEWS_DIR")  # folders that the last part reads
RECORD = REPOSITORY / "checkpoints" / "reliability.json"
SAME = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")


@dataclass(frozen=True)
class Kill:
    """One killed run: where SIGKILL fell, where the run went on, and whether it ended in the reference's bits."""

    place: str  # of PLACES
    step: int  # optimizer steps done when it fell
    resumed_at: int  # step of the checkpoint it went on from, 0 if there was none
    same_bits: bool  # adapter, head, optimizer, schedule
    same_log: bool  # every row but its wall times


def make_context():
    """Processes forked from one that has only imported: they start at once and share no thread with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.trainer", "peft", "sklearn.metrics", "lora_helpers.training.trainer"])
    return context


def run(config: RunConfig, run_dir: Path, busy) -> None:
    """Train into `run_dir`, or go on with what is there; `busy` (two shared integers) gets the place and the step."""
    import torch
    from tqdm import tqdm
    from transformers import TrainerCallback

    from lora_helpers.training import trainer as training

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            busy[:] = TRAINING, state.global_step

        def on_prediction_step(self, args, state, control, **kwargs):
            busy[:] = EVALUATION, state.global_step

        def on_evaluate(self, args, state, control, **kwargs):  # the Trainer saves right after it
            saves = state.global_step % config.save_steps == 0 or state.global_step == config.max_steps
            busy[:] = WRITING if saves else TRAINING, state.global_step

        def on_save(self, args, state, control, **kwargs):  # hung in last, so the manifest stands
            busy[:] = TRAINING, state.global_step

    # Into a file, and by a lock of this process alone: a killed one would leave a shared lock held.
    sys.stdout = sys.stderr = run_dir.with_suffix(".log").open("a")
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)  # a model this small is slower with more
    make_trainer = training.make_trainer

    def make_watched(plan):
        trainer = make_trainer(plan)
        trainer.add_callback(Watch())
        return trainer

    training.make_trainer = make_watched
    train(config, run_dir, resume=True)


def drill(config: RunConfig, folder: Path, places: list[int], *, seed: int = 0) -> list[Kill]:
    """Kill one run in each of `places` (TRAINING means: at any moment), resume it, compare its end with the reference."""
    context, dice = make_context(), random.Random(seed)
    reference = folder / "reference"
    first = context.Process(target=int)
    first.start()
    first.join()  # by now the fork server has imported everything, which can take longer than the run that is timed
    began = time.monotonic()
    start(context, config, reference)[0].join()
    seconds = time.monotonic() - began
    wanted, kills = fingerprint(reference), []
    for number, place in enumerate(places):
        run_dir = folder / f"run-{number}"
        while True:
            process, busy = start(context, config, run_dir)
            _wait(process, busy, place, config, seconds, dice)
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                break
            shutil.rmtree(run_dir)  # it was faster and had ended: nothing was killed
        fell, step = busy
        if fell == WRITING and all((c / "manifest.json").is_file() for c in run_dir.glob("checkpoint-*")):
            fell = TRAINING  # it was about to write, or had just finished
        start(context, config, run_dir)[0].join()
        bits, log = fingerprint(run_dir)
        resumed = read_record(run_dir).get("resumed_from", {"checkpoint": "checkpoint-0"})["checkpoint"]
        same = {"same_bits": bits == wanted[0], "same_log": log == wanted[1]}
        kills.append(Kill(PLACES[fell], step, int(resumed.rpartition("-")[2]), **same))
    return kills


def fingerprint(run_dir: Path) -> tuple[dict, list]:
    """SHA-256 of what the last checkpoint computes with, and the log without wall times."""
    last = list_checkpoints(run_dir)[-1]
    log = [
        {k: v for k, v in row.items() if not k.endswith(("runtime", "per_second"))}
        for row in read_record(run_dir)["log"]
    ]
    return {name: hash_file(last / name) for name in SAME}, log


def summary(kills: list[Kill]) -> dict:
    """What the reliability table says of a drill."""
    return {
        "kills": len(kills),
        "places": dict(Counter(kill.place for kill in kills)),
        "mismatches": sum(not (kill.same_bits and kill.same_log) for kill in kills),
        "rows": [vars(kill) for kill in kills],
    }


def keep(found: dict) -> None:
    """Add to the record that the reliability table is written from."""
    before = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    write_atomically(RECORD, json.dumps(before | found, indent=1) + "\n")


def start(context, config: RunConfig, run_dir: Path):
    """A process that trains into `run_dir`, and the shared numbers that say where it is."""
    busy = context.RawArray("l", 2)  # without a lock, which a killed process would hold for ever
    process = context.Process(target=run, args=(config, run_dir, busy))
    process.start()
    return process, busy


def wait_for(process, busy, place: int, step: int = 0) -> None:
    """Until the run is in `place`, `step` steps or more from its beginning, or has ended."""
    while process.is_alive() and not (busy[0] == place and busy[1] >= step):
        time.sleep(0.0005)


def _wait(process, busy, place: int, config: RunConfig, seconds: float, dice: random.Random) -> None:
    """Until the moment to kill: any, or some way into a `place` at a step drawn by `dice`."""
    if place == TRAINING:
        time.sleep(dice.uniform(0.1, 0.9) * seconds)
        return
    every = config.eval_steps if place == EVALUATION else config.save_steps
    wait_for(process, busy, place, dice.randrange(every, config.max_steps + 1, every))
    time.sleep(dice.uniform(0, 0.01))


def run_stops() -> dict:
    """24 kills of a small run that has dropout, length grouping, three epochs and checkpoints in each; and a control."""
    fields = {"base_dropout": 0.1, "max_length": 48, "max_steps": 170, "eval_steps": 10, "save_steps": 40}
    config = get_profile("mini", warmup_steps=5, lora_dropout=0.1, **fields)
    places = [TRAINING, WRITING, EVALUATION, TRAINING, WRITING, WRITING, EVALUATION, TRAINING] * 3
    with tempfile.TemporaryDirectory() as folder:
        found = summary(drill(config, Path(folder), places))
        train(config.replace(seed=7), Path(folder) / "another-seed")
        control = fingerprint(Path(folder) / "another-seed") != fingerprint(Path(folder) / "reference")
    return found | {"another_seed_differs": control, "environment": environment()}


def count_tests() -> dict:
    """What the tests of damage, bad input and properties tried, as they count it themselves."""
    names = [f"tests/test_{name}.py" for name in ("damage", "bad_inputs", "properties")]
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        environment = os.environ | {"EVIDENCE_COUNTS": str(counts)}
        subprocess.run([sys.executable, "-m", "pytest", *names], check=True, cwd=REPOSITORY, env=environment)
        return json.loads(counts.read_text())


def main() -> None:
    """Every part, each kept as soon as it is done; the exit status says whether a run ended in other bits."""
    missing = [name for name in OUTSIDE if not os.environ.get(name)]
    if missing:
        sys.exit(f"{' and '.join(missing)} not set: wanted the folders with roberta-base's files and with AG News")
    stops = run_stops()
    keep({"stops": stops})
    keep({"counts": count_tests()})
    keep({"hub": drill_hub.run_full_size(*(Path(os.environ[name]) for name in OUTSIDE))})
    sys.exit(stops["mismatches"] > 0 or not stops["another_seed_differs"])


if __name__ == "__main__":
    main()
