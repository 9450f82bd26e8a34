"""What LoRA is worth, beside what else one could do with the same base: train the head alone, train everything, or fit a
logistic regression on its frozen vectors. All see the same rows, in the same batches, from the same first head.

Learning rates and C are chosen on validation rows, by one seed; test rows are only predicted. A run that is finished is
read from checkpoints/runs/ and not computed again.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModel, DataCollatorWithPadding, PrinterCallback, Trainer, default_data_collator, set_seed

from ..bases import load_base
from ..batching import batches_by_tokens, pad
from ..checkpoints import list_checkpoints, load_checkpoint
from ..config import RunConfig, get_profile
from ..data import load_ag_news, load_split, tokenize
from ..environment import code_mark, environment, watch_peak_memory
from ..evaluation import to_digits
from ..files.hub import base_files
from ..files.manifests import write_atomically
from ..files.places import RUNS
from ..training.run import train
from ..training.trainer import Plan, make_arguments
from .baselines import rows_in_batches
from .study import compare_arms

# An arm without a seed is left out: full fine-tuning takes hours of one core, and nobody has given them yet.
SEEDS = {"LoRA": (42, 43, 44), "head alone": (42, 43, 44), "full fine-tuning": ()}
RATES = {"head alone": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2), "full fine-tuning": (1e-4, 3e-4, 1e-3)}
STRENGTHS = (0.03, 0.3, 3.0, 30.0)  # C of the logistic regressions


def measure_rivals(profile: str = "mini-agnews", **changes) -> dict:
    """Every arm and seed on validation and test rows, the rates that were tried, and the probes of the frozen base."""
    config = get_profile(profile, **changes)
    config = config.replace(eval_steps=config.max_steps, save_steps=config.max_steps)  # the end is all that is compared
    rows, tokenizer = _tokenize(config)
    vectors, tried, arms = {part: encode(config, each) for part, each in rows.items()}, {}, {}

    def run(arm: str, config: RunConfig) -> dict:
        return _run(arm, config, rows, vectors, tokenizer)

    for arm, seeds in ((arm, seeds) for arm, seeds in SEEDS.items() if seeds):
        chosen = config
        if arm in RATES:
            runs = [run(arm, config.replace(learning_rate=rate)) for rate in RATES[arm]]
            tried[arm] = [{key: each[key] for key in ("learning_rate", "validation_accuracy")} for each in runs]
            best = max(tried[arm], key=lambda row: row["validation_accuracy"])
            chosen = config.replace(learning_rate=best["learning_rate"])
        arms[arm] = [run(arm, chosen.replace(seed=seed)) for seed in seeds]
    compared = compare_arms({arm: [each["validation_accuracy"] for each in runs] for arm, runs in arms.items()})
    labels = {part: to_digits(rows[part]["labels"][:]) for part in ("validation", "test")}
    found = {"profile": profile, "labels": labels, "tried": tried, "probes": probe(config, vectors, rows)}
    return found | {"arms": {arm: compared[arm] | {"runs": runs} for arm, runs in arms.items()}}


def encode(config: RunConfig, rows: Dataset) -> dict[str, np.ndarray]:
    """The frozen base's vectors of tokenised rows: that of `<s>`, and the `mean` over all tokens; <float32>[n, width]."""
    folder = base_files(config.base_model, config.base_revision)
    encoder = AutoModel.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
    ).eval()
    ids, found = rows["input_ids"][:], {}
    for batch in batches_by_tokens(rows["length"][:], 4096):
        inputs = pad([ids[i] for i in batch], encoder.config.pad_token_id)
        with torch.no_grad():
            hidden = encoder(**inputs).last_hidden_state
        mask = inputs.get("attention_mask", torch.ones(hidden.shape[:2]))[:, :, None]
        for name, values in (("<s>", hidden[:, 0]), ("mean", (hidden * mask).sum(1) / mask.sum(1))):
            found.setdefault(name, np.empty((len(ids), hidden.shape[2]), np.float32))[batch] = values.numpy()
    return found


