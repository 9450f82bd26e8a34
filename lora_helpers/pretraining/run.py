"""How the bundled base model was made: a small RoBERTa, trained from scratch on the training text of AG News.

Called by `python -m lora_helpers pretrain` and by `evidence base`; fine-tuning never runs this.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from ..config import get_profile
from ..data import fingerprint, load_ag_news
from ..environment import environment
from ..errors import InputError
from ..files.manifests import write_atomically
from .config import PretrainingConfig
from .start import build_masked_model, count_words, initialise_embeddings, train_tokenizer

PRETRAINING_RECORD = "pretraining.json"


def pretrain(config: PretrainingConfig, output_dir: Path, *, resume: bool = False) -> dict:
    """Train a base model and write it, with tokenizer and `pretraining.json`, the record returned, to `output_dir`.

    While it runs, checkpoints stand in `output_dir/work` (about 200 MB); `resume` continues the newest one.

    Raises:
        InputError: `output_dir` holds files and `resume` is not set, or was begun with another configuration.
    """
    path, work_dir = output_dir / PRETRAINING_RECORD, output_dir / "work"
    begun = work_dir / "begun.json"
    if not resume and output_dir.is_dir() and any(output_dir.iterdir()):
        raise InputError(f"{output_dir} holds files already; name another folder, or --resume to continue")
    for old in (each for each in (path, begun) if each.is_file()):
        if (record := json.loads(old.read_text(encoding="utf-8")))["config"] != asdict(config):
            raise InputError(f"{old} holds another configuration; use the same, or name another folder to begin anew")
        if old == path:  # finished before
            return record
    work_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(begun, json.dumps({"config": asdict(config)}))
    record = _train(config, output_dir, work_dir)
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    shutil.rmtree(work_dir)
    return record


def _train(config: PretrainingConfig, output_dir: Path, work_dir: Path) -> dict:
    import transformers

    from .trainer import PretrainingTrainer

    facts, splits = environment(), load_ag_news(get_profile(config.profile))
    tokenizer = train_tokenizer(splits.train["text"][:], config, work_dir / "tokenizer")
    cut = {"add_special_tokens": False, "truncation": True, "max_length": config.max_length - 2}
    rows, validation = (tokenizer(part["text"][:], **cut)["input_ids"] for part in (splits.train, splits.validation))
    transformers.set_seed(config.seed)
    model, (words, idf) = build_masked_model(config), count_words(rows, config.vocab_size)
    initialise_embeddings(model, words, config)
    trainer = PretrainingTrainer(config, work_dir, model, rows=rows, validation=validation, idf=idf)
    trainer.train(resume_from_checkpoint=_find_stopped(work_dir, config.max_steps))
    _export(model, tokenizer, output_dir)
    log = [row for row in trainer.state.log_history if "masked_loss" in row or "eval_masked_loss" in row]
    return {
        "config": asdict(config),
        "data": {"source": splits.source, "rows": len(rows), "sha256": fingerprint(splits.train)},
        "parameters": model.num_parameters(),
        "tokens": _count_tokens(trainer.batches, config.max_steps),
        "log": log,
        "environment": facts,
        "seconds": [row["seconds"] for row in log if "seconds" in row][-1],
    }


def _find_stopped(work_dir: Path, last: int) -> str | None:
    """The newest whole checkpoint, None to begin; one at the `last` step does not count, the Trainer would overrun it."""
    # trainer_state.json is what the Trainer writes last.
    steps = [int(state.parent.name.rpartition("-")[2]) for state in work_dir.glob("checkpoint-*/trainer_state.json")]
    steps = [step for step in steps if step < last]
    return str(work_dir / f"checkpoint-{max(steps)}") if steps else None


def _count_tokens(batches, steps: int) -> dict[str, int]:
    """Real tokens of an epoch, and of the batches of all `steps`: their order is a pure function, so nobody counted."""
    epochs, rest = divmod(steps, len(batches))
    batches.set_epoch(epochs)
    an_epoch, begun = int(batches.lengths.sum()), list(batches)[:rest]
    return {"an_epoch": an_epoch, "seen": epochs * an_epoch + sum(int(batches.lengths[rows].sum()) for rows in begun)}


def _export(model, tokenizer, output_dir: Path) -> None:
    """Weights in fp16 (half the size), but a configuration that says float32, so that every loader computes in it."""
    import torch

    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output_dir)
    model.to(torch.float16).save_pretrained(output_dir)
    path = output_dir / "config.json"
    shape = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    write_atomically(path, json.dumps(shape, indent=2, sort_keys=True) + "\n")
