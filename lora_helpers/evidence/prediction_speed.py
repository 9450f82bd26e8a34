"""How fast prediction is: `Classifier` beside what people use otherwise, and a file of many rows in a stream.

As in `training_speed`, the weights are random, and the texts are random words of AG News' lengths.
`python -m lora_helpers bench` and `make evidence` call this.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bases import compute_first_token_alone
from ..config import get_profile
from ..environment import best_device, watch_peak_memory
from ..inference import Classifier
from .workload import load_tokenizer, longest_of, make_model, sample_lengths, sample_texts

STREAMED = (10_000, 1_000_000)  # rows of a file


@dataclass(frozen=True)
class Peer:
    """One way to label texts: `predict(texts, batch_size)`, and the batch sizes that it is tried at."""

    predict: Callable[[list[str], int], object]
    batch_sizes: tuple[int, ...] = (1, 8, 32)


def measure_prediction(shape, *, rounds: int, rows: int) -> dict[str, dict]:
    """Rows a second of every peer on the same texts, each at its best batch size, taking turns; medians of `rounds`.

    The pipeline has the adapter beside the base, as it is loaded; `Classifier` merges it and computes `<s>` alone
    behind the last attention, as `checkpoints.load_checkpoint` makes it.

    Returns:
        By peer: rows, rows_per_second, and batch_size (None for `Classifier`, which makes its own batches).
    """
    tokenizer, longest = load_tokenizer(), longest_of(shape)
    texts = sample_texts(sample_lengths(rows, longest=longest), tokenizer)
    peers = make_peers(shape, tokenizer, longest)
    for peer in peers.values():
        peer.predict(texts[:16], peer.batch_sizes[0])  # to warm up
    best = {
        name: min(peer.batch_sizes, key=lambda size, predict=peer.predict: _time(predict, texts, size))
        for name, peer in peers.items()
    }
    seconds = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            seconds[name].append(_time(peer.predict, texts, best[name]))
    return {
        name: {"rows": rows, "rows_per_second": rows / float(np.median(taken)), "batch_size": best[name] or None}
        for name, taken in seconds.items()
    }


def make_peers(shape, tokenizer, longest: int) -> dict[str, Peer]:
    """`pipeline` as people load it, and `Classifier`."""
    from transformers import pipeline

    model = make_model(shape, get_profile("roberta-base")).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device=best_device())
    merged = make_model(shape, get_profile("roberta-base")).merge_and_unload()
    compute_first_token_alone(merged)
    classifier = Classifier(merged, tokenizer, max_length=longest)
    return {
        "pipeline": Peer(lambda texts, size: classify(texts, batch_size=size, truncation=True, max_length=longest)),
        "ours": Peer(lambda texts, _: classifier.predict(texts), (0,)),
    }


def _time(predict: Callable, texts: list[str], batch_size: int) -> float:
    began = time.perf_counter()
    predict(texts, batch_size)
    return time.perf_counter() - began


def measure_growth(classifier: Classifier, sizes: tuple[int, ...] = STREAMED) -> dict[str, list[dict]]:
    """`predicted_rows`: what a file of `size` rows costs, `seconds` and `peak_memory_mib`."""
    return {"predicted_rows": [{"size": size} | measure_stream(classifier, size) for size in sizes]}


def measure_stream(classifier: Classifier, rows: int, *, tokens: int = 7) -> dict[str, float]:
    """Seconds and peak memory of `predict_file` on a file of `rows` short texts, made for it and removed."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.txt"
        texts = sample_texts(np.full(4096, tokens), classifier.tokenizer)
        with source.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{texts[i % len(texts)].strip()}\n" for i in range(rows))
        peak = watch_peak_memory()
        began = time.perf_counter()
        count = classifier.predict_file(source, Path(folder) / "labels.csv", progress=False)
        seconds = time.perf_counter() - began
    if count != rows:
        raise RuntimeError(f"{count} labels for {rows} rows")
    return {"seconds": seconds, "peak_memory_mib": peak()}
