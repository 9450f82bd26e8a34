"""One `train(config, output_dir)`: the Hugging Face Trainer on a LoRA model, resumable to the bit, with a record.

What is ours around the Trainer: the order of batches (a sampler), whole checkpoints (a callback) and the record.
"""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from .. import records
from ..batching import padding_costs
from ..checkpoints import ADAPTER_CONFIG, WEIGHTS, list_checkpoints, step_of
from ..config import RunConfig
from ..data import Splits, load_ag_news, tokenize
from ..environment import environment, peak_memory_mib, trains_on_gpu
from ..errors import InputError, written_into
from ..files.hub import base_identity
from ..files.manifests import hash_file
from ..files.places import RUNS, relative_to_repository
from ..model import build_model, count_parameters, longest_input, lora_norms, shape_of
from ..processes import leads, this_process
from .failures import failures_in_one_sentence
from .resuming import Beginning, describe_resumption, find_start, require_same_run, restore_finished, take_weights

logger = logging.getLogger(__name__)


def train(
    config: RunConfig, output_dir: Path | str, *, resume: bool = False, resume_from: Path | str | None = None,
    warm_start: Path | str | None = None, allow_other_data: bool = False,
) -> records.RunRecord:  # fmt: skip
    """Fine-tune as `config` says; checkpoints and `run.json`, the record that is returned, go into `output_dir`.

    On a CUDA device, else the CPU: no checkpoint holds the random state of Apple's GPU, so none would resume exactly.

    Args:
        resume: continue the newest whole checkpoint of `output_dir`, or begin at step 0 if it holds none.
        resume_from: continue this checkpoint into `output_dir`, which must be new or empty.
        warm_start: begin with the adapter and head of this checkpoint, with a new optimizer and schedule.
        allow_other_data: continue although the data differ from the checkpoint's; the record says so.

    Raises: as `failures_in_one_sentence`.
    """
    from .arguments import restored_precision

    output_dir, resume_from, warm_start = (path and Path(path) for path in (output_dir, resume_from, warm_start))
    origins = {"resume_from": resume_from, "warm_start": warm_start}
    beginning = Beginning(resume=resume, allow_other_data=allow_other_data, **origins)
    if not leads():
        logging.getLogger("lora_helpers").setLevel(logging.ERROR)
    with (
        failures_in_one_sentence(config, output_dir, beginning),
        _claimed(output_dir, resume=resume) if leads() else nullcontext(),
        restored_precision(),
    ):
        return _train(config, output_dir, beginning)


def next_run_dir(profile: str, runs: Path = RUNS) -> Path:
    """Make the next free `runs/PROFILE-N`; all processes of a run get the same one, two runs never do."""
    from accelerate.utils import broadcast_object_list

    made = []
    while leads() and not made:
        names = [path.name.removeprefix(f"{profile}-") for path in runs.glob(f"{profile}-*")]
        number = max((int(name) for name in names if name.isdigit()), default=0) + 1  # mini-agnews-3 is no run of mini
        with written_into(runs):
            runs.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # another run took it meanwhile
                (runs / f"{profile}-{number}").mkdir()
                made = [runs / f"{profile}-{number}"]
    return broadcast_object_list(made or [None])[0]


