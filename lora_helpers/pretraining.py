"""How the bundled base model was made: a small RoBERTa, trained from scratch on the training text of AG News.

One stage, three self-supervised losses, no label: masked language modelling; the words of the whole document from
its `<s>` vector (masked language modelling alone never trains `<s>`, and the classification head reads nothing
else); and, in every second batch, telling which two halves belong to one document by their `<s>` vectors.
Called by `python -m lora_helpers pretrain`; fine-tuning never runs this.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import records
from .batching import batches_by_tokens, pad
from .checkpoints import write_atomically
from .config import InputError, get_profile
from .data import fingerprint, load_ag_news

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0-4, as in roberta-base but for <mask>
BOS, PAD, EOS, MASK = 0, 1, 2, 4
RECORD = "pretraining.json"


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """How the base is made. Its text is the training rows of `profile`, so its validation rows stay unseen."""

    profile: str = "mini-agnews"  # whose training text is read
    vocab_size: int = 16384  # byte-level BPE tokens
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    max_length: int = 128  # tokens, special ones included; the rest is cut off
    batch_tokens: int = 3072  # tokens an optimizer step
    max_steps: int = 8000  # optimizer steps; 8,000 * 3,072 = 25 million tokens, 6 epochs
    learning_rate: float = 1e-3  # at its peak, with linear decay to 0
    warmup_steps: int = 400
    weight_decay: float = 0.01
    mask_share: float = 0.2  # of the tokens; 80 % become <mask>, 10 % another token, 10 % stay (Devlin et al. 2019)
    words_weight: float = 0.5  # of the loss "words of the document from <s>"
    contrast_weight: float = 0.5  # of the loss "which halves belong together"
    temperature: float = 0.05  # of the contrastive softmax
    embedding_scale: float = 0.05  # standard deviation of the initial token embeddings
    eval_steps: int = 250  # optimizer steps between two rows of the log
    save_steps: int = 500
    seed: int = 42


def pretrain(config: PretrainingConfig, output_dir: Path, work_dir: Path, *, resume: bool = False) -> dict:
    """Train a base model and write it, with tokenizer and `pretraining.json`, to `output_dir`.

    Checkpoints go to `work_dir` (about 100 MB); `resume` continues the newest one there.

    Raises:
        InputError: `work_dir` holds a stopped run and `resume` is not set.
    """
    import transformers

    stopped = transformers.trainer_utils.get_last_checkpoint(work_dir) if work_dir.is_dir() else None
    if stopped and not resume:
        raise InputError(f"{work_dir} holds a stopped pretraining; --resume continues it, removing the folder begins anew")
    began = time.monotonic()
    splits = load_ag_news(get_profile(config.profile))
    tokenizer = _train_tokenizer(list(splits.train["text"]), config, work_dir / "tokenizer")
    rows, validation = (
        tokenizer(list(part["text"]), add_special_tokens=False, truncation=True, max_length=config.max_length - 2)["input_ids"]
        for part in (splits.train, splits.validation)
    )
    transformers.set_seed(config.seed)
    model = _build_model(config)
    tfidf = _count_words(rows, config.vocab_size)
    _initialise_embeddings(model, tfidf, config)
    trainer = _make_trainer(config, work_dir, model, rows, validation, tfidf.idf)
    trainer.train(resume_from_checkpoint=stopped)
    record = {
        "config": asdict(config),
        "data": {"source": splits.source, "rows": len(rows), "sha256": fingerprint(splits.train)},
        "parameters": model.num_parameters(),
        "tokens": {"an_epoch": int(trainer.batches.lengths.sum()), "seen": int(trainer.tokens[-1])},
        "log": [row for row in trainer.state.log_history if "masked_loss" in row or "eval_masked_loss" in row],
        "environment": records.environment(),
        "seconds": time.monotonic() - began,
        "resumed": bool(stopped),
    }
    _export(model, tokenizer, output_dir)
    write_atomically(output_dir / RECORD, json.dumps(record, indent=1) + "\n")
    return record


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


def mask_tokens(ids, share: float):
    """Masked language modelling's input: (ids with masks, <bool> what was masked), both [rows, longest]."""
    import torch

    masked = (torch.rand(ids.shape, device=ids.device) < share) & (ids >= len(SPECIAL_TOKENS))
    fate = torch.rand(ids.shape, device=ids.device)
    ids = ids.masked_fill(masked & (fate < 0.8), MASK)
    return torch.where(masked & (fate >= 0.9), torch.randint_like(ids, len(SPECIAL_TOKENS), ids.max() + 1), ids), masked


