"""One `train(config, output_dir)`: the Hugging Face Trainer on a LoRA model, resumable to the bit, with a record.

What is ours around the Trainer: the order of batches (a sampler), whole checkpoints (a callback) and the record.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from .. import records
from ..batching import LengthGroupedSampler, SharedBatches, padding_costs
from ..checkpoints import list_checkpoints, step_of
from ..config import RunConfig
from ..data import Splits, load_ag_news, tokenize
from ..environment import environment, peak_memory_mib
from ..errors import CheckFailed, InputError, Stopped, first_line
from ..files.manifests import hash_file, read_manifest
from ..files.places import RUNS, relative_to_repository
from ..model import base_identity, build_model, count_parameters, longest_input, lora_norms, shape_of
from ..processes import agree, hush_others, leads, lost_another, this_process, told_once
from .arguments import make_arguments, padding_multiple, restored_precision
from .resuming import describe_resumption, find_start, require_same_run, restore_finished

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    output_dir: Path | str,
    *,
    resume: bool = False,
    resume_from: Path | str | None = None,
    allow_other_data: bool = False,
) -> dict:
    """Fine-tune as `config` says; checkpoints and `run.json` go into `output_dir`.

    Args:
        resume: continue the newest whole checkpoint of `output_dir`, or begin at step 0 if it holds none.
        resume_from: continue this checkpoint into `output_dir`, which must be new.
        allow_other_data: continue although the data differ from the checkpoint's; the record says so.

    Returns:
        The run record, as `records.read_record(output_dir)` reads it.

    Raises:
        InputError: `output_dir` holds a run already, another process trains into it, or a checkpoint does not fit.
        CheckFailed: a checkpoint is damaged, or the loss is no longer finite (the message names the step).
        Stopped: the user interrupted the run.
    """
    output_dir = Path(output_dir)
    hush_others()
    try:
        lock = agree(lambda: _claim(output_dir, resume))
        try:
            with restored_precision():
                return _train(config, output_dir, (resume, resume_from), allow_other_data)
        finally:
            _release(output_dir, lock)
    except UnpicklingError as error:  # weights_only=True refuses whatever is no tensor
        raise told_once(
            CheckFailed(f"optimizer, scheduler or random state cannot be read: {first_line(error)}")
        ) from error
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped; last whole checkpoint: {_last_whole(output_dir)}; --resume --output-dir {output_dir} goes on,"
            f" in Python train(config, {str(output_dir)!r}, resume=True)"
        ) from None
    except (OSError, SafetensorError, RuntimeError) as error:
        if lost_another(error):
            gone = f"another process of this run ended, and said why; last whole checkpoint: {_last_whole(output_dir)}"
            raise told_once(CheckFailed(f"{gone}; mend that, then --resume")) from error
        if _out_of_memory(error):
            raise InputError(
                f"{output_dir}: {first_line(error)}; a new run with a smaller batch_size or max_length needs less memory,"
                f" --resume with a smaller eval_batch_size too; last whole checkpoint: {_last_whole(output_dir)}"
            ) from error
        if isinstance(error, RuntimeError) and "inline_container.cc" not in str(error):  # torch.save's writer
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        place = f" ({error.filename})" if getattr(error, "filename", None) else ""
        raise InputError(
            f"{output_dir}: {reason}{place}; last whole checkpoint: {_last_whole(output_dir)}; mend that, then --resume"
        ) from error


def _out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _last_whole(output_dir: Path) -> str:
    return ", ".join(folder.name for folder in list_checkpoints(output_dir)[-1:]) or "none"


def next_run_dir(profile: str, runs: Path = RUNS) -> Path:
    """The next free `runs/PROFILE-N`, the same for every process of a run."""
    from accelerate.utils import broadcast_object_list

    this_process()  # else accelerate would look for the others without knowing that there is no GPU
    numbers = [path.name.removeprefix(f"{profile}-") for path in runs.glob(f"{profile}-*")]
    taken = [int(number) for number in numbers if number.isdigit()]  # mini-agnews-3 is no run of mini
    return Path(broadcast_object_list([str(runs / f"{profile}-{max(taken, default=0) + 1}")])[0])


def _claim(output_dir: Path, resume: bool):
    """The lock on a run's folder, made if it is missing; None in the processes that do not lead."""
    from filelock import FileLock, Timeout

    if not leads():
        return None
    if not resume and output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(f"{output_dir} holds files already; name another folder, or --resume to continue its run")
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output_dir / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{output_dir}: another process is training there; wait, or give another folder") from None
    return lock


def _release(output_dir: Path, lock) -> None:
    if lock:
        if {path.name for path in output_dir.iterdir()} <= {".lock"}:
            shutil.rmtree(output_dir, ignore_errors=True)  # nothing was made, so nothing should be in the way
        lock.release()


