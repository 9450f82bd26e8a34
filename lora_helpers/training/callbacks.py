"""What the project hangs into the Trainer: whole checkpoints, a stop at a loss that is not finite, one bar.

`training` imports this when a run begins, since it loads transformers.
"""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from ..config import RunConfig
from ..errors import CheckFailed
from ..files.manifests import seal
from ..processes import this_process, told_once


class RunCallback(TrainerCallback):
    """Logs and evaluates the last step, seals checkpoints, stops on a loss that is not finite, shows progress.

    Args:
        config: the run.
        details: what a checkpoint's manifest says beside step, seconds and files.
        clock: its `seconds()` go into the manifest, so that a resumed run adds to them.
        sampler: gets its epoch here; how far accelerate and the Trainer reach below a loader changes with their versions.
    """

    def __init__(self, config: RunConfig, details: dict, clock, sampler):
        self.config, self.details, self.clock, self.sampler = config, details, clock, sampler
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        hidden = not state.is_world_process_zero
        if args.process_index:  # the Trainer seeds all alike, and the same units would drop out in every process
            torch.manual_seed(args.seed + args.process_index)
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.config.profile,
            unit="step",
            mininterval=1,
            disable=hidden,
        )
        self.shown = {}
        require_room(Path(args.output_dir), kwargs["model"])

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)
        if state.global_step == state.max_steps:
            control.should_log = control.should_evaluate = True
        if control.should_save:
            require_room(Path(args.output_dir), kwargs["model"])
            # A folder that stands there was skipped to resume; nothing of it may be sealed.
            if state.is_world_process_zero:
                shutil.rmtree(_checkpoint_folder(args, state), ignore_errors=True)
            this_process().wait_for_everyone()
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in ("loss", "eval_loss"):
            require_finite((logs or {}).get(name, 0.0), state.global_step, self.config.learning_rate)
        names = {"loss": "loss", "eval_loss": "validation loss", "eval_accuracy": "validation accuracy"}
        self.shown |= {names[k]: f"{v:.4f}" for k, v in (logs or {}).items() if k in names}
        self.bar.set_postfix(self.shown, refresh=False)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))

    def on_save(self, args, state, control, **kwargs):
        this_process().wait_for_everyone()  # every process writes its own random state
        if state.is_world_process_zero:
            seal(
                _checkpoint_folder(args, state),
                {
                    "step": state.global_step,
                    "seconds": self.clock.seconds(),
                    "world_size": args.world_size,
                    **self.details,
                },
            )
        this_process().wait_for_everyone()

    def close(self) -> None:
        """End the bar's line, so that what is said next, an error perhaps, begins a new one."""
        if self.bar is not None:
            self.bar.close()


def _checkpoint_folder(args, state) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def require_room(folder: Path, model) -> None:
    """Refuse to begin a checkpoint that would not fit, before it fills the disk.

    Raises:
        OSError: what is free there, and what is needed: 4 bytes for each trained weight and for its two moments in
            AdamW, and 4 MiB for tokenizer, log and states.
    """
    needed = 3 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) + 2**22
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 2**20:.1f} MiB are free, a checkpoint needs {needed / 2**20:.1f} MiB")


def require_finite(loss: float, step: int, learning_rate: float) -> None:
    """Stop a run whose loss, the mean over its processes, is NaN or infinite."""
    if not math.isfinite(loss):
        raise told_once(
            CheckFailed(
                f"the loss is {loss} at step {step};"
                f" lower learning_rate ({learning_rate}) and resume from the checkpoint before"
            )
        )
