"""What the project hangs into the Trainer: whole checkpoints, a stop at a loss that is not finite, one bar.

`training` imports this when a run begins, since it loads transformers.
"""

from __future__ import annotations

import math
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from .checkpoints import seal
from .config import RunConfig
from .errors import CheckFailed, InputError, first_line


class RunCallback(TrainerCallback):
    """Logs and evaluates the last step, seals checkpoints, stops on a loss that is not finite, shows progress.

    Args:
        config: the run.
        details: what a checkpoint's manifest says beside step, seconds and files.
        clock: its `seconds()` go into the manifest, so that a resumed run adds to them.
        sampler: gets its epoch here, since neither accelerate nor the Trainer reaches it below a process's shard.
    """

    def __init__(self, config: RunConfig, details: dict, clock, sampler):
        self.config, self.details, self.clock, self.sampler = config, details, clock, sampler

    def on_train_begin(self, args, state, control, **kwargs):
        hidden = not state.is_world_process_zero
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.config.profile,
            unit="step",
            mininterval=1,
            disable=hidden,
        )
        self.shown = {}

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)
        if state.global_step == state.max_steps:
            control.should_log = control.should_evaluate = True
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
        PartialState().wait_for_everyone()  # every process writes its own random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seal(
                folder,
                {
                    "step": state.global_step,
                    "seconds": self.clock.seconds(),
                    "world_size": args.world_size,
                    **self.details,
                },
            )
        PartialState().wait_for_everyone()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def require_finite(loss: float, step: int, learning_rate: float) -> None:
    """Stop a run whose loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise CheckFailed(
            f"the loss is {loss} at step {step}; lower learning_rate ({learning_rate}) and resume from the checkpoint before"
        )


def require_tracker(name: str) -> None:
    """Refuse a tracker that transformers does not know, or whose package is missing."""
    try:
        for callback in get_reporting_integration_callbacks([] if name == "none" else [name]):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to is {name!r}: {first_line(error)}; install the tracker, or use none") from error
