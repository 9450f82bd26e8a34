"""What the project hangs into the Trainer: whole checkpoints, a stop at a loss that is not finite, one bar.

`training` imports this when a run begins, since it loads transformers.
"""

from __future__ import annotations

import math
from pathlib import Path

from tqdm import tqdm
from transformers import TrainerCallback

from .checkpoints import seal
from .config import RunConfig
from .errors import CheckFailed


class RunCallback(TrainerCallback):
    """Logs and evaluates the last step, seals checkpoints, stops on a loss that is not finite, shows progress.

    Args:
        config: the run.
        details: what a checkpoint's manifest says beside its step and files.
    """

    def __init__(self, config: RunConfig, details: dict):
        self.config, self.details = config, details

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
        loss = (logs or {}).get("loss", (logs or {}).get("eval_loss", 0.0))
        if not math.isfinite(loss):
            raise CheckFailed(
                f"the loss is {loss} at step {state.global_step}; lower learning_rate ({self.config.learning_rate})"
                " and resume from the checkpoint before"
            )
        names = {"loss": "loss", "eval_loss": "validation loss", "eval_accuracy": "validation accuracy"}
        self.shown |= {names[k]: f"{v:.4f}" for k, v in (logs or {}).items() if k in names}
        self.bar.set_postfix(self.shown, refresh=False)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seal(folder, {"step": state.global_step, "world_size": args.world_size, **self.details})

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
