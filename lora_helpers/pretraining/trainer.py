"""The Trainer of a pretraining: batches by tokens, and three self-supervised losses.

Masked language modelling; the words of the whole document from its `<s>` vector (masked language modelling alone never
trains `<s>`, and the classification head reads nothing else); and, in every second batch, telling which two halves
belong to one document by their `<s>` vectors.
"""

import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import Trainer

from ..batching import batches_by_tokens
from ..training.arguments import OneDeviceArguments, common_arguments
from ..training.trainer import require_finite
from .config import PretrainingConfig
from .losses import compute_losses


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


class PretrainingTrainer(Trainer):
    """The stock Trainer on token ids of documents, `rows` and `validation`; `idf` is <float32>[vocabulary]."""

    def __init__(self, config: PretrainingConfig, work_dir: Path, model, *, rows, validation, idf: np.ndarray):
        arguments = OneDeviceArguments(
            **common_arguments(config, work_dir),
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            save_total_limit=2,
            disable_tqdm=not (sys.stderr and sys.stderr.isatty()),  # a bar with the time left, but none in a log
            report_to="none",
        )
        super().__init__(model, arguments, train_dataset=rows, eval_dataset=validation)
        self.config, self.losses, self.lap = config, defaultdict(list), time.monotonic()
        self.batches = TokenBudgetBatches([len(row) + 2 for row in rows], config.batch_tokens, config.seed)
        self.quiz = batches_by_tokens([len(row) + 2 for row in validation], config.batch_tokens)
        self.idf = torch.from_numpy(idf).to(arguments.device)

    def get_train_dataloader(self):
        # An array of lists: lists alone accelerate and the Trainer would search for tensors, number by number.
        named = {"batch_sampler": self.batches, "collate_fn": lambda batch: {"rows": np.fromiter(batch, object)}}
        return self.accelerator.prepare(torch.utils.data.DataLoader(self.train_dataset, **named))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the losses, scalar; halves by the step, so that a resumed run does the same."""
        config, halves = self.config, self.state.global_step % 2 == 1
        found = compute_losses(model, inputs["rows"], self.idf, config, halves=halves)
        for name, loss in found.items():
            self.losses[name].append(loss.detach())  # a number would wait for the GPU at every step
        loss = found["masked"] + config.words_weight * found["words"]
        return loss + config.contrast_weight * found.get("contrast", 0.0)

    def log(self, logs, start_time=None):
        for loss in (logs[name] for name in ("loss", "eval_masked_loss") if name in logs):
            require_finite(loss, self.state.global_step, f"begin anew below learning_rate {self.args.learning_rate}")
        if "loss" in logs:
            before = max((row.get("seconds", 0.0) for row in self.state.log_history), default=0.0)
            logs["seconds"] = before + time.monotonic() - self.lap
            self.lap = time.monotonic()
            logs |= {f"{name}_loss": torch.stack(each).mean().item() for name, each in self.losses.items()}
            self.losses.clear()
        super().log(logs, start_time)

    def evaluate(self, *arguments, **named):
        """The losses on validation text, documents whole, with the same masks every time."""
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(self.config.seed)
            self.model.eval()
            each = [
                compute_losses(self.model, [self.eval_dataset[i] for i in batch], self.idf, self.config, halves=False)
                for batch in self.quiz
            ]
            self.model.train()
        metrics = {f"eval_{name}_loss": float(np.mean([found[name].item() for found in each])) for name in each[0]}
        self.log(metrics)
        return metrics
