"""How fast prediction is: `Classifier` beside `transformers.pipeline`, tokenisation, and a file of a million rows.

As in `benchmark`, the weights are random, and the texts are random words of AG News' lengths.
`python -m lora_helpers bench` and `make evidence` call this.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from ..config import ROBERTA_MINI, get_profile
from ..environment import best_device, watch_peak_memory
from ..files.places import REPOSITORY
from ..inference import Classifier
from ..model import compute_first_token_alone
from .workload import draw_lengths, draw_texts, make_model

PIPELINE_BATCHES = {"pipeline-default": 1, "pipeline-8": 8, "pipeline-64": 64}  # 8: the course's own inference


def measure_prediction(shape, *, rounds: int, rows: int) -> dict[str, dict]:
    """Rows a second of `Classifier` and of `transformers.pipeline` on the same texts, taking turns; medians of `rounds`.

    The pipeline has the adapter beside the base, as it is loaded; `Classifier` merges it and computes `<s>` alone
    behind the last attention, as `checkpoints.load_checkpoint` makes it.
    """
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / ROBERTA_MINI, trust_remote_code=False)
    longest = min(512, shape.max_position_embeddings - 2)
    texts = draw_texts(draw_lengths(rows, longest=longest), tokenizer)
    model = make_model(shape, get_profile("roberta-base")).eval()
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device=best_device())
    merged = make_model(shape, get_profile("roberta-base")).merge_and_unload()
    compute_first_token_alone(merged)
    classifier = Classifier(merged, tokenizer, max_length=longest)
    ways = {
        name: partial(classify, batch_size=size, truncation=True, max_length=longest)
        for name, size in PIPELINE_BATCHES.items()
    } | {"ours": classifier.predict}
    seconds = {name: [] for name in ways}
    for predict in ways.values():
        predict(texts[:16])  # to warm up
    for _ in range(rounds):
        for name, predict in ways.items():
            began = time.perf_counter()
            predict(texts)
            seconds[name].append(time.perf_counter() - began)
    return {name: {"rows": rows, "rows_per_second": rows / float(np.median(taken))} for name, taken in seconds.items()}


def measure_stream(classifier: Classifier, rows: int, *, tokens: int = 7) -> dict[str, float]:
    """Seconds and peak memory of `predict_file` on a file of `rows` short texts, made for it and removed."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.txt"
        texts = draw_texts(np.full(4096, tokens), classifier.tokenizer)
        with source.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{texts[i % len(texts)].strip()}\n" for i in range(rows))
        peak = watch_peak_memory()
        began = time.perf_counter()
        count = classifier.predict_file(source, Path(folder) / "labels.csv", progress=False)
        seconds = time.perf_counter() - began
    if count != rows:
        raise RuntimeError(f"{count} labels for {rows} rows")
    return {"seconds": seconds, "peak_memory_mib": peak()}