def losses(model, documents: list[list[int]], idf, config: PretrainingConfig, *, halves: bool) -> dict:
    """The losses of one batch: `masked`, `words` and, with `halves`, `contrast`; each a scalar in nats.

    Args:
        documents: token ids of each document, without special tokens.
        idf: <float32>[vocabulary], inverse document frequency: rare words count more in `words`.
        halves: feed each document as two halves, cut at random near its middle.
    """
    import torch
    from torch.nn import functional

    device = model.device
    parts = _cut_in_halves(documents) if halves else documents
    inputs = {name: tensor.to(device) for name, tensor in pad([[BOS, *part, EOS] for part in parts], PAD).items()}
    ids = inputs.pop("input_ids")
    noisy, masked = mask_tokens(ids, config.mask_share)
    hidden = model.roberta(input_ids=noisy, **inputs).last_hidden_state  # <float32>[rows, longest, hidden]
    found = {"masked": functional.cross_entropy(model.lm_head(hidden[masked]), ids[masked])}

    # Every word of the whole document, also of the half that this row does not show.
    words = pad(documents, PAD)["input_ids"].to(device)
    weight = idf[words] * (words != PAD)
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
    copies = 2 if halves else 1
    likely = model.lm_head(hidden[:, 0]).log_softmax(dim=-1).gather(1, words.repeat(copies, 1))
    found["words"] = -(likely * weight.repeat(copies, 1)).sum(dim=1).mean()

    if halves:  # InfoNCE over the batch, both ways (van den Oord et al. 2018, eq. 4)
        first, second = functional.normalize(hidden[:, 0], dim=-1).chunk(2)
        similarity = first @ second.T / config.temperature
        own = torch.arange(len(documents), device=device)
        found["contrast"] = (
            functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.T, own)
        ) / 2
    return found


def _cut_in_halves(documents: list[list[int]]) -> list[list[int]]:
    """First halves, then second halves, each cut at a random place between 40 and 60 % of the document."""
    import torch

    places = torch.empty(len(documents)).uniform_(0.4, 0.6).tolist()
    cuts = [int(len(document) * place) for document, place in zip(documents, places, strict=True)]
    pairs = list(zip(documents, cuts, strict=True))
    return [document[:cut] for document, cut in pairs] + [document[cut:] for document, cut in pairs]


def _train_tokenizer(texts, config: PretrainingConfig, folder: Path):
    """Byte-level BPE on the training text, as a RoBERTa tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=config.vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save_model(str(folder))
    return RobertaTokenizer.from_pretrained(folder, model_max_length=config.max_length)


def _build_model(config: PretrainingConfig):
    from transformers import RobertaConfig, RobertaForMaskedLM

    shape = RobertaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.max_length + 2,  # RoBERTa's positions begin after the padding index
        type_vocab_size=1,
        hidden_dropout_prob=0.0,  # few epochs: underfitting, not overfitting, is the limit
        attention_probs_dropout_prob=0.0,
    )
    return RobertaForMaskedLM(shape)


@dataclass(frozen=True)
class WordCounts:
    """TF-IDF of the training text: a sparse matrix <float64>[documents, vocabulary], and `idf` <float32>[vocabulary]."""

    matrix: object
    idf: np.ndarray


def _count_words(rows: list[list[int]], vocab_size: int) -> WordCounts:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer

    indices = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    counts = csr_matrix((np.ones(len(indices)), indices, starts), shape=(len(rows), vocab_size))
    counts.sum_duplicates()
    weighting = TfidfTransformer(sublinear_tf=True, smooth_idf=True).fit(counts)
    return WordCounts(weighting.transform(counts), (weighting.idf_ - 1).astype(np.float32))


def _initialise_embeddings(model, words: WordCounts, config: PretrainingConfig) -> None:
    """Token embeddings begin as latent semantic analysis of the same text (Deerwester et al. 1990), not as noise.

    On two cores that saves most of the first epoch: without it, words must first find their neighbours by descent.
    """
    import torch
    from sklearn.decomposition import TruncatedSVD

    rng = np.random.default_rng(config.seed)
    analysis = TruncatedSVD(config.hidden_size, random_state=config.seed).fit(words.matrix)
    vectors = analysis.components_.T * np.sqrt(analysis.singular_values_)
    vectors *= config.embedding_scale / vectors.std()
    longest = 3 * config.embedding_scale * np.sqrt(config.hidden_size)  # frequent words would drown the positions
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors *= np.minimum(1, longest / np.maximum(norms, 1e-9))
    rotation, _ = np.linalg.qr(rng.normal(size=(config.hidden_size, config.hidden_size)))  # spread over all heads
    vectors = vectors @ rotation + rng.normal(scale=config.embedding_scale / 5, size=vectors.shape)
    special = len(SPECIAL_TOKENS)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[special:] = torch.from_numpy(vectors[special:]).to(table)


def _make_trainer(config: PretrainingConfig, work_dir: Path, model, rows, validation, idf):
    import torch
    from transformers import Trainer, TrainingArguments

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
                steps = {"masked": config.eval_steps, "words": config.eval_steps, "contrast": config.eval_steps / 2}
                logs["tokens"] = int(self.tokens[self.state.global_step - 1])
                logs |= {f"{name}_loss": self.sums.get(name, 0.0) / steps[name] for name in steps}
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
        args=TrainingArguments(
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
    trainer.sums = {}
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
