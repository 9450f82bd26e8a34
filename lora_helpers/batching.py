"""Which rows share a batch: the order of training, the batches of pretraining and inference, the cost of padding. All
of it follows from lengths or token ids, a seed and an epoch.
"""

from collections.abc import Iterator, Sequence

import numpy as np


class LengthGroupedSampler:
    """Indices of one epoch, so that consecutive `batch_size` of them make a batch of rows of like length.

    A function of (seed, epoch) alone, where the stock sampler draws from the global generator, and a run resumed in its
    second epoch would see another order. Rows are shuffled, cut into windows of 50 batches, sorted by length inside each,
    and the batches shuffled; rows that fill no batch come last. With `order="random"` it is the shuffle alone.
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
            span = self.batch_size * self.window
            windows = np.split(order, range(span, len(order), span))
            order = np.concatenate([rows[np.argsort(self.lengths[rows], kind="stable")] for rows in windows])
            whole = len(order) // self.batch_size * self.batch_size
            batches = rng.permutation(order[:whole].reshape(-1, self.batch_size))
            order = np.concatenate([batches.ravel(), order[whole:]])
        return iter(order.tolist())


def batches_by_tokens(lengths: Sequence[int], budget: int, *, ties: np.ndarray | None = None) -> list[np.ndarray]:
    """Index arrays <int64>[rows of the batch], shortest rows first, of at most `budget` tokens, padding included.

    A longer row is a batch of its own. `ties`, a permutation of the rows, decides among equal lengths, else file order.
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

    lengths = torch.tensor([len(row) for row in rows])
    longest = max(int(lengths.max()), 1)  # some tokenizers give an empty text no token at all
    ids = torch.tensor([row + [pad_token_id] * (longest - len(row)) for row in rows])
    real = torch.arange(longest) < lengths[:, None]
    return {"input_ids": ids} | ({} if real.all() else {"attention_mask": real.long()})


def padding_costs(lengths: Sequence[int], batch_size: int, *, seed: int = 0) -> dict[str, float]:
    """Processed tokens over real tokens, under four policies of padding.

    `block`: blocks of 1,000 rows in the order given, each padded to its longest row (the course notebook did so, with
    rows that it had cut at 512 tokens; here they are what `lengths` says); `fixed`: every row at 128 tokens, longer ones
    cut; `random` and `length-grouped`: the batches of `LengthGroupedSampler`, each padded to its longest.
    """
    lengths = np.asarray(lengths)
    costs = {"block": _padded(lengths, 1000) / lengths.sum(), "fixed": 128 / np.minimum(lengths, 128).mean()}
    for order in ("random", "length-grouped"):
        rows = list(LengthGroupedSampler(lengths, batch_size, order=order, seed=seed))
        costs[order] = _padded(lengths[rows], batch_size) / lengths.sum()
    return {name: float(cost) for name, cost in costs.items()}


def _padded(lengths: np.ndarray, size: int) -> int:
    return sum(len(part) * int(part.max()) for part in np.split(lengths, range(size, len(lengths), size)))
