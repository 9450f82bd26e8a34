"""Helpers behind `roberta_lora_agnews.ipynb`: parameter-efficient fine-tuning of RoBERTa on AG News.

Import from the modules (`from lora_helpers.training.run import train`); torch and transformers load when first needed.
"""

import logging
import os
import warnings

__version__ = "1.0.0"  # also that of the installed package and of CITATION.cff


def quiet() -> None:
    """Leave the reader our messages and one progress bar. Call before transformers is imported.

    Hidden are the libraries' own bars and remarks about their next versions; errors still show.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger(__name__).setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|pyarrow")
