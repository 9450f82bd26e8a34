"""What LoRA is worth, beside what else one could do with the same base: train the head alone, train everything, or fit a
logistic regression on its frozen vectors. All see the same rows, from the same first head, and in the same batches as
far as the first epoch goes, whose short last batch the rivals fill up. And
without any transformer: logistic regression on LSA vectors, and a linear model where labels are few.

Learning rates and C are chosen on validation rows, by one seed; test rows are only predicted. What is finished is read
from checkpoints/runs/ and not computed again; the runs of LoRA are those of `repeat_seeds`.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import AutoModel, DataCollatorWithPadding, PrinterCallback, Trainer, default_data_collator, set_seed
from transformers.modeling_utils import ModuleUtilsMixin

from ..bases import load_base
from ..batching import batches_by_tokens, pad
from ..config import RunConfig, get_profile
from ..data import load_ag_news, load_split, tokenize
from ..environment import best_device, code_mark, environment
from ..evaluation import to_digits
from ..files.hub import base_files, base_identity
from ..files.manifests import write_atomically
from ..files.places import RUNS
from ..training.arguments import Plan, make_arguments, restored_precision
from .baselines import fit_linear, rows_in_batches
from .study import MORE_SEEDS, SEEDS, at_its_end, compare_runs, run_folder, run_seeds

logger = logging.getLogger(__name__)

# Seeds and learning rates to choose from; a full fine-tuning takes more than half an hour of one core.
RIVALS = {"head alone": MORE_SEEDS, "full fine-tuning": SEEDS}
RATES = {"head alone": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2), "full fine-tuning": (3e-5, 1e-4, 3e-4, 1e-3)}
STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)  # C of the logistic regressions


def measure_rivals(
    profile: str = "mini-agnews", rivals: dict[str, Sequence[int]] = RIVALS, *,
    with_probes: bool = True, **changes,
) -> dict:  # fmt: skip
    """Every arm on validation and test rows with its seeds (LoRA with all of them), the learning rates tried, and, if
    `with_probes`, logistic regression on the frozen base's vectors and on LSA's."""
    seeds = max(rivals.values(), key=len)
    config, tried = get_profile(profile, seed=seeds[0], **changes), {}
    splits, test = load_ag_news(config), load_split(config.dataset, "test", config.dataset_revision)
    parts = {"train": splits.train, "validation": splits.validation, "test": test}
    labels = {part: each["label"][:] for part, each in parts.items()}
    _, tokenizer, _ = load_base(config.base_model, config.base_revision)
    rows = {part: tokenize(each, tokenizer, config.max_length) for part, each in parts.items()}
    seen = {seed: rows_in_batches(config.replace(seed=seed), rows["train"]["length"][:]) for seed in seeds}
    rows = {part: each.remove_columns("length") for part, each in rows.items()}
    vectors = {part: encode(config, each["input_ids"][:]) for part, each in rows.items()}
    # Nothing changes what the head alone is given, so it is computed once.
    kept = {part: {"features": each["<s>"], "labels": labels[part]} for part, each in vectors.items()}
    kept = {part: Dataset.from_dict(each).with_format("numpy") for part, each in kept.items()}
    given = {"head alone": (kept, default_data_collator)}
    given |= {"full fine-tuning": (rows, DataCollatorWithPadding(tokenizer))}
    arms = {"LoRA": run_seeds(profile, seeds, **changes)}
    base = base_identity(config.base_model, config.base_revision)["sha256"]
    mark = hashlib.sha256(f"{base} {splits.fingerprints()}".encode()).hexdigest()[:10]
    for arm, its_seeds in rivals.items():
        run = partial(_run, arm, mark, seen=seen, rows=given[arm][0], collate=given[arm][1])
        runs = [run(config.replace(learning_rate=rate)) for rate in RATES[arm]]
        tried[arm] = [{key: each[key] for key in ("learning_rate", "validation_accuracy")} for each in runs]
        best = max(tried[arm], key=lambda row: row["validation_accuracy"])["learning_rate"]
        arms[arm] = [run(config.replace(learning_rate=best, seed=seed)) for seed in its_seeds]
    digits = {part: to_digits(labels[part]) for part in ("validation", "test")}
    found = {"profile": profile, "labels": digits, "tried": tried}
    if with_probes:
        for part, each in embed_by_counts({part: each["text"][:] for part, each in parts.items()}).items():
            vectors[part]["LSA"] = each
        found["probes"] = probe(vectors, labels, seen[config.seed])
    return found | {"arms": compare_runs(arms)}


def measure_full_size(profile: str = "mpnet-base") -> dict:
    """LoRA and the head alone with three seeds, evaluated at the end, as in `study.run_study`, which shares the runs of LoRA."""
    return measure_rivals(profile, {"head alone": SEEDS}, with_probes=False, **at_its_end(get_profile(profile)))


def count_labels(profile: str = "mini-agnews", sizes: tuple[int, ...] = (500, 2000, 8000, 32_000)) -> dict:
    """LoRA with few labels: the profile's steps on `sizes` training rows, drawn anew by each seed and by class, beside a
    linear model that is fitted on the same rows. The latter is chosen on the validation rows, which are labelled too."""
    config, found = get_profile(profile), []
    splits, test = load_ag_news(config), load_split(config.dataset, "test", config.dataset_revision)
    for size in sizes:
        runs = {"LoRA": [], "linear model": []}
        for seed in SEEDS:
            part = splits.train.train_test_split(train_size=size, seed=seed, stratify_by_column="label")["train"]
            folder = RUNS / f"{profile}-{size}-rows-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            for split, rows in (("train", part), ("validation", splits.validation), ("test", test)):
                rows.to_parquet(folder / f"{split}.parquet")
            runs["LoRA"] += run_seeds(profile, (seed,), dataset=str(folder), **at_its_end(config))
            linear = fit_linear(replace(splits, train=part), test)
            its = {f"test_{key}": linear["all_rows"][key] for key in ("accuracy", "predictions")}
            its |= {"labelled_rows": linear["all_rows"]["train_rows"], "chosen": linear["chosen"]}
            runs["linear model"].append({"seed": seed} | its)
        found.append({"rows": size, "arms": compare_runs(runs, "test_accuracy")})
    return {"profile": profile, "labels": to_digits(test["label"][:]), "sizes": found}


def encode(config: RunConfig, ids: list[list[int]]) -> dict[str, np.ndarray]:
    """The frozen base's vectors of tokenised rows: that of `<s>`, and the `mean` over all tokens; <float32>[n, width]. They
    are computed once, all together, and kept in checkpoints/runs/, in a file whose name stands for base and tokens."""
    base = base_identity(config.base_model, config.base_revision)["sha256"]
    path = RUNS / f"vectors-{hashlib.sha256(f'{base} {ids}'.encode()).hexdigest()[:10]}.safetensors"
    if path.is_file():
        return load_file(path)
    logger.info("encode: %d rows", len(ids))
    encoder = AutoModel.from_pretrained(  # not `load_base`'s, which computes `<s>` alone and so has no mean
        base_files(config.base_model, config.base_revision),
        local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
    ).eval().to(best_device())  # fmt: skip
    first, mean = (np.empty((len(ids), encoder.config.hidden_size), np.float32) for _ in range(2))
    for batch in batches_by_tokens([len(row) for row in ids], 4096):
        inputs = pad([ids[i] for i in batch], encoder.config.pad_token_id)
        inputs = {name: tensor.to(encoder.device) for name, tensor in inputs.items()}
        with torch.no_grad():
            hidden = encoder(**inputs).last_hidden_state
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[:, :, None]
        first[batch] = hidden[:, 0].cpu()
        mean[batch] = ((hidden * mask).sum(1) / mask.sum(1)).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"<s>": first, "mean": mean}, path.with_suffix(".part"))
    return load_file(path.with_suffix(".part").replace(path))


def probe(vectors: dict[str, dict[str, np.ndarray]], labels: dict[str, list[int]], seen: np.ndarray) -> list[dict]:
    """Logistic regression on each kind of fixed vectors, standardised, its C chosen on validation rows; fitted on the
    training rows `seen` <int64>[n], those of a run."""
    found, of_seen = [], np.array(labels["train"])[seen]
    for kind in vectors["train"]:
        tried = []
        for strength in STRENGTHS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
            tried.append(model.fit(vectors["train"][kind][seen], of_seen))
        best = max(tried, key=lambda model, kind=kind: model.score(vectors["validation"][kind], labels["validation"]))
        scores = {part: float(best.score(vectors[part][kind], labels[part])) for part in ("validation", "test")}
        found.append({"vectors": kind, "C": best[-1].C} | {f"{part}_accuracy": value for part, value in scores.items()})
    return found


def embed_by_counts(texts: dict[str, list[str]], width: int = 256) -> dict[str, np.ndarray]:
    """Vectors that no transformer made, by part: latent semantic analysis (a truncated SVD of TF-IDF over words) fitted on
    all training texts, as the base was pretrained on them, and as wide as the bundled base; <float64>[n, width]."""
    lsa = make_pipeline(TfidfVectorizer(sublinear_tf=True), TruncatedSVD(width, random_state=0)).fit(texts["train"])
    return {part: lsa.transform(each) for part, each in texts.items()}


@restored_precision()  # a GPU's, which `make_arguments` changes
def _run(
    arm: str, mark: str, config: RunConfig, *, rows: dict[str, Dataset], seen: dict[int, np.ndarray], collate
) -> dict:
    """One arm at one seed and rate, computed or read: accuracies and predictions by row; `mark` stands for base and data,
    and `seen` are the training rows by seed, in their order."""
    path = RUNS / f"{run_folder(config).name}-{arm.replace(' ', '-')}-{mark}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    found = {"seed": config.seed, "learning_rate": config.learning_rate, "code": code_mark(environment())}
    set_seed(config.seed)  # the head is drawn here, as in `build_model`
    model, tokenizer, _ = load_base(config.base_model, config.base_revision, dropout=config.base_dropout)
    model = HeadAlone(model.classifier) if arm == "head alone" else model
    parts = {"tokenizer": tokenizer, "train_rows": rows["train"], "validation_rows": rows["validation"]}
    arguments = make_arguments(Plan(config=config, output_dir=RUNS / "rivals", model=model, **parts))
    arguments.train_sampling_strategy, arguments.save_strategy, arguments.eval_strategy = "sequential", "no", "no"
    # The stock Trainer, on rows that lie in the order in which a run's batches bring them.
    trainer = Trainer(model, arguments, collate, rows["train"].select(seen[config.seed]))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    found["trained_parameters"] = sum(each.numel() for each in model.parameters())
    for part in ("validation", "test"):
        predicted = trainer.predict(rows[part]).predictions.argmax(axis=1)
        accuracy = float((predicted == np.array(rows[part]["labels"][:])).mean())
        found |= {f"{part}_accuracy": accuracy, f"{part}_predictions": to_digits(predicted)}
    write_atomically(path, json.dumps(found))
    return found


class HeadAlone(ModuleUtilsMixin, nn.Module):
    """The classification head on vectors of `<s>` that were computed before: features <float32>[rows, width]."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """A batch's mean loss in nats, and its logits <float32>[rows, 4]."""
        logits = self.head(features[:, None])
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
