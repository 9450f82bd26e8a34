"""How time and memory grow with the work: training rows, tokens a row, rank, rows to label.

As in `benchmark`, weights and words are random and nothing outside the repository is read.
`make evidence PARTS="growth figures"` records it and draws the figure.
"""

from __future__ import annotations

import csv
import tempfile
import time
from pathlib import Path

import numpy as np

from ..config import LABELS, get_profile
from ..environment import watch_peak_memory
from ..files.places import REPOSITORY
from ..inference import Classifier
from ..model import compute_first_token_alone
from .prediction_speed import measure_stream
from .training_speed import make_step
from .workload import BATCH, Batch, base_shapes, draw_lengths, draw_texts, make_inputs, make_model

TRAINING_ROWS = (1_000, 4_000, 16_000, 64_000)
TOKENS = (32, 64, 128, 256, 512)
RANKS = (1, 2, 4, 8, 16, 32, 64)
PREDICTED_ROWS = (1_000, 10_000, 100_000, 1_000_000)
CHECKPOINT = REPOSITORY / "checkpoints" / "mini-agnews" / "checkpoint-2400"


def measure_growth() -> dict[str, list[dict]]:
    """Each series as rows of `size`, `seconds` and `peak_memory_mib`.

    `predicted_rows`: `predict_file` on short texts. `training_rows`: an epoch of `mini-agnews` on as many random texts
    of 16 tokens and fewer, from the file to the record. `tokens` and `rank`: a step of 16 rows of roberta-base's shape.
    """
    classifier = Classifier.from_checkpoint(CHECKPOINT)
    return {
        "predicted_rows": [measure_stream(classifier, size) | {"size": size} for size in PREDICTED_ROWS],
        "training_rows": [_measure_epoch(size, classifier.tokenizer) | {"size": size} for size in TRAINING_ROWS],
        "tokens": [_measure_step(tokens=size) | {"size": size} for size in TOKENS],
        "rank": [_measure_step(rank=size) | {"size": size} for size in RANKS],
    }


def _measure_step(*, tokens: int = 64, rank: int = 2) -> dict[str, float]:
    config = get_profile("roberta-base", lora_rank=rank)
    model = make_model(base_shapes()["roberta-base"], config)
    compute_first_token_alone(model.base_model.model)
    step, inputs = make_step(model, config), make_inputs(Batch(np.full(BATCH, tokens), tokens), model)
    step(inputs)
    peak = watch_peak_memory(gpu=True)
    seconds = float(np.median([step(inputs) for _ in range(2)]))
    return {"seconds": seconds, "peak_memory_mib": peak()}


def _measure_epoch(rows: int, tokenizer) -> dict[str, float]:
    from ..training.run import train

    texts = draw_texts(draw_lengths(rows + 400, longest=16), tokenizer)  # short ones: it is rows that grow
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "train.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows((1 + i % len(LABELS), "", text) for i, text in enumerate(texts))
        steps = -(-rows // BATCH)  # rounded up
        fields = {"validation_size": 400, "max_steps": steps, "eval_steps": steps, "save_steps": steps}
        config = get_profile("mini-agnews", dataset=folder, **fields)
        peak = watch_peak_memory()
        began = time.perf_counter()
        train(config, Path(folder) / "run")
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_memory_mib": peak()}
