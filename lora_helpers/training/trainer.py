"""The Hugging Face Trainer with our order of batches, whole checkpoints, one progress bar, and a stop at a loss that is
not finite. `run` imports this when a run begins, since it loads transformers.

Several processes share each batch by accelerate's own means. Only an epoch's last batch is then not exact:
accelerate fills it up with rows of the epoch's beginning, and the validation loss counts its last batch for less.
(Two, measured: up to there the training losses are those of one process to 1e-6; after it, and in validation, to 0.01.)
"""

import errno
import logging
import math
import shutil
from pathlib import Path

import torch
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback

from .. import progress_bar
from ..batching import LengthGroupedSampler
from ..environment import trains_on_gpu
from ..errors import CheckFailed
from ..evaluation import trainer_metrics
from ..files.manifests import seal
from ..model import longest_input
from ..processes import this_process
from .arguments import Plan, make_arguments

logger = logging.getLogger(__name__)

ANEW = "begin a new run with a lower learning_rate ({}), or --warm-start the checkpoint before"
SHOWN = {"loss": "loss", "eval_loss": "validation loss", "eval_accuracy": "validation accuracy"}  # beside the bar


class RunCallback(TrainerCallback):
    """Logs and evaluates the last step, seals checkpoints, stops on a loss that is not finite, shows progress."""

    def __init__(self, plan: Plan, sampler: LengthGroupedSampler):
        self.plan, self.sampler, self.shown = plan, sampler, {}
        self.bar = progress_bar(wanted=False)

    def on_train_begin(self, args, state, control, **kwargs):
        if args.process_index:  # the Trainer seeds all alike, and the same units would drop out in every process
            torch.manual_seed(args.seed + args.process_index)
        steps = {"total": state.max_steps, "initial": state.global_step, "unit": "step", "mininterval": 1}
        self.bar = progress_bar(wanted=state.is_world_process_zero, desc=self.plan.config.profile, **steps)
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
            require_finite(logs[name], state.global_step, ANEW.format(args.learning_rate))
            self.shown[SHOWN[name]] = f"{logs[name]:.4f}"
        self.bar.set_postfix(self.shown, refresh=False)
        if self.bar.disable and "eval_loss" in logs:  # a line for the log, which has no bar
            told = ", ".join(f"{name} {value}" for name, value in self.shown.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, told)

    def on_save(self, args, state, control, **kwargs):
        this_process().wait_for_everyone()  # every process writes its own random state
        if state.is_world_process_zero:
            if state.global_step == state.max_steps:  # once a run: it is the base's
                self.plan.tokenizer.save_pretrained(self._checkpoint(state))
            about = {"step": state.global_step, "seconds": self.plan.seconds(), **self.plan.details}
            seal(self._checkpoint(state), about)
        this_process().wait_for_everyone()  # a record lists what is sealed, in every process

    def _checkpoint(self, state) -> Path:
        return self.plan.output_dir / f"checkpoint-{state.global_step}"


class FineTuningTrainer(Trainer):
    """The stock Trainer on rows in the order of `sampler`, with the callback of the run."""

    def __init__(self, *, sampler: LengthGroupedSampler, run: RunCallback, **named):
        super().__init__(compute_metrics=trainer_metrics, callbacks=[run], **named)
        self.sampler, self.run = sampler, run
        # Our loss is a mean over a process's rows; with True the Trainer would multiply it by the number of processes.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset=None) -> LengthGroupedSampler:
        """The stock loader draws its rows in the order of our sampler."""
        return self.sampler

    def floating_point_ops(self, inputs: dict) -> int:
        """Not counted: for this number, which nobody reads, the stock Trainer walks through all weights at every step."""
        return 0

    def training_step(self, *arguments, **named) -> torch.Tensor:
        """Stops at a loss that is not finite; on a GPU, where looking costs a wait at every step, the log tells."""
        loss = super().training_step(*arguments, **named)
        if loss.device.type == "cpu":
            mean = self.accelerator.gather(loss).mean().item()  # so that all processes stop at the same step
            require_finite(mean, self.state.global_step + 1, ANEW.format(self.args.learning_rate))
        return loss


def make_trainer(plan: Plan) -> FineTuningTrainer:
    """The Trainer of a run, ready to train."""
    config, lengths = plan.config, plan.train_rows["length"][:]
    sampler = LengthGroupedSampler(lengths, config.batch_size, order=config.batch_order, seed=config.seed)
    # Whole tiles of a GPU's matrix products, unless a row could then be longer than there are positions.
    tile = 8 if trains_on_gpu() and longest_input(plan.model) % 8 == 0 else None
    return FineTuningTrainer(
        model=plan.model,
        args=make_arguments(plan),
        sampler=sampler,
        run=RunCallback(plan, sampler),
        train_dataset=plan.train_rows.remove_columns("length"),
        eval_dataset=plan.validation_rows.sort("length").remove_columns("length"),  # like lengths share a batch
        # Its method, since the Trainer would save a collator's tokenizer beside every checkpoint.
        data_collator=DataCollatorWithPadding(plan.tokenizer, pad_to_multiple_of=tile).__call__,
    )


def require_room(plan: Plan) -> None:
    """Refuse to begin a checkpoint that would not fit: 4 bytes a trained weight and each of its two moments, and 4 MiB."""
    needed = 3 * 4 * sum(p.numel() for p in plan.model.parameters() if p.requires_grad) + 2**22
    free = shutil.disk_usage(plan.output_dir).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 2**20:.1f} MiB are free, a checkpoint needs {needed / 2**20:.1f} MiB")


def require_finite(loss: float, step: int, advice: str) -> None:
    """Stop a run whose loss, the mean over its processes, is NaN or infinite."""
    if not math.isfinite(loss):
        raise CheckFailed(f"the loss is {loss} at step {step}; {advice}")
