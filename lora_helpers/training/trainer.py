"""The Hugging Face Trainer of a run: its `Plan`, the arguments that follow from it and from the device, our order of
batches, whole checkpoints, one progress bar, and a stop at a loss that is not finite. Weights are float32 on every device.
`run` imports this when a run begins, since it loads transformers.

Several processes share each batch by accelerate's own means. Not exact with them is the last batch of an epoch:
accelerate fills it up with rows of the epoch's beginning, and the validation loss counts its last batch for less.
(Two, measured: up to there the training losses are those of one process to 1e-6; after it, and in validation, to 0.01.)
"""

import errno
import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from tqdm import tqdm
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .. import in_notebook
from ..batching import LengthGroupedSampler
from ..config import RunConfig
from ..environment import has_fast_bfloat16
from ..errors import CheckFailed, InputError, first_line
from ..evaluation import trainer_metrics
from ..files.manifests import seal
from ..processes import this_process

SHOWN = {"loss": "loss", "eval_loss": "validation loss", "eval_accuracy": "validation accuracy"}  # beside the bar
FLOAT32, BFLOAT16 = "float32", "bfloat16 autocast"  # as records and manifests call them

# Weights from which a CPU gains by bfloat16: at 110 million a step took half the time (AMD Zen 4, two cores). For the
# bundled base, of 7 million, nobody has measured a gain, and in float32 its runs are the same on every processor.
LARGE = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run: its configuration, where it writes, what it trains, and on which rows."""

    config: RunConfig
    output_dir: Path
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    train_rows: Dataset  # as `data.tokenize` gives them
    validation_rows: Dataset  # the same
    details: dict = field(default_factory=dict)  # what manifests and record say of the run as a whole
    began: float = 0.0  # by `time.monotonic`, as if it had never been interrupted

    def seconds(self) -> float:
        """Seconds so far, those before it was resumed included."""
        return time.monotonic() - self.began


def choose_arithmetic(config: RunConfig, model) -> str:
    """FLOAT32, or BFLOAT16 where `mixed_precision` asks for it and the machine gains by it."""
    gains = has_fast_bfloat16() and (torch.cuda.is_available() or model.num_parameters() >= LARGE)
    return BFLOAT16 if config.mixed_precision and gains else FLOAT32


class OneDeviceArguments(TrainingArguments):
    """One device a process: without a launcher the Trainer feeds each of two GPUs 16 rows, and the step has 32."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


def make_arguments(plan: Plan) -> OneDeviceArguments:
    """The arguments of one of the processes that share a run. Refused: a batch that they cannot share evenly."""
    config, processes, on_gpu = plan.config, this_process().num_processes, torch.cuda.is_available()
    mixed = choose_arithmetic(config, plan.model) == BFLOAT16
    shared = {each.name for each in fields(config)} & {each.name for each in fields(TrainingArguments)}
    if config.batch_size % processes:
        its = f"batch_size is {config.batch_size}"
        raise InputError(f"{its}, wanted a multiple of the {processes} processes that share it")
    _require_tracker(config.report_to)
    arguments = OneDeviceArguments(
        output_dir=str(plan.output_dir),
        **{name: getattr(config, name) for name in shared},
        # accelerate splits every batch among the processes, so these are the rows of all of them.
        accelerator_config={"split_batches": True, "non_blocking": on_gpu},
        per_device_train_batch_size=config.batch_size,
        # No activation is kept in evaluation, and bfloat16 halves the bytes; float32 keeps what the profile says.
        per_device_eval_batch_size=config.eval_batch_size * (4 if mixed and on_gpu else 1) * processes,
        eval_strategy="steps",
        logging_steps=config.eval_steps,
        label_names=["labels"],  # PEFT hides them from the Trainer, and compute_metrics would never run
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        disable_tqdm=True,  # our callback draws one bar, in a terminal and in a notebook alike
        log_level_replica="error",  # as for the process that leads; the stock "warning" would let the others talk
        optim="adamw_torch_fused",
        ddp_find_unused_parameters=False,  # every trainable weight has a gradient at every step
        bf16=mixed,  # autocast; adapters, head, optimizer and loss stay float32
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        # Reading and padding 16 rows takes one core about 2 ms, so two workers prepare some 1,000 batches a second.
        dataloader_num_workers=2 if on_gpu else 0,
        dataloader_prefetch_factor=4 if on_gpu else None,  # batches each worker holds ready
        dataloader_persistent_workers=on_gpu,  # else every evaluation would start new ones
    )
    arguments.mixed_precision = "bf16" if mixed else "no"  # and not what accelerate's configuration says
    if on_gpu:  # not by the argument `tf32`: transformers heeds it once a process
        torch.backends.fp32_precision = "tf32" if mixed else "ieee"
    return arguments


@contextmanager
def restored_precision() -> Iterator[None]:
    """Leave TF32, a switch of the whole process, as it was: who predicts after a run in a notebook expects float32."""
    before = torch.backends.fp32_precision
    try:
        yield
    finally:
        torch.backends.fp32_precision = before


