"""One `train(config, output_dir)`: the Hugging Face Trainer on a LoRA model, resumable to the bit, with a record.

What is ours around the Trainer: the order of batches (a sampler), whole checkpoints (a callback) and the record.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError

from . import records
from .batching import LengthGroupedSampler, padding_costs
from .checkpoints import (
    hash_file,
    list_checkpoints,
    read_manifest,
    relative_to_repository,
    step_of,
)
from .config import REPOSITORY, RunConfig
from .data import load_ag_news, tokenize
from .environment import environment, peak_memory_mib
from .errors import CheckFailed, InputError, first_line
from .evaluation import trainer_metrics
from .model import base_identity, build_model, count_parameters, longest_input
from .resuming import find_start, require_same_run, restore_finished

logger = logging.getLogger(__name__)

RUNS = REPOSITORY / "checkpoints" / "runs"


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
    """
    from accelerate import PartialState
    from filelock import FileLock, Timeout

    output_dir = Path(output_dir)
    leads = PartialState().is_main_process  # of several processes of one run, this one locks and checks for all
    if leads and not resume and output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(f"{output_dir} holds files already; name another folder, or --resume to continue its run")
    lock = FileLock(output_dir / ".lock", timeout=0) if leads else nullcontext()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with lock:
            try:
                return _train(config, output_dir, find_start(output_dir, resume, resume_from), allow_other_data)
            finally:
                if leads and {path.name for path in output_dir.iterdir()} <= {".lock"}:
                    shutil.rmtree(output_dir)  # nothing was made, so nothing should be in the way
    except Timeout:
        raise InputError(f"{output_dir}: another process is training there; wait, or give another folder") from None
    except UnpicklingError as error:  # weights_only=True refuses whatever is no tensor
        raise CheckFailed(f"optimizer, scheduler or random state cannot be read: {first_line(error)}") from error
    except OSError as error:
        saved = ", ".join(folder.name for folder in list_checkpoints(output_dir)[-1:]) or "none"
        reason = f"{error.strerror or first_line(error)}{f' ({error.filename})' if error.filename else ''}"
        raise InputError(f"{output_dir}: {reason}; last whole checkpoint: {saved}; mend that, then --resume") from error


def next_run_dir(profile: str, runs: Path = RUNS) -> Path:
    """The next free `runs/PROFILE-N`, the same for every process of a run."""
    from accelerate.utils import broadcast_object_list

    numbers = [path.name.removeprefix(f"{profile}-") for path in runs.glob(f"{profile}-*")]
    taken = [int(number) for number in numbers if number.isdigit()]  # mini-agnews-3 is no run of mini
    return Path(broadcast_object_list([str(runs / f"{profile}-{max(taken, default=0) + 1}")])[0])


def _train(config: RunConfig, output_dir: Path, start: Path | None, allow_other_data: bool) -> dict:
    began = time.monotonic()
    facts = environment()
    splits = load_ag_news(config)
    if start:
        require_same_run(start, config, splits, allow_other_data)
        if (
            start.parent == output_dir.resolve()
            and step_of(start) == config.max_steps
            and (output_dir / records.RECORD).is_file()
        ):
            return records.read_record(output_dir)  # finished before
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
    }
    clock = records.Clock(began, before=read_manifest(start)["seconds"] if start else 0.0)
    trainer = _make_trainer(config, output_dir, model, tokenizer, encoded, validation, details, clock)
    if start:
        logger.info("resuming %s at step %d", relative_to_repository(start), step_of(start))
    if start and step_of(start) == config.max_steps:
        restore_finished(trainer, start, output_dir)
    else:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    record = details | _make_record(config, output_dir, trainer, encoded["length"], clock)
    if start:
        record["resumed_from"] = {"checkpoint": relative_to_repository(start), "other_data_allowed": allow_other_data}
    if trainer.is_world_process_zero():
        records.write_record(output_dir, record)
    return record


def _make_trainer(config, output_dir, model, tokenizer, train_rows, validation_rows, details, clock):
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

    from .callbacks import RunCallback, require_finite

    sampler = LengthGroupedSampler(train_rows["length"], config.batch_size, order=config.batch_order, seed=config.seed)

    class FineTuningTrainer(Trainer):
        """The stock Trainer with our order of batches."""

        def _get_train_sampler(self, train_dataset=None):
            return sampler

        def training_step(self, *arguments, **named):
            loss = super().training_step(*arguments, **named)
            if loss.device.type == "cpu":  # on a GPU the look would cost a wait at every step; there the log tells
                require_finite(loss.item(), self.state.global_step + 1, config.learning_rate)
            return loss

    trainer = FineTuningTrainer(
        model=model,
        args=_make_arguments(config, output_dir),
        train_dataset=train_rows.remove_columns("length"),
        eval_dataset=validation_rows.remove_columns("length"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if _on_gpu() else None),
        compute_metrics=trainer_metrics,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunCallback(config, details, clock, sampler))
    return trainer


def _make_arguments(config: RunConfig, output_dir: Path):
    """`TrainingArguments` of a run. Precision follows device and profile: float32 but where a GPU may mix in bf16."""
    import torch
    from transformers import TrainingArguments

    from .callbacks import require_tracker

    same_name = (
        *("max_steps", "eval_steps", "save_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
        *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
        *("label_smoothing_factor", "seed", "report_to"),
    )
    # T4 and older emulate bf16, slowly, and have no TF32.
    mixed = config.mixed_precision and _on_gpu() and torch.cuda.is_bf16_supported(including_emulation=False)
    world_size = _world_size()
    if config.batch_size % world_size:
        raise InputError(f"batch_size {config.batch_size} cannot be shared by {world_size} processes; take a multiple")
    require_tracker(config.report_to)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        **{name: getattr(config, name) for name in same_name},
        per_device_train_batch_size=config.batch_size // world_size,
        per_device_eval_batch_size=config.eval_batch_size,
        eval_strategy="steps",
        logging_strategy="steps",
        logging_steps=config.eval_steps,
        save_strategy="steps",
        label_names=["labels"],  # PEFT hides them from the Trainer, and compute_metrics would never run
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        disable_tqdm=True,  # our callback draws one bar, in a terminal and in a notebook alike
        bf16=mixed,
        tf32=True if mixed else None,
        dataloader_pin_memory=_on_gpu(),
        dataloader_num_workers=2 if _on_gpu() else 0,
        optim="adamw_torch_fused",
    )
    if arguments.n_gpu > 1:  # without a launcher the Trainer would feed each GPU a batch of its own: 16 would be 32
        arguments._n_gpu = 1
    return arguments


def _make_record(config: RunConfig, output_dir: Path, trainer, lengths, clock: records.Clock) -> dict:
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
        "shape": records.shape_of(trainer.model),
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
        "lora_norms": records.lora_norms(trainer.model),
        "timing": {"seconds": clock.seconds(), "peak_memory_mib": peak_memory_mib()},
    }


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _world_size() -> int:
    from accelerate import PartialState

    return PartialState().num_processes
