"""Batches of pretraining: rows of like length, about as many tokens each, another grouping every epoch."""

from __future__ import annotations

import numpy as np

from ..batching import batches_by_tokens


class TokenBudgetBatches:
    """A batch sampler: rows of like length, about `budget` tokens a batch, another grouping every epoch.

    A function of (seed, epoch) alone, with the same number of batches in every epoch.
    """

    batch_size, drop_last = None, False  # what accelerate looks for

    def __init__(self, lengths, budget: int, seed: int):
        self.lengths, self.budget, self.seed, self.epoch = np.asarray(lengths), budget, seed, 0
        self.count = len(batches_by_tokens(self.lengths, budget))

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = batches_by_tokens(self.lengths, self.budget, ties=rng.permutation(len(self.lengths)))
        return iter([batches[i] for i in rng.permutation(len(batches))])