@contextmanager
def _claimed(output_dir: Path, *, resume: bool) -> Iterator[None]:
    """A run's folder, locked; if nothing comes to lie in it, it is removed again."""
    from filelock import FileLock, Timeout

    output_dir.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in output_dir.iterdir()}
    left = {".lock"} if ".lock" in there else set()  # by a run that was stopped
    if left and not list_checkpoints(output_dir):
        left |= {path.name for path in output_dir.glob("checkpoint-*")}  # which it had begun to write
    if not resume and there - left:
        raise InputError(f"{output_dir} holds files already; name another folder, or --resume to continue its run")
    if there and ".lock" not in there and not list_checkpoints(output_dir):  # it would write over them
        raise InputError(f"{output_dir} holds files, but no run that was begun here; name another folder")
    try:
        lock = FileLock(output_dir / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(f"{output_dir}: another process is training there; wait, or give another folder") from None
    try:
        with lock:
            yield
    finally:  # behind the lock, since Windows removes no open file
        if {path.name for path in output_dir.iterdir()} <= {".lock"}:
            shutil.rmtree(output_dir, ignore_errors=True)
        else:  # it says that a run was begun here; Windows takes it away with the lock
            with suppress(OSError):
                (output_dir / ".lock").touch()


def _train(config: RunConfig, output_dir: Path, beginning: Beginning) -> records.RunRecord:
    from .trainer import make_trainer

    began = time.monotonic()
    start, splits = find_start(output_dir, beginning), load_ag_news(config)
    finished = start is not None and step_of(start.path) == config.max_steps
    if start:
        require_same_run(start, config, splits, allow_other_data=beginning.allow_other_data)
    if finished and start.path.parent == output_dir.resolve() and (output_dir / records.RECORD).is_file():
        logger.info("%s: this run is finished", output_dir)
        return records.read_record(output_dir)
    plan = _make_plan(config, output_dir, splits, began - (start.manifest["seconds"] if start else 0.0))
    if beginning.resume and not start:
        logger.info("%s holds no checkpoint to go on from: step 0", output_dir)
    if start:
        plan.details.update(describe_resumption(start, plan.details))
        logger.info("resuming %s at step %d", relative_to_repository(start.path), step_of(start.path))
    if config.warmup_steps >= config.max_steps:
        rising = "warmup_steps is %d, max_steps %d: the run ends while the learning rate rises; lower warmup_steps"
        logger.warning(rising, config.warmup_steps, config.max_steps)
    if beginning.warm_start:
        plan.details.update(take_weights(plan.model, beginning.warm_start))
    trainer = make_trainer(plan)
    if finished:
        restore_finished(trainer, start.path, output_dir)
    else:
        try:
            trainer.train(resume_from_checkpoint=str(start.path) if start else None)
        finally:
            trainer.run.bar.close()  # what is said next, an error perhaps, begins a new line
    record = records.RunRecord(plan.details | _make_record(plan, trainer))
    if leads():
        records.write_record(output_dir, record)
    this_process().wait_for_everyone()
    return record


def _make_plan(config: RunConfig, output_dir: Path, splits: Splits, began: float):
    """The `Plan` of a run: the model, its rows, and what is kept of configuration, base, data and machine."""
    import torch

    from .arguments import Plan, choose_arithmetic

    if trains_on_gpu():
        torch.cuda.reset_peak_memory_stats()  # what ran before in this process is not the run's
    model, tokenizer = build_model(config)
    if config.max_length > (longest := longest_input(model)):
        raise InputError(f"max_length is {config.max_length}, but {config.base_model} has {longest} positions")
    train, validation = (tokenize(rows, tokenizer, config.max_length) for rows in (splits.train, splits.validation))
    rows = {"train": len(train), "validation": len(validation)}
    details = {
        "config": config.portable().to_dict(),
        "base": base_identity(config.base_model, config.base_revision),
        "data": {"source": splits.source, "rows": rows, "sha256": splits.fingerprints()},
        "environment": environment("cuda" if trains_on_gpu() else "cpu"),  # whatever other device there is
        "arithmetic": choose_arithmetic(config, model),
        "world_size": this_process().num_processes,
    }
    return Plan(
        config=config, output_dir=output_dir, model=model, tokenizer=tokenizer,
        train_rows=train, validation_rows=validation, details=details, began=began,
    )  # fmt: skip


def _make_record(plan, trainer) -> dict:
    lengths, checkpoints = trainer.sampler.lengths, {step_of(c): c for c in list_checkpoints(plan.output_dir)}
    log = [row for row in trainer.state.log_history if "loss" in row or "eval_loss" in row]
    accuracy = {row["step"]: row["eval_accuracy"] for row in log if "eval_accuracy" in row}  # of every saved step too
    return {
        "schema": records.SCHEMA,
        "profile": plan.config.profile,
        "adapter_config": json.loads((checkpoints[max(checkpoints)] / ADAPTER_CONFIG).read_text()),
        "parameters": count_parameters(trainer.model),
        "shape": shape_of(trainer.model),
        "log": log,
        "checkpoints": {
            str(step): {"validation_accuracy": accuracy[step], "adapter_sha256": hash_file(folder / WEIGHTS)}
            for step, folder in checkpoints.items()
        },
        "best_saved_step": max(checkpoints, key=accuracy.get),
        "best_evaluated_step": max(accuracy, key=accuracy.get),
        "lengths": {str(tokens): rows for tokens, rows in sorted(Counter(lengths.tolist()).items())},
        "padding": padding_costs(lengths, plan.config.batch_size, seed=plan.config.seed),
        "lora_norms": lora_norms(trainer.model.cpu()),  # a GPU would multiply in TF32 where the run did
        "timing": {"seconds": plan.seconds(), "peak_memory_mib": peak_memory_mib()},
    }
