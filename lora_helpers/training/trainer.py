"""The Hugging Face Trainer with our order of batches, the same on several processes as on one.

What the stock Trainer does otherwise with several processes: it fills the last batch of an epoch with rows of its
beginning, multiplies the loss of a classifier by the number of processes, and counts repeated validation rows in
the validation loss. `training` imports this when a run begins, since it loads transformers.
"""

from __future__ import annotations

from functools import partial

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from ..batching import SharedBatches
from ..evaluation import trainer_metrics
from .callbacks import RunCallback, require_finite


class FineTuningTrainer(Trainer):
    """The stock Trainer on `batches`, this process's shares of the global batches, with the callback of the run."""

    def __init__(self, *, args, batches: SharedBatches, run: RunCallback, **named):
        several = args.world_size > 1
        metrics = partial(each_row_once, smoothing=args.label_smoothing_factor) if several else trainer_metrics
        super().__init__(args=args, compute_metrics=metrics, **named)
        self.batches, self.run = batches, run
        # Our loss is a mean over rows. With True the Trainer takes it for a sum over rows divided by those of all
        # processes, and multiplies it by their number.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(run)

    def train(self, *arguments, **named):
        try:
            return super().train(*arguments, **named)
        finally:
            self.run.close()

    def get_train_dataloader(self):
        """Batches as they are; accelerate only moves them to the device."""
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,  # the batches are shared out already
            process_index=0,
            put_on_device=True,
            non_blocking=self.args.accelerator_config.non_blocking,
        )

    def compute_loss(self, model, inputs, return_outputs=False, **named):
        """In training, weighted so that the mean over processes is the mean over all rows of the global batch."""
        if return_outputs:  # evaluation
            return super().compute_loss(model, inputs, return_outputs=True, **named)
        return super().compute_loss(model, inputs, **named) * self.batches.weight(self.state.global_step)

    def training_step(self, *arguments, **named):
        loss = super().training_step(*arguments, **named)
        if loss.device.type == "cpu":  # on a GPU the look would cost a wait at every step; there the log tells
            mean = self.accelerator.gather(loss).mean().item()  # so that all processes stop at the same step
            require_finite(mean, self.state.global_step + 1, self.args.learning_rate)
        return loss


def each_row_once(prediction, smoothing: float) -> dict[str, float]:
    """`trainer_metrics`, and the validation loss from the gathered logits <float32>[n, 4], in which no row is twice.

    The Trainer's own is a mean of the processes' batch losses; the last ones are filled with repeated rows.
    """
    logits, labels = torch.from_numpy(prediction.predictions), torch.from_numpy(prediction.label_ids)
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    return trainer_metrics(prediction) | {"loss": loss.item()}  # as `eval_loss`, it takes the place of the Trainer's
