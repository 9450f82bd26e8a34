"""Helpers behind `roberta_lora_agnews.ipynb`: parameter-efficient fine-tuning of RoBERTa on AG News.

Import from the modules (`from lora_helpers.training.run import train`); torch and transformers load when first needed.
"""

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__version__ = "2.0.0"  # also that of the installed package and of CITATION.cff


def in_notebook() -> bool:
    """Whether what is printed is shown by a notebook: there stderr is red, so our messages and bars go to stdout."""
    return type(sys.stdout).__module__.startswith("ipykernel")


def progress_bar(*, wanted: bool, **named):
    """tqdm's bar, on stderr if it is a terminal, so that no log is filled; in a notebook on stdout."""
    from tqdm import tqdm

    shown = {"file": sys.stdout, "disable": False} if in_notebook() else {"file": sys.stderr, "disable": None}
    return tqdm(**named, **(shown if wanted and shown["file"] else {"disable": True}))  # no file: closed, in a daemon


def quiet() -> None:
    """Show only our messages and one progress bar. Call before transformers is imported.

    Hides the libraries' own bars and their warnings about future versions; errors still show.
    """
    stream = sys.stdout if in_notebook() else sys.stderr
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=stream)
    logging.getLogger(__name__).setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|pyarrow")


@contextmanager
def loading() -> Iterator[None]:
    """Silence the libraries, which would call the head missing although the adapter brings it, and pause the garbage
    collector, whose repeated scans of everything they import take a third of the time to a first answer."""
    with ExitStack() as afterwards:
        if "peft" not in sys.modules and gc.isenabled():
            afterwards.callback(gc.enable)
            gc.disable()
        from transformers.utils import logging as remarks

        afterwards.callback(remarks.set_verbosity, remarks.get_verbosity())
        remarks.set_verbosity_error()
        afterwards.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _keep_to_one_thread() -> None:
    """For a forked child: it inherits thread pools without their threads, and would hang waiting for one."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_keep_to_one_thread)