def probe(config: RunConfig, vectors: dict[str, dict[str, np.ndarray]], rows: dict[str, Dataset]) -> list[dict]:
    """Logistic regression on each kind of frozen vectors, standardised, its C chosen on validation rows.

    Fitted on the training rows that a run of `config` sees.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels, found = {part: np.array(each["labels"][:]) for part, each in rows.items()}, []
    seen = rows_in_batches(config, rows["train"]["length"][:])
    for kind in vectors["train"]:
        tried = []
        for strength in STRENGTHS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
            model.fit(vectors["train"][kind][seen], labels["train"][seen])
            right = {part: model.predict(vectors[part][kind]) == labels[part] for part in ("validation", "test")}
            tried.append({"C": strength} | {f"{part}_accuracy": float(each.mean()) for part, each in right.items()})
        found.append({"vectors": kind} | max(tried, key=lambda row: row["validation_accuracy"]))
    return found


def _tokenize(config: RunConfig) -> tuple[dict[str, Dataset], object]:
    """Tokens of `train`, `validation` and `test`, and the tokenizer."""
    splits, (_, tokenizer, _) = load_ag_news(config), load_base(config.base_model, config.base_revision)
    test = load_split(config.dataset, "test", config.dataset_revision)
    parts = {"train": splits.train, "validation": splits.validation, "test": test}
    return {part: tokenize(each, tokenizer, config.max_length) for part, each in parts.items()}, tokenizer


def _run(arm: str, config: RunConfig, rows: dict[str, Dataset], vectors: dict, tokenizer) -> dict:
    """One arm at one seed and rate, computed or read: accuracies, predictions by row, and what it cost."""
    name = f"rivals-{config.profile}-{arm.replace(' ', '-')}-{config.learning_rate:g}-{config.seed}"
    path = RUNS / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    found = {"seed": config.seed, "learning_rate": config.learning_rate, "code": code_mark(environment())}
    peak, collate = watch_peak_memory(gpu=True), DataCollatorWithPadding(tokenizer)
    order = rows_in_batches(config, rows["train"]["length"][:])
    rows = {part: each.remove_columns("length") for part, each in rows.items()}
    if arm == "LoRA":
        record = train(config, RUNS / name, resume=True)
        seconds, trained = record["timing"]["seconds"], record["parameters"]["trainable"]
        model, *_ = load_checkpoint(list_checkpoints(RUNS / name)[-1])
    else:
        set_seed(config.seed)  # the head is drawn here, as in `build_model`
        model, *_ = load_base(config.base_model, config.base_revision, dropout=config.base_dropout)
        if arm == "head alone":  # nothing changes its input, which need not be computed again
            model, collate = HeadAlone(model.classifier), default_data_collator
            kept = {
                part: {"features": vectors[part]["<s>"], "labels": each["labels"][:]} for part, each in rows.items()
            }
            rows = {part: Dataset.from_dict(each).with_format("numpy") for part, each in kept.items()}
        trained = sum(parameter.numel() for parameter in model.parameters())
    trainer = _make_trainer(model, config, rows | {"train": rows["train"].select(order)}, tokenizer, collate)
    if arm != "LoRA":
        seconds = trainer.train().metrics["train_runtime"]
    found |= {"seconds": seconds, "threads": torch.get_num_threads(), "peak_memory_mib": peak()}
    for part in ("validation", "test"):
        predicted = trainer.predict(rows[part]).predictions.argmax(axis=1)
        accuracy = float((predicted == np.array(rows[part]["labels"][:])).mean())
        found |= {f"{part}_accuracy": accuracy, f"{part}_predictions": to_digits(predicted)}
    write_atomically(path, json.dumps(found | {"trained_parameters": trained}))
    return found | {"trained_parameters": trained}


def _make_trainer(model, config: RunConfig, rows: dict[str, Dataset], tokenizer, collate) -> Trainer:
    """The stock Trainer under the arguments of a run, on `rows["train"]` in the order in which they come."""
    plan = Plan(
        config=config, output_dir=RUNS / "rivals", model=model, tokenizer=tokenizer, train_rows=rows["train"],
        validation_rows=rows["validation"],
    )  # fmt: skip
    arguments = make_arguments(plan)
    arguments.train_sampling_strategy, arguments.save_strategy, arguments.eval_strategy = "sequential", "no", "no"
    trainer = Trainer(model, arguments, collate, rows["train"])
    trainer.remove_callback(PrinterCallback)
    return trainer


class HeadAlone(nn.Module):
    """The classification head on vectors of `<s>` that were computed before: features <float32>[rows, width]."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(features[:, None])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
