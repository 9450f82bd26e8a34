"""One sentence for whatever stops a run: what happened, the last whole checkpoint, and what to type to go on.

`run.train` does its work inside `failures_in_one_sentence`.
"""

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from ..checkpoints import list_checkpoints
from ..config import PROFILES, RunConfig, describe_fields
from ..errors import CheckFailed, InputError, Stopped, first_line
from ..processes import leads
from .resuming import Beginning


@contextmanager
def failures_in_one_sentence(config: RunConfig, output_dir: Path, beginning: Beginning) -> Iterator[None]:
    """Raise what stops a run as one sentence: `Stopped` by the user, `CheckFailed` for damage or a non-finite loss,
    else `InputError`; bugs pass through. An error that all processes meet is raised by the leader alone."""
    import torch

    try:
        yield
    except (InputError, CheckFailed) as error:
        raise _of_all(error) from error.__cause__
    except UnpicklingError as error:  # weights_only=True refuses whatever is no tensor
        reason = f"optimizer, scheduler or random state cannot be read: {first_line(error)}"
        raise _of_all(CheckFailed(reason)) from error
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {_way_on(config, output_dir, beginning)}") from None
    except (OSError, MemoryError, SafetensorError, RuntimeError) as error:
        said, way_on = first_line(error), _way_on(config, output_dir, beginning)
        if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
            raise _of_all(CheckFailed(f"another process of this run ended, and said why; {way_on}")) from error
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
            less = "a new run with a smaller batch_size or max_length, or --resume with a smaller eval_batch_size"
            raise InputError(f"{output_dir}: {said}; to use less memory: {less}; {way_on}") from error
        # torch.save's writer; a process that the system ended (what fails inside one is "Caught … in DataLoader worker")
        from_outside = "inline_container.cc", "DataLoader worker (pid"
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in from_outside):
            raise
        reason, file = getattr(error, "strerror", None) or said, getattr(error, "filename", None)
        raise InputError(f"{output_dir}: {reason}{f' ({file})' if file else ''}; mend that; {way_on}") from error


def _of_all(error: InputError | CheckFailed) -> BaseException:
    """What to raise for an error that every process of a run meets: itself where the process leads."""
    return error if leads() else SystemExit(1 if isinstance(error, CheckFailed) else 2)


def _way_on(config: RunConfig, output_dir: Path, beginning: Beginning) -> str:
    """The last whole checkpoint, and how the run goes on from it, at the prompt and in a notebook."""
    last = list_checkpoints(output_dir)[-1:]
    said = vars(beginning) | ({"resume": True, "resume_from": None, "warm_start": None} if last else {})
    start = {name: value if value is True else str(value) for name, value in said.items() if value} or {"resume": True}
    sentences = [f"last whole checkpoint: {last[0].name if last else 'none'}"]
    if config.profile in PROFILES:
        sentences.append(f"to go on: {_command(config, {'output_dir': str(output_dir)} | start)}")
    keywords = ", ".join(f"{name}={value!r}" for name, value in start.items())
    return "; ".join([*sentences, f"in a notebook: record = train(config, run_dir, {keywords})"])


def _command(config: RunConfig, options: dict) -> str:
    """`python -m lora_helpers train …` with `options` and every field that differs from the profile's."""
    usual, fields = (describe_fields(each) for each in (PROFILES[config.profile], config))
    changed = {row["field"]: row["value"] for row, was in zip(fields, usual, strict=True) if row != was}
    words = ["python", "-m", "lora_helpers", "train", config.profile]
    for name, value in (options | changed).items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
