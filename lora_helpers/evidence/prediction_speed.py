"""How fast prediction is: `Classifier` beside what people use otherwise, and a file of many rows in a stream.

As in `training_speed`, the weights are random, and the texts are random words of AG News' lengths.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, pipeline

from .. import loading
from ..bases import compute_first_token_alone
from ..config import PRECISIONS, ROBERTA_MINI, get_profile
from ..data import load_ag_news
from ..environment import best_device, has_fast_bfloat16, watch_peak_memory
from ..errors import InputError
from ..evaluation import compare
from ..export import write_onnx
from ..files.places import REPOSITORY
from ..inference import Classifier
from ..model import longest_input
from .study import load_committed
from .workload import make_model, sample_lengths, sample_texts

STREAMED = (10_000, 1_000_000)  # rows of a file


@dataclass(frozen=True)
class Peer:
    """One way to label texts: `predict(texts, batch_size)`, and the batch sizes that it is tried at."""

    predict: Callable[[list[str], int], object]
    batch_sizes: tuple[int, ...] = (1, 8, 32)

    def measure(self, texts: list[str], batch_size: int) -> float:
        """Seconds."""
        began = time.perf_counter()
        self.predict(texts, batch_size)
        return time.perf_counter() - began


def measure_prediction(shape, *, rounds: int, rows: int) -> dict[str, dict]:
    """By peer: rows, rows_per_second (the median of `rounds`, taking turns on the same texts), and batch_size, the best of
    its own (None for `Classifier`, which makes its own batches)."""
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / ROBERTA_MINI, trust_remote_code=False)
    model = make_model(shape, get_profile("roberta-base")).eval()
    texts = sample_texts(sample_lengths(rows, longest=longest_input(model)), tokenizer)
    peers, best = make_peers(model, tokenizer, longest_input(model)), {}
    for name, peer in peers.items():
        peer.predict(texts[:16], peer.batch_sizes[0])  # to warm up
        best[name] = min(peer.batch_sizes, key=lambda size, peer=peer: peer.measure(texts, size))
    turns = [[peer.measure(texts, best[name]) for name, peer in peers.items()] for _ in range(rounds)]
    return {
        name: {"rows": rows, "rows_per_second": rows / float(seconds), "batch_size": best[name] or None}
        for name, seconds in zip(peers, np.median(turns, axis=0), strict=True)
    }


def make_peers(model, tokenizer, longest: int) -> dict[str, Peer]:
    """`pipeline` with the adapter beside the base, as people load it; ONNX Runtime and `Classifier` with it merged.

    Also in bfloat16 where that is fast, `Classifier` also in int8; ONNX Runtime, in int8, where it is installed.
    """

    def make_pipeline(its_model) -> Peer:
        classify = pipeline("text-classification", model=its_model, tokenizer=tokenizer, device=best_device())
        return Peer(lambda texts, size: classify(texts, batch_size=size, truncation=True, max_length=longest))

    def make_classifier(precision: str) -> Peer:
        merged = deepcopy(model).merge_and_unload()
        compute_first_token_alone(merged)  # as `checkpoints.load_checkpoint` does
        classifier = Classifier(merged, tokenizer, max_length=longest, precision=precision)
        return Peer(lambda texts, _: classifier.predict(texts), (0,))

    bfloat16, peers = has_fast_bfloat16(), {"pipeline": make_pipeline(model)}
    if bfloat16:
        peers["pipeline-bfloat16"] = make_pipeline(deepcopy(model).to(torch.bfloat16))
    if all(map(find_spec, ("onnxruntime", "onnx", "onnxscript"))):
        peers["onnxruntime-int8"] = make_onnxruntime(deepcopy(model).merge_and_unload(), tokenizer, longest)
    for precision in PRECISIONS:
        if bfloat16 or precision != "bfloat16":
            with suppress(InputError):  # a processor without a product in int8
                peers["ours" if precision == "float32" else f"ours-{precision}"] = make_classifier(precision)
    return peers


def make_onnxruntime(model, tokenizer, longest: int) -> Peer:
    """ONNX Runtime on the CPU, matrix products in int8 by its own tool, texts sorted by length as `Classifier` does, on as
    many threads as torch has (by itself it takes every core, also those that the process may not use)."""
    from onnxruntime import InferenceSession, SessionOptions
    from onnxruntime.quantization import quantize_dynamic

    with loading(), tempfile.TemporaryDirectory() as folder:
        write_onnx(model.cpu(), tokenizer, Path(folder))
        quantize_dynamic(f"{folder}/model.onnx", f"{folder}/int8.onnx")
        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = InferenceSession(f"{folder}/int8.onnx", options, providers=["CPUExecutionProvider"])

    def predict(texts: list[str], size: int) -> None:
        cut, texts = {"padding": True, "truncation": True, "max_length": longest}, sorted(texts, key=len)
        for start in range(0, len(texts), size):
            session.run(None, dict(tokenizer(texts[start : start + size], **cut, return_tensors="np")))

    return Peer(predict)


def measure_growth(profile: str = "mini-agnews", sizes: tuple[int, ...] = STREAMED) -> dict[str, list[dict]]:
    """`predicted_rows`: the `peak_memory_mib` of a committed run that labels a file of `size` rows of 7 tokens."""
    classifier = load_committed(profile, device="cpu")
    texts, found = sample_texts(np.full(4096, 7), classifier.tokenizer), []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            with (Path(folder) / "texts.txt").open("w", encoding="utf-8") as stream:
                stream.writelines(f"{texts[i % len(texts)].strip()}\n" for i in range(size))
            peak = watch_peak_memory()
            labelled = classifier.predict_file(stream.name, Path(folder) / "labels.csv", progress=False)
            found.append({"size": labelled, "peak_memory_mib": peak()})
    return {"predicted_rows": found}


def compare_precisions(profile: str = "mini-agnews", rounds: int = 3) -> dict:
    """A committed run in int8 beside float32, on its validation rows: how many times faster at its best, the share of
    labels that stay, and the paired difference of accuracy as `evaluation.compare` has it; both on the CPU, as int8 is."""
    rows = load_ag_news(get_profile(profile)).validation
    texts, labels, seconds = rows["text"][:], {}, {}
    for name in ("float32", "int8"):
        classifier = load_committed(profile, precision=name, device="cpu")
        classifier.predict_probabilities(texts[:16])  # to warm up
        for _ in range(rounds):
            began = time.perf_counter()
            labels[name] = classifier.predict_probabilities(texts).argmax(axis=1)
            seconds[name] = min(time.perf_counter() - began, seconds.get(name, float("inf")))
    before, after = labels.values()
    found = {"rows": len(texts), "speedup": seconds["float32"] / seconds["int8"]}
    return found | {"agreement": float((before == after).mean())} | compare(after, before, np.array(rows["label"][:]))
