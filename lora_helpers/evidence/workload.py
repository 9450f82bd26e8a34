"""What the benchmarks work on: token lengths as AG News has them, batches as four pipelines make them, random words.

Speed depends on shapes, not on what weights and words say, so they need neither the data set nor a network.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

from ..batching import LengthGroupedSampler
from ..config import RunConfig
from ..environment import best_device
from ..model import make_lora_config

# AG News' training rows by their number of tokens under roberta-base's tokenizer, special ones included.
LENGTHS = Path(__file__).parent / "ag_news_lengths.json"
PIPELINES = ("original", "trainer-default", "pad-128", "ours")
BATCH = 16  # rows, as in the profiles of full size
BLOCK = 1000  # rows that the course notebook padded together
SPECIAL = 5  # token ids below are special


@dataclass(frozen=True)
class Plan:
    """A few batches that stand for an epoch, and what they are too few to show: the epoch's means a row."""

    lengths: np.ndarray  # real tokens of each row, <int64>[batches, rows]
    widths: np.ndarray  # tokens a row of each batch, padding included, <int64>[batches]
    length: float
    width: float


def sample_lengths(count: int, *, longest: int = 512, seed: int = 0) -> np.ndarray:
    """Tokens of `count` rows, <int64>[count], special ones included, drawn as AG News has them and cut at `longest`."""
    counts = json.loads(LENGTHS.read_text())
    tokens, rows = np.array(list(counts), dtype=int), np.array(list(counts.values()))
    return np.minimum(np.random.default_rng(seed).choice(tokens, size=count, p=rows / rows.sum()), longest)


def plan_epoch(pipeline: str, lengths: np.ndarray, count: int, size: int = BATCH) -> Plan:
    """`count` batches of `size` rows: an epoch's batches in `count` equal parts by width, and the middle one of each.

    `original` pads blocks of 1,000 rows in file order, then draws at random from all of them, so that a batch is as
    wide as the widest of its 16 blocks; `trainer-default` pads random batches to their longest row; `pad-128` pads
    and cuts at 128 tokens; `ours` pads batches of like length to their longest row.
    """
    sampler = LengthGroupedSampler(lengths, size, order="length-grouped" if pipeline == "ours" else "random")
    rows = np.array(list(sampler))[: len(lengths) // size * size].reshape(-1, size)
    real = lengths[rows]
    widths = real.max(axis=1)
    if pipeline == "original":
        widths = np.maximum.reduceat(lengths, range(0, len(lengths), BLOCK))[rows // BLOCK].max(axis=1)
    if pipeline == "pad-128":
        real, widths = np.minimum(real, 128), np.full(len(rows), 128)
    middles = ((np.arange(count) + 0.5) * len(rows) / count).astype(int)
    chosen = np.argsort(widths, kind="stable")[middles]
    return Plan(real[chosen], widths[chosen], float(real.mean()), float(widths.mean()))


def make_inputs(lengths: np.ndarray, width: int, model) -> dict:
    """Random tokens of a batch's shape: input_ids and attention_mask <int64>[rows, width], labels <int64>[rows]."""
    mask = torch.arange(width) < torch.from_numpy(lengths)[:, None]
    ids = torch.randint(SPECIAL, model.config.vocab_size, mask.shape).where(mask, model.config.pad_token_id)
    labels = torch.randint(0, model.config.num_labels, lengths.shape)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def sample_texts(lengths: np.ndarray, tokenizer, *, seed: int = 0) -> list[str]:
    """Texts of `lengths` tokens, special ones included: whole words of the vocabulary, drawn at random."""
    words = np.array([word[1:] for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha()])
    rng = np.random.default_rng(seed)
    return [" " + " ".join(rng.choice(words, max(int(n) - 2, 1))) for n in lengths]


def make_model(shape, config: RunConfig):
    """A sequence classifier of `shape` with random weights, under the LoRA of `config`, to train."""
    torch.manual_seed(config.seed)
    base = AutoModelForSequenceClassification.from_config(shape, dtype=torch.float32)
    return get_peft_model(base, make_lora_config(config, ["classifier"])).train().to(best_device())
