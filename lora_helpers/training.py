"""One `train(config, output_dir)`: the Hugging Face Trainer on a LoRA model, resumable to the bit, with a record.

What is ours around the Trainer: the order of batches (a sampler), whole checkpoints (a callback) and the record.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext
from pathlib import Path

from . import records
from .batching import LengthGroupedSampler, padding_costs
from .checkpoints import (
    hash_file,
    list_checkpoints,
    relative_to_repository,
    step_of,
)
from .config import RunConfig
from .data import Splits, load_ag_news, tokenize
from .errors import InputError
from .evaluation import trainer_metrics
from .model import base_identity, build_model, count_parameters
from .resuming import find_start, require_same_run

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
    """
    from accelerate import PartialState
    from filelock import FileLock, Timeout

    output_dir = Path(output_dir)
    leads = PartialState().is_main_process  # of several processes of one run, this one locks and checks for all
    if leads and not resume and output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(
            f"{output_dir} holds files already; give another --output-dir, or --resume to continue its run"
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(output_dir / ".lock", timeout=0) if leads else nullcontext():
            start = find_start(output_dir, resume, resume_from)
            return _train(config, output_dir, start, allow_other_data)
    except Timeout:
        raise InputError(
            f"{output_dir}: another process is training there; wait for it or give another folder"
        ) from None
    except OSError as error:
        raise InputError(
            f"{output_dir}: {error.strerror or error}; free space or give a folder that can be written"
        ) from error


def next_run_dir(profile: str, runs: Path) -> Path:
    """The next free `runs/PROFILE-N`."""
    numbers = [path.name.removeprefix(f"{profile}-") for path in runs.glob(f"{profile}-*")]
    taken = [int(number) for number in numbers if number.isdigit()]  # mini-agnews-3 is no run of mini
    return runs / f"{profile}-{max(taken, default=0) + 1}"


def _train(config: RunConfig, output_dir: Path, start: Path | None, allow_other_data: bool) -> dict:
    began = time.monotonic()
    splits = load_ag_news(config)
    if start:
        require_same_run(start, config, splits, allow_other_data)
    model, tokenizer = build_model(config)
    encoded = tokenize(splits.train, tokenizer, config.max_length)
    lengths = encoded["length"]
    validation = tokenize(splits.validation, tokenizer, config.max_length).sort("length")  # like lengths share a batch
    details = {
        "config": config.to_dict(),
        "base": base_identity(config.base_model, config.base_revision),
        "data": {"source": splits.source, "rows": _count(splits), "sha256": splits.fingerprints()},
    }
    trainer = _make_trainer(config, output_dir, model, tokenizer, encoded, validation, details)
    if start:
        logger.info("resuming %s at step %d", relative_to_repository(start), step_of(start))
    if start and step_of(start) == config.max_steps:
        _restore_finished(trainer, start)
    else:
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    record = _make_record(config, output_dir, trainer, details, lengths, time.monotonic() - began)
    if start:
        record["resumed_from"] = {"checkpoint": relative_to_repository(start), "other_data_allowed": allow_other_data}
    if trainer.is_world_process_zero():
        records.write_record(output_dir, record)
    return record


def _make_trainer(config, output_dir, model, tokenizer, train_rows, validation_rows, details):
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

    from .callbacks import RunCallback

    sampler = LengthGroupedSampler(train_rows["length"], config.batch_size, order=config.batch_order, seed=config.seed)

    class FineTuningTrainer(Trainer):
        """The stock Trainer with our order of batches."""

        def _get_train_sampler(self, train_dataset=None):
            return sampler

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
    trainer.add_callback(RunCallback(config, details))
    return trainer


def _restore_finished(trainer, last: Path) -> None:
    """The state at the end of a run that was stopped after its last checkpoint; the Trainer would do one step more."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    set_peft_model_state_dict(trainer.model, load_file(last / "adapter_model.safetensors"))
    trainer.state = TrainerState.load_from_json(last / "trainer_state.json")


def _make_arguments(config: RunConfig, output_dir: Path):
    """`TrainingArguments` of a run. Precision follows device and profile: float32 but where a GPU may mix in bf16."""
    import torch
    from transformers import TrainingArguments

    same_name = (
        *("max_steps", "eval_steps", "save_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
        *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
        *("label_smoothing_factor", "seed", "report_to"),
    )
    mixed = config.mixed_precision and _on_gpu()
    world_size = _world_size()
    if config.batch_size % world_size:
        raise InputError(f"batch_size {config.batch_size} cannot be shared by {world_size} processes; take a multiple")
    _require_tracker(config.report_to)
    return TrainingArguments(
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
        bf16=mixed and torch.cuda.is_bf16_supported(),
        tf32=True if mixed else None,
        dataloader_pin_memory=_on_gpu(),
        dataloader_num_workers=2 if _on_gpu() else 0,
        optim="adamw_torch_fused",
    )


def _require_tracker(name: str) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks([] if name == "none" else [name]):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"report_to is {name!r}: {reason}; install the tracker, or use none") from error


def _make_record(config, output_dir, trainer, details, lengths, seconds) -> dict:
    checkpoints = list_checkpoints(output_dir)
    # Wall-time fields of the Trainer's rows say nothing about the run's result; they stay for the curious.
    log = [row for row in trainer.state.log_history if "loss" in row or "eval_loss" in row]
    accuracy = {row["step"]: row["eval_accuracy"] for row in log if "eval_accuracy" in row}
    saved = {step_of(c): accuracy.get(step_of(c)) for c in checkpoints}
    return details | {
        "schema": records.SCHEMA,
        "profile": config.profile,
        "adapter_config": json.loads((checkpoints[-1] / "adapter_config.json").read_text()),
        "environment": records.environment(),
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
        "timing": {"seconds": seconds, "peak_memory_mib": records.peak_memory_mib()},
    }


def _count(splits: Splits) -> dict[str, int]:
    return {"train": len(splits.train), "validation": len(splits.validation)}


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _world_size() -> int:
    from accelerate import PartialState

    return PartialState().num_processes
