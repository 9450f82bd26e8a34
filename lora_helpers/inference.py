"""`Classifier`: a checkpoint that predicts, on a list of texts or a file. The adapter is merged into the base; rows are
sorted by length inside a window and batched by tokens, and come back in the order of the input.
"""

from __future__ import annotations

import csv
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import loading, progress_bar
from .batching import batches_by_tokens, pad
from .checkpoints import Verification, load_checkpoint
from .config import LABELS, PRECISIONS
from .environment import WITHOUT_GPU
from .errors import CheckFailed, InputError, first_line
from .evaluation import calibration, metric, to_digits
from .field_checks import shown
from .files.documents import read_documents
from .model import longest_input
from .records import read_evidence

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

logger = logging.getLogger(__name__)

WINDOW = 4096  # documents sorted together; more would cost memory and save no padding
LONG = 4_000_000  # characters that end a window early: to tokenise a text takes some twenty times its size
BATCH_TOKENS = 1024  # tokens a batch on a CPU, padding included; at 4096 roberta-base takes 1.5 times as long
GPU_BATCH_TOKENS = 65536
LARGE_FILE = 20_000  # documents; on two cores the bundled base labels them in about a minute and a half


class Classifier:
    """A sequence classifier with merged adapter, in evaluation mode, made by `from_checkpoint`. It can be pickled, and used
    by several threads or, on a CPU, after a fork."""

    def __init__(
        self, model, tokenizer, *, max_length: int, verification: Verification | None = None,
        precision: str = "float32", device: str | None = None,
    ):  # fmt: skip
        from .arithmetic import find_device, set_precision

        self.device, self.precision = find_device(device, precision), precision
        self.model = set_precision(model.eval(), precision, self.device)
        self.tokenizer, self.max_length, self.verification = tokenizer, max_length, verification

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Path | str, *, max_length: int | None = None, precision: str = "float32",
        device: str | None = None,
    ) -> Classifier:  # fmt: skip
        """Load a checkpoint folder, whole or foreign, after verifying it.

        Args:
            max_length: tokens, 3 or more, capped at the base's longest input; None: as in training, or that longest.
            precision: float32 is exact; int8 is faster on a CPU, bfloat16 where the processor computes it.
            device: as torch calls it; the best there is if None.

        Raises: as `load_checkpoint`; InputError for a `max_length`, `precision` or `device` that cannot be.
        """
        if max_length is not None and max_length < 3:
            raise InputError(f"max_length is {max_length}, wanted 3 or more: <s>, one token of text, </s>")
        if precision not in PRECISIONS:
            raise InputError(f"precision is {shown(precision)}, wanted one of {', '.join(PRECISIONS)}")
        with loading():
            model, tokenizer, verification = load_checkpoint(checkpoint)
            its = {"verification": verification, "precision": precision, "device": device}
            max_length = min(max_length or verification.max_length, longest_input(model))
            return cls(model.merge_and_unload(), tokenizer, max_length=max_length, **its)

    def predict(self, texts: Sequence[str], *, probabilities: bool = False) -> pd.DataFrame:
        """One row a text, in order, and under the index of a Series: text, label (int, 0-3), name, confidence; with
        `probabilities` one column a class.

        Any string is a text, the empty one too. Half of a surrogate pair, which UTF-8 cannot hold, is read and shown as
        `?`. One notice says in how many texts, another how many are empty.

        Raises: InputError: `texts` is no list of strings. CheckFailed: scores that are not finite.
        """
        import pandas as pd

        index = texts.index if isinstance(texts, pd.Series) else None
        return pd.DataFrame(self.predict_columns(texts, probabilities=probabilities), index)

    def predict_columns(self, texts: Sequence[str], *, probabilities: bool = False) -> dict[str, list]:
        """The columns of `predict` as lists: pandas, which an answer at the prompt would wait for, is not loaded."""
        texts = list(_readable(texts))
        found = self._classify_all(texts)
        label = found.argmax(axis=1).tolist()
        names, confidence = [LABELS[i] for i in label], found.max(axis=1).tolist()
        columns = {"text": texts, "label": label, "name": names, "confidence": confidence}
        return columns | (dict(zip(LABELS, found.T.tolist(), strict=True)) if probabilities else {})

    def predict_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Class probabilities <float32>[len(texts), 4], rows in the order of `texts`."""
        return self._classify_all(_readable(texts))

    def predict_file(
        self, source: Path | str, target: Path | str, *, probabilities: bool = False, progress: bool = True,
        text_columns: str | Sequence[str] | None = None, id_column: str | None = None,
    ) -> int:  # fmt: skip
        """Label every document of `source` and write `target`, a CSV file `ID,Label` (ID from 0, label 0-3, file order);
        with `probabilities` LabelName and one column a class too. Returns the number of documents.

        All or nothing: one row that cannot be read refuses the file and is named, for a gap or a guess would give
        every row after it another's label. An error or an interrupt (Ctrl-C) leaves no file behind.

        Raises: InputError: `target` exists, is no CSV name or cannot be written, or a row of `source` cannot be read.
            CheckFailed: as `predict`.
        """
        target = Path(target)
        _require_new_csv(target)
        if not isinstance(text_columns, str | None):
            text_columns = tuple(text_columns)  # a generator would be empty the second time
        read = partial(read_documents, source, text_columns=text_columns, id_column=id_column)
        total = sum(1 for _ in read())  # a row that cannot be read is found before any work is done
        if total >= LARGE_FILE and self.precision == "float32" and self.device.type == "cpu":
            _mention_int8()
        unfinished = target.with_name(f".{secrets.token_hex(8)}.partial")  # short: a name may be at the limit
        try:
            stream = unfinished.open("w", newline="", encoding="utf-8", errors="replace")
            with stream, progress_bar(wanted=progress, total=total, desc="predict", unit=" documents") as bar:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(["ID", "Label"] + (["LabelName", *LABELS] if probabilities else []))
                documents, again = tee(read())
                rows = self._classify_in_windows(_readable(document.text for document in again), bar.update)
                count = 0
                for row, document in zip(rows, documents, strict=True):
                    count += 1
                    label = int(row.argmax())
                    extra = [LABELS[label], *(f"{p:.6f}" for p in row)] if probabilities else []
                    writer.writerow([document.id, label, *extra])
            if count != total:
                raise InputError(f"{source}: {total} documents at first, then {count}; it changed while it was read")
            _require_new_csv(target)  # once more: it may have come to be meanwhile
            os.replace(unfinished, target)
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise InputError(f"{target}: cannot be written ({reason}); nothing was kept") from error
        finally:
            unfinished.unlink(missing_ok=True)
        return total

    def _classify_all(self, texts: Iterable[str]) -> np.ndarray:
        return np.fromiter(self._classify_in_windows(texts), dtype=(np.float32, len(LABELS)))

    def _classify_in_windows(self, texts: Iterable[str], advance=lambda rows: None) -> Iterator[np.ndarray]:
        """Probabilities <float32>[4] of each text, computed in windows of `WINDOW` texts, or of fewer where they are long."""
        window, characters = [], 0
        for text in texts:
            window.append(text)
            characters += len(text)
            if len(window) == WINDOW or characters > LONG:
                yield from self._classify(window, advance)
                window, characters = [], 0
        if window:
            yield from self._classify(window, advance)

    def _classify(self, texts: list[str], advance: Callable[[int], object]) -> np.ndarray:
        """Probabilities <float32>[len(texts), 4] of one window; `advance` hears how many rows each batch had."""
        import torch

        rows = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        budget = BATCH_TOKENS if self.device.type == "cpu" else GPU_BATCH_TOKENS
        batches = batches_by_tokens([len(row) for row in rows], budget)
        np.random.default_rng(0).shuffle(batches)  # short and long ones in turn: the time left is told rightly
        results = np.empty((len(rows), len(LABELS)), dtype=np.float32)
        with torch.inference_mode():
            while batches:
                batch = batches.pop()
                inputs = pad([rows[i] for i in batch], self.tokenizer.pad_token_id)
                try:
                    logits = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()}).logits
                except torch.OutOfMemoryError as error:  # of a GPU
                    if len(batch) == 1:
                        raise InputError(f"{first_line(error)}; {WITHOUT_GPU}") from error
                    batches += [batch[::2], batch[1::2]]
                    continue
                results[batch] = logits.float().softmax(dim=-1).cpu().numpy()
                if np.isnan(results[batch]).any():
                    raise CheckFailed("the model's scores are not finite; its weights or lora_alpha are out of range")
                advance(len(batch))
        return results


def evaluate_classifier(classifier: Classifier, rows: Dataset) -> dict:
    """Every score of `scores`, `calibration` and `predictions` (a digit a row) on labelled rows (`text`, `label`)."""
    probabilities = classifier.predict_probabilities(rows["text"][:])
    predictions, references = probabilities.argmax(axis=1), np.array(rows["label"][:])
    result = metric().compute(predictions=predictions, references=references)
    return result | {"calibration": calibration(probabilities, references), "predictions": to_digits(predictions)}


def _readable(texts: Iterable[str]) -> Iterator[str]:
    """The texts as UTF-8 can hold them, a lone surrogate as `?`, each looked at once; at their end notices of odd ones.

    A string is one text. Of a table or dict the column names would be read, of bytes the numbers: they are refused.
    """
    if not np.iterable(texts) or isinstance(texts, (bytes, Mapping, Set)) or hasattr(texts, "columns"):
        raise InputError(f"texts: found {type(texts).__name__}, wanted a list of strings; of a table, give one column")
    changed, empty = [], []
    for index, text in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"text {index} is {shown(text):.40} ({kind}), wanted a string; drop or convert it")
        readable = text.encode("utf-8", "replace").decode("utf-8")
        if readable != text:
            changed.append(index)
        if not text.strip():
            empty.append(index)
        yield readable
    for odd, what, advice in (
        (changed, "half of a surrogate pair, each read as `?`", "check how it was decoded"),
        (empty, "nothing in them, each labelled nevertheless", "such a label means nothing"),
    ):
        if odd:
            logger.warning("texts with %s: %d; the first is text %d (from 0); %s", what, len(odd), odd[0], advice)


def _mention_int8() -> None:
    notice = 'precision "int8" labels %.1f times as many rows a second; of %d validation rows %.1f %% kept their label'
    if found := read_evidence().get("int8"):  # nothing is said that was not measured
        logger.info(notice, found["speedup"], found["rows"], 100 * found["agreement"])


def _require_new_csv(target: Path) -> None:
    if target.suffix.lower() != ".csv":
        raise InputError(f"{target}: wanted a name that ends in .csv")
    try:
        target.lstat()  # a link is there even if what it points to is not
    except FileNotFoundError:
        if target.parent.is_dir():
            return
        raise InputError(f"{target.parent}: no such folder; make it first") from None
    except (OSError, ValueError) as error:  # ValueError: no file system takes this name
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{target}: cannot be written ({reason}); name another file") from error
    raise InputError(f"{target}: exists already; name another file, or remove it first")
