"""`Classifier`: a checkpoint that predicts, on a list of texts, on a file, in a stream.

The adapter is merged into the base, rows are sorted by length inside a window and batched by tokens; results come
back in the order of the input.
"""

from __future__ import annotations

import csv
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .batching import batches_by_tokens, pad
from .checkpoints import Verification, load_checkpoint
from .config import LABELS
from .environment import best_device
from .errors import InputError, first_line
from .evaluation import calibration, metric, to_digits
from .field_checks import shown
from .files.documents import read_documents
from .model import longest_input

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

logger = logging.getLogger(__name__)

WINDOW = 4096  # documents sorted together; more would cost memory and save no padding
BATCH_TOKENS = 1024  # tokens a batch on a CPU, padding included; at 4096 roberta-base takes 1.5 times as long
GPU_BATCH_TOKENS = 65536


class Classifier:
    """A sequence classifier with merged adapter, in evaluation mode, float32.

    Make one with `Classifier.from_checkpoint`.
    """

    def __init__(self, model, tokenizer, *, max_length: int, verification: Verification | None = None):
        self.device = best_device()
        self.model = model.eval().to(self.device)
        self.tokenizer, self.max_length, self.verification = tokenizer, max_length, verification

    @classmethod
    def from_checkpoint(cls, checkpoint: Path | str, *, max_length: int | None = None) -> Classifier:
        """Load a checkpoint folder, whole or foreign, after verifying it.

        `max_length` (tokens, 3 or more) defaults to what the run was trained with, or to the base's longest input.

        Raises: as `checkpoints.verify_checkpoint`; InputError for another `max_length`.
        """
        if max_length is not None and max_length < 3:
            raise InputError(f"max_length is {max_length}, wanted 3 or more: <s>, one token of text, </s>")
        model, tokenizer, verification = load_checkpoint(checkpoint)
        max_length = min(max_length or verification.max_length, longest_input(model))
        return cls(model.merge_and_unload(), tokenizer, max_length=max_length, verification=verification)

    def predict(self, texts: Sequence[str]) -> pd.DataFrame:
        """One row a text, in order: text, label (int, 0-3), name, confidence (probability of the label).

        Any string is a text, the empty one too. Half of a surrogate pair, which UTF-8 cannot hold, is read and shown
        as `?`, and one notice says in how many texts.

        Raises:
            InputError: `texts` is no list of strings; the first item that is no string is named.
        """
        import pandas as pd

        texts = list(_require_texts(texts))
        probabilities = self.predict_probabilities(texts)
        label = probabilities.argmax(axis=1)
        return pd.DataFrame({
            "text": [_checked(text, number) for number, text in enumerate(texts)],
            "label": label,
            "name": [LABELS[i] for i in label],
            "confidence": probabilities.max(axis=1),
        })  # fmt: skip

    def predict_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Class probabilities <float32>[len(texts), 4], rows in the order of `texts`."""
        windows = [self._classify(window, WINDOW * number) for number, window in enumerate(_windows(_noticed(texts)))]
        return np.concatenate(windows) if windows else np.empty((0, len(LABELS)), dtype=np.float32)

    def predict_file(
        self, source: Path | str, target: Path | str, *, probabilities: bool = False, progress: bool = True
    ) -> int:
        """Label every document of `source` and write `target`, a CSV file `ID,Label` (ID from 0, label 0-3, file order).

        All or nothing: one row that cannot be read refuses the file and is named, for a gap or a guess would give
        every row after it another's label. An error or an interrupt (Ctrl-C) leaves no file behind.

        Args:
            probabilities: add LabelName and one column a class.
            progress: show a bar on stderr.

        Returns:
            The number of documents.

        Raises:
            InputError: `target` exists, is no CSV name or cannot be written, or a row of `source` cannot be read.
        """
        from tqdm import tqdm

        target = Path(target)
        _require_new_csv(target)
        partial = target.with_name(f".{secrets.token_hex(8)}.partial")  # short: the target's name may be at the limit
        header = ["ID", "Label"] + (["LabelName", *LABELS] if probabilities else [])
        count = 0
        try:
            with partial.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(header)
                windows = _windows(_noticed(document.text for document in read_documents(source)))
                for window in tqdm(windows, desc="predict", unit="window", disable=not progress):
                    for row in self._classify(window, count):
                        label = int(row.argmax())
                        extra = [LABELS[label], *(f"{p:.6f}" for p in row)] if probabilities else []
                        writer.writerow([count, label, *extra])
                        count += 1
            os.replace(partial, target)
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise InputError(f"{target}: cannot be written ({reason}); nothing was kept") from error
        finally:
            partial.unlink(missing_ok=True)
        return count

    def _classify(self, texts: list[str], start: int) -> np.ndarray:
        """Probabilities <float32>[len(texts), 4] of one window, whose first text is number `start`."""
        import torch

        rows = self.tokenizer(
            [_checked(text, i) for i, text in enumerate(texts, start)], truncation=True, max_length=self.max_length
        )["input_ids"]
        budget = BATCH_TOKENS if self.device.type == "cpu" else GPU_BATCH_TOKENS
        results = np.empty((len(rows), len(LABELS)), dtype=np.float32)
        with torch.inference_mode():
            for batch in batches_by_tokens([len(row) for row in rows], budget):
                inputs = pad([rows[i] for i in batch], self.tokenizer.pad_token_id)
                logits = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()}).logits
                results[batch] = logits.float().softmax(dim=-1).cpu().numpy()
        return results


def evaluate_classifier(classifier: Classifier, rows: Dataset) -> dict:
    """Every score of `scores`, `calibration` and `predictions` (a digit a row) on labelled rows (`text`, `label`)."""
    probabilities = classifier.predict_probabilities(rows["text"][:])
    predictions, references = probabilities.argmax(axis=1), np.array(rows["label"][:])
    result = metric().compute(predictions=predictions, references=references)
    return result | {"calibration": calibration(probabilities, references), "predictions": to_digits(predictions)}


def _windows(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while window := list(islice(stream, WINDOW)):
        yield window


def _require_texts(texts) -> Iterable:
    """`texts` as something to walk through; a string is one text. A table or dict would give its column names."""
    if isinstance(texts, str):
        return [texts]
    if not np.iterable(texts) or isinstance(texts, (bytes, Mapping, Set)) or hasattr(texts, "columns"):
        raise InputError(f"texts: found {type(texts).__name__}, wanted a list of strings; of a table, give one column")
    return texts


def _checked(text, index: int) -> str:
    """The text as something that UTF-8 can hold; what is not a string is an error, a lone surrogate becomes `?`."""
    if not isinstance(text, str):
        raise InputError(
            f"text {index} is {shown(text):.40} ({type(text).__name__}), wanted a string; drop or convert it"
        )
    return text.encode("utf-8", "replace").decode("utf-8")


def _noticed(texts: Iterable[str]) -> Iterator[str]:
    """The texts as they come; at their end one notice of those that `_checked` does not leave as they are."""
    changed = first = 0
    for index, text in enumerate(_require_texts(texts)):
        if _checked(text, index) != text:
            first = first if changed else index
            changed += 1
        yield text
    if changed:
        logger.warning(
            "texts with half of a surrogate pair, each read as `?`: %d; the first is text %d (from 0);"
            " check how it was decoded",
            changed,
            first,
        )


def _require_new_csv(target: Path) -> None:
    if target.suffix.lower() != ".csv":
        raise InputError(f"{target}: wanted a name that ends in .csv")
    try:
        target.lstat()  # a link is there even if what it points to is not
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise InputError(f"{target.parent}: no such folder; make it first") from None
    except (OSError, ValueError) as error:  # ValueError: no file system takes this name
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{target}: cannot be written ({reason}); name another file") from error
    else:
        raise InputError(f"{target}: exists already; name another file, or remove it first")
