"""How the bundled base model was made: a small RoBERTa, trained from scratch on the training text of AG News.

One stage, three self-supervised losses, no label: masked language modelling; the words of the whole document from
its `<s>` vector (masked language modelling alone never trains `<s>`, and the classification head reads nothing
else); and, in every second batch, telling which two halves belong to one document by their `<s>` vectors.
Called by `python -m lora_helpers pretrain`; fine-tuning never runs this.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..batching import batches_by_tokens
from ..config import get_profile
from ..data import fingerprint, load_ag_news
from ..environment import environment
from ..errors import InputError
from ..files.manifests import write_atomically
from .batches import TokenBudgetBatches
from .config import PretrainingConfig
from .losses import losses
from .start import build_model, count_words, initialise_embeddings, train_tokenizer

RECORD = "pretraining.json"


def pretrain(config: PretrainingConfig, output_dir: Path, *, resume: bool = False) -> dict:
    """Train a base model and write it, with tokenizer and `pretraining.json`, to `output_dir`.

    While it runs, checkpoints stand in `output_dir/work` (about 200 MB); `resume` continues the newest one.

    Returns:
        The record, as it stands in `pretraining.json`.

    Raises:
        InputError: `output_dir` holds files and `resume` is not set, or was begun with another configuration.
    """
    import transformers

    if not resume and output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(f"{output_dir} holds files already; name another folder, or --resume to continue")
    if (output_dir / RECORD).is_file():  # finished before
        record = json.loads((output_dir / RECORD).read_text(encoding="utf-8"))
        _require_same(config, record["config"], output_dir / RECORD)
        return record
    work_dir = output_dir / "work"
    stopped = _find_stopped(work_dir, config)
    splits = load_ag_news(get_profile(config.profile))
    tokenizer = train_tokenizer(splits.train["text"][:], config, work_dir / "tokenizer")
    cut = {"add_special_tokens": False, "truncation": True, "max_length": config.max_length - 2}
    rows, validation = (tokenizer(part["text"][:], **cut)["input_ids"] for part in (splits.train, splits.validation))
    transformers.set_seed(config.seed)
    model = build_model(config)
    words = count_words(rows, config.vocab_size)
    initialise_embeddings(model, words, config)
    trainer = _make_trainer(config, work_dir, model, rows, validation, words.idf)
    trainer.train(resume_from_checkpoint=stopped)
    log = [row for row in trainer.state.log_history if "masked_loss" in row or "eval_masked_loss" in row]
    record = {
        "config": asdict(config),
        "data": {"source": splits.source, "rows": len(rows), "sha256": fingerprint(splits.train)},
        "parameters": model.num_parameters(),
        "tokens": {"an_epoch": int(trainer.batches.lengths.sum()), "seen": int(trainer.tokens[-1])},
        "log": log,
        "environment": environment(),
        "seconds": [row["seconds"] for row in log if "seconds" in row][-1],
    }
    _export(model, tokenizer, output_dir)
    write_atomically(output_dir / RECORD, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(work_dir)
    return record


def _require_same(config: PretrainingConfig, its: dict, path: Path) -> None:
    if its != asdict(config):
        raise InputError(f"{path} holds another configuration; use the same, or name another folder to begin anew")


def _find_stopped(work_dir: Path, config: PretrainingConfig) -> str | None:
    """The checkpoint to continue, None to begin; the one at the last step does not count, the Trainer would overrun it."""
    path = work_dir / "configuration.json"
    if path.is_file():
        _require_same(config, json.loads(path.read_text(encoding="utf-8")), path)
    work_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(config), indent=1) + "\n")
    # trainer_state.json is what the Trainer writes last.
    steps = [int(state.parent.name.rpartition("-")[2]) for state in work_dir.glob("checkpoint-*/trainer_state.json")]
    steps = [step for step in steps if step < config.max_steps]
    return str(work_dir / f"checkpoint-{max(steps)}") if steps else None


def _make_trainer(config: PretrainingConfig, work_dir: Path, model, rows, validation, idf):
    import torch
    from transformers import Trainer

    from ..training.arguments import OneDeviceArguments

    batches = TokenBudgetBatches([len(row) + 2 for row in rows], config.batch_tokens, config.seed)
    quiz = batches_by_tokens([len(row) + 2 for row in validation], 4 * config.batch_tokens)

    class PretrainingTrainer(Trainer):
        """The stock Trainer with token-budget batches and the losses above."""

        def get_train_dataloader(self):
            loader = torch.utils.data.DataLoader(rows, batch_sampler=batches, collate_fn=lambda batch: {"rows": batch})
            return self.accelerator.prepare(loader)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            # Every second batch in halves: a function of the step, so that a resumed run does the same.
            found = losses(model, inputs["rows"], self.idf, config, halves=self.state.global_step % 2 == 1)
            self.sums = {k: self.sums.get(k, 0.0) + v.item() for k, v in found.items()} | {
                k: v for k, v in self.sums.items() if k not in found
            }
            return (
                found["masked"]
                + config.words_weight * found["words"]
                + config.contrast_weight * found.get("contrast", 0.0)
            )

        def log(self, logs, start_time=None):
            if "loss" in logs:
                step, every = self.state.global_step, config.eval_steps
                steps = {"masked": every, "words": every, "contrast": step // 2 - (step - every) // 2}
                before = [row["seconds"] for row in self.state.log_history if "seconds" in row][-1:] or [0.0]
                logs["seconds"] = before[0] + time.monotonic() - self.lap
                self.lap = time.monotonic()
                logs["tokens"] = int(self.tokens[step - 1])
                logs |= {f"{name}_loss": total / steps[name] for name, total in self.sums.items()}
                self.sums = {}
            super().log(logs, start_time)

        def evaluate(self, *args, **kwargs):
            """Masked language modelling loss on validation text, with the same masks every time."""
            with torch.random.fork_rng(), torch.inference_mode():
                torch.manual_seed(config.seed)
                self.model.eval()
                each = [
                    losses(self.model, [validation[i] for i in batch], self.idf, config, halves=False) for batch in quiz
                ]
                self.model.train()
            metrics = {f"eval_{name}_loss": float(np.mean([e[name].item() for e in each])) for name in each[0]}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    trainer = PretrainingTrainer(
        model=model,
        args=OneDeviceArguments(
            output_dir=str(work_dir),
            max_steps=config.max_steps,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            logging_steps=config.eval_steps,
            eval_strategy="steps",
            eval_steps=config.eval_steps,
            save_steps=config.save_steps,
            save_total_limit=2,
            seed=config.seed,
            optim="adamw_torch_fused",
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            disable_tqdm=False,  # a bar with the time left, whatever the verbosity of transformers
            report_to="none",
        ),
        train_dataset=rows,
        eval_dataset=validation,
    )
    trainer.batches, trainer.tokens = batches, np.cumsum(list(_tokens_by_step(batches, config.max_steps)))
    trainer.idf = torch.from_numpy(idf).to(trainer.args.device)
    trainer.sums, trainer.lap = {}, time.monotonic()
    return trainer


def _tokens_by_step(batches: TokenBudgetBatches, steps: int):
    """Real tokens of each of the first `steps` batches; known beforehand, since the order is a pure function."""
    for step in range(steps):
        if step % len(batches) == 0:
            batches.set_epoch(step // len(batches))
            epoch = list(batches)
        yield int(batches.lengths[epoch[step % len(batches)]].sum())


def _export(model, tokenizer, output_dir: Path) -> None:
    """Weights in fp16 (half the size), but a configuration that says float32, so that every loader computes in it."""
    import torch

    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output_dir)
    model.to(torch.float16).save_pretrained(output_dir)
    path = output_dir / "config.json"
    shape = json.loads(path.read_text()) | {"dtype": "float32"}
    write_atomically(path, json.dumps(shape, indent=2, sort_keys=True) + "\n")
