"""What a run is made of, its `Plan`, and the `TrainingArguments` that follow from it and from the device. Weights are
float32 on every device. `run` imports this when a run begins, since it loads transformers.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..config import RunConfig
from ..environment import has_fast_bfloat16, trains_on_gpu
from ..errors import InputError, first_line
from ..processes import this_process

FLOAT32, BFLOAT16 = "float32", "bfloat16 autocast"  # as records and manifests call them

# Weights from which a CPU gains by bfloat16: a step took half of its time at 110 million (AMD Zen 4), 0.7 of it at 124
# (Intel Xeon with AMX; two cores each). At 7 million, those of the bundled base, a gain is not told from none.
LARGE = 50_000_000
# Switches for TF32 and the like, less precise products; `set_float32_matmul_precision` sets the last two.
SWITCHES = (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


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
    gains = has_fast_bfloat16() and (trains_on_gpu() or model.num_parameters() >= LARGE)
    return BFLOAT16 if config.mixed_precision and gains else FLOAT32


class OneDeviceArguments(TrainingArguments):
    """One device a process: without a launcher the Trainer feeds each of two GPUs 16 rows, and the step has 32."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


def common_arguments(config, output_dir: Path) -> dict:
    """What fine-tuning and pretraining tell the Trainer alike: the fields of its own names, and how both run."""
    shared = {each.name for each in fields(config)} & {each.name for each in fields(TrainingArguments)}
    return {name: getattr(config, name) for name in shared} | {
        "output_dir": str(output_dir),
        "eval_strategy": "steps",
        "logging_steps": config.eval_steps,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "optim": "adamw_torch_fused",
        "use_cpu": not trains_on_gpu(),  # Apple's GPU does not keep its random state
    }


def make_arguments(plan: Plan) -> OneDeviceArguments:
    """The arguments of one of the processes that share a run. Refused: a batch that they cannot share evenly."""
    config, processes, on_gpu = plan.config, this_process().num_processes, trains_on_gpu()
    mixed = choose_arithmetic(config, plan.model) == BFLOAT16
    workers = on_gpu and os.name != "nt"  # on Windows each would import torch again, for longer than a short run takes
    if config.batch_size % processes:
        its = f"batch_size is {config.batch_size}"
        raise InputError(f"{its}, wanted a multiple of the {processes} processes that share it")
    _require_tracker(config.report_to)
    arguments = OneDeviceArguments(
        **common_arguments(config, plan.output_dir),
        # accelerate splits every batch among the processes, so these are the rows of all of them.
        accelerator_config={"split_batches": True, "non_blocking": on_gpu},
        per_device_train_batch_size=config.batch_size,
        # No activation is kept in evaluation, and bfloat16 halves the bytes; float32 keeps what the profile says.
        per_device_eval_batch_size=config.eval_batch_size * (4 if mixed and on_gpu else 1) * processes,
        disable_tqdm=True,  # our callback draws one bar, in a terminal and in a notebook alike
        log_level_replica="error",  # as for the process that leads; the stock "warning" would let the others talk
        ddp_find_unused_parameters=False,  # every trainable weight has a gradient at every step
        bf16=mixed,  # autocast; adapters, head, optimizer and loss stay float32
        dataloader_pin_memory=on_gpu,
        # Reading and padding 16 rows takes one core about 2 ms, so two workers prepare some 1,000 batches a second.
        dataloader_num_workers=2 if workers else 0,
        dataloader_prefetch_factor=4 if workers else None,  # batches each worker holds ready
        dataloader_persistent_workers=workers,  # else every evaluation would start new ones
    )
    arguments.mixed_precision = "bf16" if mixed else "no"  # and not what accelerate's configuration says
    for switch in SWITCHES:  # not by the argument `tf32`: transformers heeds it once a process
        switch.fp32_precision = "tf32" if mixed and on_gpu else "ieee"
    return arguments


@contextmanager
def restored_precision() -> Iterator[None]:
    """Leave TF32, a switch of the whole process, as it was: who predicts after a run in a notebook expects float32."""
    before = [switch.fp32_precision for switch in SWITCHES]
    try:
        yield
    finally:
        for switch, precision in zip(SWITCHES, before, strict=True):
            switch.fp32_precision = precision


def _require_tracker(name: str) -> None:
    """Refuse a tracker that transformers does not know, or whose package is missing."""
    try:
        for callback in get_reporting_integration_callbacks(name):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to is {name!r}: {first_line(error)}; install the tracker, or use none") from error
