"""Several processes of one run (torchrun, accelerate launch): which one this is, and which one leads.

With a single process nothing here does anything. `training` and the command line ask.
"""

from .environment import trains_on_gpu


def this_process():
    """accelerate's `PartialState`: which process this is, of how many, and where they wait for each other."""
    from accelerate import PartialState

    # Unless told that no CUDA is used, it takes each process for a run of its own, and all would write the same files.
    return PartialState(cpu=not trains_on_gpu())


def leads() -> bool:
    """Whether this process speaks and writes for all: it locks, seals, records, shows the bar and prints."""
    return this_process().is_main_process