def _require_tracker(name: str) -> None:
    """Refuse a tracker that transformers does not know, or whose package is missing."""
    try:
        for callback in get_reporting_integration_callbacks(name):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to is {name!r}: {first_line(error)}; install the tracker, or use none") from error


class RunCallback(TrainerCallback):
    """Logs and evaluates the last step, seals checkpoints, stops on a loss that is not finite, shows progress."""

    def __init__(self, plan: Plan, sampler: LengthGroupedSampler):
        self.plan, self.sampler, self.shown = plan, sampler, {}
        self.bar = tqdm(disable=True)

    def on_train_begin(self, args, state, control, **kwargs):
        if args.process_index:  # the Trainer seeds all alike, and the same units would drop out in every process
            torch.manual_seed(args.seed + args.process_index)
        self.bar = tqdm(
            desc=self.plan.config.profile, total=state.max_steps, initial=state.global_step, unit="step", mininterval=1,
            file=sys.stdout if in_notebook() else sys.stderr, disable=not state.is_world_process_zero,
        )  # fmt: skip
        require_room(self.plan)

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Not left to the Trainer: how far it and accelerate look below a loader changes with their versions.
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)
        if state.global_step == state.max_steps:
            control.should_log = control.should_evaluate = True
        if control.should_save:
            require_room(self.plan)
            # A folder that stands there was skipped to resume; nothing of it may be sealed.
            if state.is_world_process_zero:
                shutil.rmtree(self._checkpoint(state), ignore_errors=True)
            this_process().wait_for_everyone()

    def on_log(self, args, state, control, logs, **kwargs):
        for name in (name for name in SHOWN if name in logs):
            require_finite(logs[name], state.global_step, args.learning_rate)
            self.shown[SHOWN[name]] = f"{logs[name]:.4f}"
        self.bar.set_postfix(self.shown, refresh=False)

    def on_save(self, args, state, control, **kwargs):
        this_process().wait_for_everyone()  # every process writes its own random state
        if state.is_world_process_zero:
            if state.global_step == state.max_steps:  # once a run: it is the base's
                self.plan.tokenizer.save_pretrained(self._checkpoint(state))
            about = {"step": state.global_step, "seconds": self.plan.seconds(), **self.plan.details}
            seal(self._checkpoint(state), about)

    def _checkpoint(self, state) -> Path:
        return self.plan.output_dir / f"checkpoint-{state.global_step}"


class FineTuningTrainer(Trainer):
    """The stock Trainer on rows in the order of our sampler."""

    def _get_train_sampler(self, train_dataset=None) -> LengthGroupedSampler:
        return self.sampler

    def training_step(self, *arguments, **named) -> torch.Tensor:
        """Stops at a loss that is not finite; on a GPU, where looking costs a wait at every step, the log tells."""
        loss = super().training_step(*arguments, **named)
        if loss.device.type == "cpu":
            mean = self.accelerator.gather(loss).mean().item()  # so that all processes stop at the same step
            require_finite(mean, self.state.global_step + 1, self.args.learning_rate)
        return loss


def make_trainer(plan: Plan) -> FineTuningTrainer:
    """The Trainer of a run, ready to train."""
    config, lengths = plan.config, plan.train_rows["length"][:]
    sampler = LengthGroupedSampler(lengths, config.batch_size, order=config.batch_order, seed=config.seed)
    run = RunCallback(plan, sampler)
    whole_tiles = 8 if torch.cuda.is_available() else None  # tokens, of a GPU's matrix products
    trainer = FineTuningTrainer(
        model=plan.model,
        args=make_arguments(plan),
        train_dataset=plan.train_rows.remove_columns("length"),
        eval_dataset=plan.validation_rows.sort("length").remove_columns("length"),  # like lengths share a batch
        # Its method, since the Trainer would save a collator's tokenizer beside every checkpoint.
        data_collator=DataCollatorWithPadding(plan.tokenizer, pad_to_multiple_of=whole_tiles).__call__,
        compute_metrics=trainer_metrics,
        callbacks=[run],
    )
    trainer.sampler, trainer.run = sampler, run
    # Our loss is a mean over a process's rows; with True the Trainer would multiply it by the number of processes.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    return trainer


def require_room(plan: Plan) -> None:
    """Refuse to begin a checkpoint that would not fit: 4 bytes a trained weight and each of its two moments, and 4 MiB."""
    needed = 3 * 4 * sum(p.numel() for p in plan.model.parameters() if p.requires_grad) + 2**22
    free = shutil.disk_usage(plan.output_dir).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 2**20:.1f} MiB are free, a checkpoint needs {needed / 2**20:.1f} MiB")


def require_finite(loss: float, step: int, learning_rate: float) -> None:
    """Stop a run whose loss, the mean over its processes, is NaN or infinite."""
    if not math.isfinite(loss):
        advice = f"lower learning_rate ({learning_rate}) and resume from the checkpoint before"
        raise CheckFailed(f"the loss is {loss} at step {step}; {advice}")
