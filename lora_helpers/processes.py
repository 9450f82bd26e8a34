"""Several processes of one run (torchrun, accelerate launch): which one leads, and one error line for all of them.

With a single process nothing here does anything. `training`, `callbacks` and the command line ask.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from .errors import CheckFailed

Result = TypeVar("Result")


def this_process():
    """accelerate's `PartialState`: which process this is, of how many, and where they wait for each other.

    Without a GPU it has to be told so; else it takes each process of a launcher for a run of its own, and all of
    them would write the same files.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def leads() -> bool:
    """Whether this process speaks and writes for all: it locks, seals, records, shows the bar and prints."""
    return this_process().is_main_process


def hush_others() -> None:
    """Leave what is to be said to the process that leads; errors apart."""
    if not leads():
        logging.getLogger(__package__).setLevel(logging.ERROR)


def agree(work: Callable[[], Result]) -> Result:
    """What `work()` returns here; if one of the errors below stopped it in any process, it fails in all, and one says why.

    Else the others would wait at their next meeting for a process that is gone. `work` must not wait for another
    process itself.

    Raises:
        InputError, CheckFailed, OSError: what `work` raised, in the first process that failed.
        SystemExit: in the others, with the same exit status.
    """
    from accelerate.utils import gather_object

    result, error = None, None
    try:
        result = work()
    except (ValueError, CheckFailed, OSError) as caught:  # InputError is a ValueError
        error = caught
    this = this_process()
    statuses = gather_object([_exit_status(error)]) if this.num_processes > 1 else [_exit_status(error)]
    failed = [process for process, status in enumerate(statuses) if status]
    if failed and failed[0] != this.process_index:
        raise SystemExit(statuses[failed[0]])
    if error:
        raise error
    return result


def told_once(error: Exception) -> BaseException:
    """What to raise for an error that every process meets at the same step: itself where the process leads."""
    return error if leads() else SystemExit(_exit_status(error))


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run `main` and exit with its status.

    One of several processes that fails ends at once: threads of torch that may still wait for another process would
    abort an orderly end, with a line of their own ("terminate called …").
    """
    try:
        status = main()
    except SystemExit as stop:  # --help, or another process has said why
        status = stop.code
    if status and "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def lost_another(error: Exception) -> bool:
    """Whether `error` is no fault of this process: another one ended while this one waited for it."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


def _exit_status(error: BaseException | None) -> int:
    """As the command line has it: 0 for none, 1 for a failed check, 2 for bad input."""
    return 0 if error is None else 1 if isinstance(error, CheckFailed) else 2