def _train(config: RunConfig, output_dir: Path, where: tuple, allow_other_data: bool) -> dict:
    began = time.monotonic()
    start, splits, resumed = agree(lambda: _begin(config, output_dir, where, allow_other_data))
    last = start is not None and step_of(start) == config.max_steps
    if last and start.parent == output_dir.resolve() and (output_dir / records.RECORD).is_file():
        return records.read_record(output_dir)  # finished before
    clock = records.Clock(began, before=read_manifest(start)["seconds"] if start else 0.0)
    trainer, details = agree(lambda: _prepare(config, output_dir, splits, resumed, clock))
    if start:
        logger.info("resuming %s at step %d", relative_to_repository(start), step_of(start))
    if last:
        restore_finished(trainer, start, output_dir)
    else:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    record = details | _make_record(config, output_dir, trainer, clock)
    if leads():
        records.write_record(output_dir, record)
    trainer.accelerator.wait_for_everyone()
    return record


def _begin(config: RunConfig, output_dir: Path, where: tuple, allow_other_data: bool) -> tuple:
    """Where the run begins (None: at step 0), its data, both checked, and what is to be kept of its resumption."""
    start, splits = find_start(output_dir, *where), load_ag_news(config)
    if not start:
        return start, splits, {}
    other_data = require_same_run(start, config, splits, allow_other_data)
    return start, splits, {"resumed_from": describe_resumption(start, other_data)}


def _prepare(config: RunConfig, output_dir: Path, splits: Splits, resumed: dict, clock: records.Clock):
    """The Trainer, ready to train, and what its checkpoints and the record say about config, base, data and device."""
    facts = environment()
    model, tokenizer = build_model(config)
    if config.max_length > longest_input(model):
        raise InputError(
            f"max_length is {config.max_length}, but {config.base_model} has {longest_input(model)} positions"
        )
    encoded = tokenize(splits.train, tokenizer, config.max_length)
    validation = tokenize(splits.validation, tokenizer, config.max_length).sort("length")  # like lengths share a batch
    details = {
        "config": config.portable().to_dict(),
        "base": base_identity(config.base_model, config.base_revision),
        "data": {
            "source": splits.source,
            "rows": {"train": len(splits.train), "validation": len(splits.validation)},
            "sha256": splits.fingerprints(),
        },
        "environment": facts,
        **resumed,
    }
    return make_trainer(config, output_dir, model, tokenizer, encoded, validation, details, clock), details


def make_trainer(config, output_dir, model, tokenizer, train_rows, validation_rows, details, clock):
    """The Trainer of a run; rows as `data.tokenize` gives them, `details` and `clock` as `callbacks.RunCallback` says."""
    from transformers import DataCollatorWithPadding

    from .callbacks import RunCallback
    from .trainer import FineTuningTrainer

    arguments = make_arguments(config, output_dir)
    sampler = LengthGroupedSampler(
        train_rows["length"][:], config.batch_size, order=config.batch_order, seed=config.seed
    )
    return FineTuningTrainer(
        model=model,
        args=arguments,
        run=RunCallback(config, details, clock, sampler),
        batches=SharedBatches(sampler, processes=arguments.world_size, process=arguments.process_index),
        train_dataset=train_rows.remove_columns("length"),
        eval_dataset=validation_rows.remove_columns("length"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=padding_multiple()),
    )


def _make_record(config: RunConfig, output_dir: Path, trainer, clock: records.Clock) -> dict:
    lengths = trainer.batches.sampler.lengths
    checkpoints = list_checkpoints(output_dir)
    log = [row for row in trainer.state.log_history if "loss" in row or "eval_loss" in row]
    accuracy = {row["step"]: row["eval_accuracy"] for row in log if "eval_accuracy" in row}
    saved = {step_of(c): accuracy.get(step_of(c)) for c in checkpoints}
    return {
        "schema": records.SCHEMA,
        "profile": config.profile,
        "adapter_config": json.loads((checkpoints[-1] / "adapter_config.json").read_text()),
        "world_size": trainer.args.world_size,
        "parameters": count_parameters(trainer.model),
        "shape": shape_of(trainer.model),
        "log": log,
        "checkpoints": {
            str(step_of(c)): {
                "validation_accuracy": saved[step_of(c)],
                "adapter_sha256": hash_file(c / "adapter_model.safetensors"),
            }
            for c in checkpoints
        },
        "best_saved_step": max(saved, key=lambda step: (saved[step] or 0.0, -step)),
        "best_evaluated_step": max(accuracy, key=lambda step: (accuracy[step], -step)),
        "lengths": records.count_lengths(lengths),
        "padding": padding_costs(lengths, config.batch_size, seed=config.seed),
        "lora_norms": lora_norms(trainer.model),
        "timing": {"seconds": clock.seconds(), "peak_memory_mib": peak_memory_mib()},
    }
