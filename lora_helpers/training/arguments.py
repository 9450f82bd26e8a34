"""The `TrainingArguments` of a run, and in them every choice of a run that depends on the device.

`training` calls this; the model's weights are float32 wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import RunConfig
from ..errors import InputError, first_line
from ..processes import this_process

# Fields that TrainingArguments has under the same name.
SAME_NAME = (
    *("max_steps", "eval_steps", "save_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("label_smoothing_factor", "seed", "report_to"),
)


def make_arguments(config: RunConfig, output_dir: Path):
    """`TrainingArguments` of one of the processes that run `config`.

    Raises:
        InputError: the processes cannot share a batch evenly, or the tracker is not to be had.
    """
    import torch
    from transformers import TrainingArguments

    processes = this_process().num_processes
    if config.batch_size % processes:
        raise InputError(
            f"batch_size is {config.batch_size}, wanted a multiple of the {processes} processes that share it"
        )
    require_tracker(config.report_to)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        **{name: getattr(config, name) for name in SAME_NAME},
        per_device_train_batch_size=config.batch_size // processes,
        eval_strategy="steps",
        logging_strategy="steps",
        logging_steps=config.eval_steps,
        save_strategy="steps",
        label_names=["labels"],  # PEFT hides them from the Trainer, and compute_metrics would never run
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        disable_tqdm=True,  # our callback draws one bar, in a terminal and in a notebook alike
        log_level_replica="error",  # as for the process that leads; the stock "warning" would let the others talk
        optim="adamw_torch_fused",
        ddp_find_unused_parameters=False,  # every trainable weight has a gradient at every step
        **_device_choices(config),
    )
    keep_to_one_gpu(arguments)
    arguments.mixed_precision = "bf16" if arguments.bf16 else "no"  # and not what accelerate's configuration says
    if torch.cuda.is_available():  # not by the argument `tf32`: transformers heeds it once a process
        torch.backends.fp32_precision = "tf32" if arguments.bf16 else "ieee"
    return arguments


def keep_to_one_gpu(arguments) -> None:
    """Without a launcher the Trainer would wrap the model and feed each GPU a batch of its own: 16 would be 32."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def padding_multiple() -> int | None:
    """Tokens to whose multiple a batch is padded: 8 on a GPU, where a matrix product then fills whole tiles."""
    import torch

    return 8 if torch.cuda.is_available() else None


@contextmanager
def restored_precision() -> Iterator[None]:
    """Leave float32 arithmetic as it was: TF32 is a switch of the whole process, and whoever predicts after a run
    in the same notebook expects float32."""
    import torch

    before = torch.backends.fp32_precision
    try:
        yield
    finally:
        torch.backends.fp32_precision = before


def _device_choices(config: RunConfig) -> dict:
    import torch

    if not torch.cuda.is_available():
        return {
            "use_cpu": not torch.accelerator.is_available(),
            "per_device_eval_batch_size": config.eval_batch_size,
            "dataloader_pin_memory": False,
        }
    # T4 and older emulate bf16, slowly, and have no TF32.
    mixed = config.mixed_precision and torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "bf16": mixed,  # autocast; the weights stay float32
        # No activation is kept for a backward pass, and bf16 halves the bytes; float32 keeps what the profile says.
        "per_device_eval_batch_size": config.eval_batch_size * (4 if mixed else 1),
        "dataloader_pin_memory": True,
        "accelerator_config": {"non_blocking": True},  # copy the next batch while this one computes
        # Reading and padding 16 rows takes one core about 2 ms, so two workers prepare some 1,000 batches a second.
        "dataloader_num_workers": 2,
        "dataloader_prefetch_factor": 4,  # batches each worker holds ready
        # Else every evaluation would start new ones. (They draw seeds from the CPU's generator, so a resumed run draws
        # fewer of them; on a GPU that generator decides nothing.)
        "dataloader_persistent_workers": True,
    }


def require_tracker(name: str) -> None:
    """Refuse a tracker that transformers does not know, or whose package is missing."""
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks([] if name == "none" else [name]):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to is {name!r}: {first_line(error)}; install the tracker, or use none") from error
