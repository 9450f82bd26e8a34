"""One `train(config, output_dir)`: the Hugging Face Trainer on a LoRA model, resumable to the bit, with a record.

What is ours around the Trainer: the order of batches (a sampler), whole checkpoints (a callback) and the record.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import time
from pathlib import Path

from . import records
from .batching import LengthGroupedSampler, padding_costs
from .checkpoints import hash_file, list_checkpoints, read_manifest, relative_to_repository, seal, step_of
from .checkpoints import verify_checkpoint
from .config import CheckFailed, InputError, RunConfig
from .data import Splits, load_ag_news, tokenize
from .evaluation import trainer_metrics
from .model import base_identity, build_model, count_parameters

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
    from filelock import FileLock, Timeout

    output_dir = Path(output_dir)
    if not resume and output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(f"{output_dir} holds files already; give another --output-dir, or --resume to continue its run")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(output_dir / ".lock", timeout=0):
            start = _find_start(output_dir, resume, resume_from)
            return _train(config, output_dir, start, allow_other_data)
    except Timeout:
        raise InputError(f"{output_dir}: another process is training there; wait for it or give another folder") from None
    except OSError as error:
        raise InputError(f"{output_dir}: {error.strerror or error}; free space or give a folder that can be written") from error


def next_run_dir(profile: str, runs: Path) -> Path:
    """The next free `runs/PROFILE-N`."""
    numbers = [path.name.removeprefix(f"{profile}-") for path in runs.glob(f"{profile}-*")]
    taken = [int(number) for number in numbers if number.isdigit()]  # mini-agnews-3 is no run of mini
    return runs / f"{profile}-{max(taken, default=0) + 1}"


def _train(config: RunConfig, output_dir: Path, start: Path | None, allow_other_data: bool) -> dict:
    began = time.monotonic()
    splits = load_ag_news(config)
    if start:
        _require_same_run(start, config, splits, allow_other_data)
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
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    record = _make_record(config, output_dir, trainer, details, lengths, time.monotonic() - began)
    if start:
        record["resumed_from"] = {"checkpoint": relative_to_repository(start), "other_data_allowed": allow_other_data}
    if trainer.is_world_process_zero():
        records.write_record(output_dir, record)
    return record


def _make_trainer(config, output_dir, model, tokenizer, train_rows, validation_rows, details):
    from transformers import DataCollatorWithPadding, PrinterCallback, Trainer

    sampler = LengthGroupedSampler(
        train_rows["length"], config.batch_size, order=config.batch_order, seed=config.seed
    )

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
    trainer.add_callback(_make_callback(config, details))
    return trainer


def _make_arguments(config: RunConfig, output_dir: Path):
    """`TrainingArguments` of a run. Precision follows the device: bf16 autocast on a GPU that has it, else float32."""
    import torch
    from transformers import TrainingArguments

    same_name = (
        *("max_steps", "eval_steps", "save_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
        *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
        *("label_smoothing_factor", "seed", "report_to"),
    )
    world_size = _world_size()
    if config.batch_size % world_size:
        raise InputError(f"batch_size {config.batch_size} cannot be shared by {world_size} processes; take a multiple")
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
        bf16=_on_gpu() and torch.cuda.is_bf16_supported(),
        tf32=True if _on_gpu() else None,
        dataloader_pin_memory=_on_gpu(),
        dataloader_num_workers=2 if _on_gpu() else 0,
        optim="adamw_torch_fused",
    )


def _make_callback(config: RunConfig, details: dict):
    from tqdm import tqdm
    from transformers import TrainerCallback

    class RunCallback(TrainerCallback):
        """Logs and evaluates the last step, seals checkpoints, stops on a loss that is not finite, shows progress."""

        def on_train_begin(self, args, state, control, **kwargs):
            hidden = not state.is_world_process_zero
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=config.profile, unit="step", mininterval=1, disable=hidden
            )
            self.shown = {}

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(1)
            if state.global_step == state.max_steps:
                control.should_log = control.should_evaluate = True
            return control

        def on_log(self, args, state, control, logs=None, **kwargs):
            loss = (logs or {}).get("loss", (logs or {}).get("eval_loss", 0.0))
            if not math.isfinite(loss):
                raise CheckFailed(
                    f"the loss is {loss} at step {state.global_step}; lower learning_rate ({config.learning_rate})"
                    " and resume from the checkpoint before"
                )
            names = {"loss": "loss", "eval_loss": "validation loss", "eval_accuracy": "validation accuracy"}
            self.shown |= {names[k]: f"{v:.4f}" for k, v in (logs or {}).items() if k in names}
            self.bar.set_postfix(self.shown, refresh=False)

        def on_save(self, args, state, control, **kwargs):
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                seal(folder, {"step": state.global_step, "world_size": args.world_size, **details})

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.close()

    return RunCallback()


def _find_start(output_dir: Path, resume: bool, resume_from: Path | str | None) -> Path | None:
    """The checkpoint to continue, None to begin at step 0."""
    if resume_from is not None:
        checkpoint = Path(resume_from).resolve()
        if checkpoint.is_dir() and read_manifest(checkpoint) is None:
            raise InputError(f"{checkpoint} has no manifest: it was not written by this project and cannot be resumed")
        verify_checkpoint(checkpoint)
        return checkpoint
    if not resume:
        return None
    unfinished = {f for f in output_dir.glob("checkpoint-*")} - set(list_checkpoints(output_dir))
    for folder in sorted(unfinished):
        logger.warning("%s skipped: it has no manifest, its writing was cut short", folder.name)
    for checkpoint in reversed(list_checkpoints(output_dir)):
        try:
            verify_checkpoint(checkpoint)
            return checkpoint.resolve()
        except CheckFailed as error:
            logger.warning("%s skipped: %s", checkpoint.name, error)
    return None


def _require_same_run(start: Path, config: RunConfig, splits: Splits, allow_other_data: bool) -> None:
    manifest = read_manifest(start)
    its = RunConfig(**manifest["config"])
    changed = config.differences(its)
    if allow_other_data:
        changed = {k: v for k, v in changed.items() if k not in ("dataset", "dataset_revision")}
    if changed:
        listed = "; ".join(f"{name} is {mine!r} here, {other!r} there" for name, (mine, other) in changed.items())
        raise InputError(f"{start} was trained with another configuration: {listed}; use the same values")
    here, there = splits.fingerprints(), manifest["data"]["sha256"]
    if here != there and not allow_other_data:
        shown = "; ".join(f"{k} {here[k][:12]}… here, {there[k][:12]}… there" for k in here if here[k] != there[k])
        raise InputError(f"{start} was trained on other data (SHA-256: {shown}); --allow-other-data continues all the same")
    if here != there:
        logger.warning("continuing on other data than the checkpoint's, as --allow-other-data says")
    if manifest["step"] > config.max_steps:
        raise InputError(f"{start} is at step {manifest['step']}, past max_steps ({config.max_steps})")


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
        "shape": _shape(trainer.model),
        "log": log,
        "checkpoints": {
            str(step_of(c)): {"validation_accuracy": saved[step_of(c)], "adapter_sha256": hash_file(c / "adapter_model.safetensors")}
            for c in checkpoints
        },
        "best_saved_step": max(saved, key=lambda step: (saved[step] or 0.0, -step)),
        "best_evaluated_step": max(accuracy, key=lambda step: (accuracy[step], -step)),
        "lengths": _histogram(lengths),
        "padding": padding_costs(lengths, config.batch_size, seed=config.seed),
        "lora_norms": lora_norms(trainer.model),
        "timing": {"seconds": seconds, "peak_memory_mib": peak_memory_mib()},
    }


def lora_norms(model) -> dict[str, float]:
    """Frobenius norm of the update (alpha / r) B A of every adapted layer, by the layer's name."""
    norms = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            update = module.lora_B["default"].weight @ module.lora_A["default"].weight
            norms[name.removeprefix("base_model.model.")] = module.scaling["default"] * update.norm().item()
    return norms


def peak_memory_mib() -> dict[str, float]:
    """The highest resident memory of this process so far, and of the GPU's allocator, in MiB."""
    import torch

    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # Linux counts in KiB
    return peak | ({"gpu": torch.cuda.max_memory_allocated() / 2**20} if _on_gpu() else {})


def _shape(model) -> dict:
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    attributes = {name: getattr(model.config, name, None) for name in names}
    return attributes


def _histogram(lengths) -> dict[str, int]:
    """Examples by length in tokens."""
    import numpy as np

    tokens, counts = np.unique(lengths, return_counts=True)
    return {str(t): int(c) for t, c in zip(tokens, counts, strict=True)}


def _count(splits: Splits) -> dict[str, int]:
    return {"train": len(splits.train), "validation": len(splits.validation)}


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _world_size() -> int:
    from accelerate import PartialState

    return PartialState().num_processes
