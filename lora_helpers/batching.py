"""Which rows share a batch: the order of training, the batches of pretraining and inference, the cost of padding.

Everything here is a function of lengths or token ids, a seed and an epoch; no model, no data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class LengthGroupedSampler:
    """Indices of one epoch, so that consecutive `batch_size` of them make a batch of rows of like length.

    The order is a function of (seed, epoch) alone: rows are shuffled, cut into windows of 50 batches, sorted by
    length inside each window, and the batches shuffled. Rows that fill no batch come last. With
    `order="random"` it is the shuffle alone.

    (The stock sampler draws its order from the global generator, so a run resumed in its second epoch gets another.)
    """

    window = 50  # batches; long enough for like lengths, short enough that batches differ from epoch to epoch

    def __init__(self, lengths: Sequence[int], batch_size: int, *, order: str = "length-grouped", seed: int = 0):
        self.lengths = np.asarray(lengths)
        self.batch_size, self.order, self.seed, self.epoch = batch_size, order, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by `training.trainer.RunCallback` at the start of every epoch, resumed ones included."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths))
        if self.order == "length-grouped":
            size = self.batch_size * self.window
            order = np.concatenate([
                window[np.argsort(self.lengths[window], kind="stable")] for window in _cut(order, size)
            ])  # fmt: skip
            whole = len(order) // self.batch_size * self.batch_size
            batches = rng.permutation(order[:whole].reshape(-1, self.batch_size))
            order = np.concatenate([batches.ravel(), order[whole:]])
        return iter(order.tolist())


def batches_by_tokens(lengths: Sequence[int], budget: int, *, ties: np.ndarray | None = None) -> list[np.ndarray]:
    """Rows sorted by length and cut into batches of about `budget` tokens, padding included.

    Args:
        lengths: tokens of each row.
        budget: tokens a batch; a longer row is a batch of its own.
        ties: a permutation of the rows that decides among equal lengths; file order if None.

    Returns:
        Index arrays <int64>[rows of the batch], shortest rows first.
    """
    lengths = np.asarray(lengths)
    order = np.arange(len(lengths)) if ties is None else ties
    order = order[np.argsort(lengths[order], kind="stable")]
    cuts, start = [], 0
    for end, longest in enumerate(lengths[order].tolist()):
        if end > start and (end + 1 - start) * longest > budget:
            cuts.append(end)
            start = end
    return np.split(order, cuts) if len(order) else []


def pad(rows: list[list[int]], pad_token_id: int) -> dict:
    """`input_ids` and, where rows differ in length, `attention_mask`: <int64>[rows, longest].

    Without a mask the attention kernel takes its fast path; a batch without padding needs none.
    """
    import torch

    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_token_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    if all(len(row) == longest for row in rows):
        return {"input_ids": ids}
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


def padding_costs(lengths: Sequence[int], batch_size: int, *, seed: int = 0, block: int = 1000) -> dict[str, float]:
    """Processed tokens over real tokens, under four policies of padding.

    `block`: blocks of 1,000 rows in the order given, each padded to its longest row (the course notebook did so, with
    rows that it had cut at 512 tokens; here they are what `lengths` says);
    `fixed`: every row at 128 tokens, longer ones cut; `random`: random batches, each padded to its longest;
    `length-grouped`: batches of `LengthGroupedSampler`, each padded to its longest.
    """
    lengths = np.asarray(lengths)
    orders = {
        order: np.array(list(LengthGroupedSampler(lengths, batch_size, order=order, seed=seed)))
        for order in ("random", "length-grouped")
    }
    processed = {
        "block": _padded(lengths, block),
        "fixed": 128 * len(lengths),
        **{name: _padded(lengths[order], batch_size) for name, order in orders.items()},
    }
    real = {name: int(np.minimum(lengths, 128).sum() if name == "fixed" else lengths.sum()) for name in processed}
    return {name: tokens / real[name] for name, tokens in processed.items()}


def _padded(lengths: np.ndarray, size: int) -> int:
    return sum(len(part) * int(part.max()) for part in _cut(lengths, size))


def _cut(order: np.ndarray, size: int) -> Iterable[np.ndarray]:
    return (order[i : i + size] for i in range(0, len(order), size))
