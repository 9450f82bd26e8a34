"""Before the first step of pretraining: the tokenizer, the shape, and token embeddings from word statistics.

`pretraining` calls these once, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .losses import SPECIAL_TOKENS

if TYPE_CHECKING:
    from .config import PretrainingConfig


def train_tokenizer(texts, config: PretrainingConfig, folder: Path):
    """Byte-level BPE on the training text, as a RoBERTa tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=config.vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save_model(str(folder))
    return RobertaTokenizer.from_pretrained(folder, model_max_length=config.max_length, trust_remote_code=False)


def build_masked_model(config: PretrainingConfig):
    """The shape of `config` with random weights, and a head for masked tokens."""
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


def count_words(rows: list[list[int]], vocab_size: int) -> WordCounts:
    """Of token ids by document: how often each stands there, weighed by how rare it is."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer

    indices = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    counts = csr_matrix((np.ones(len(indices)), indices, starts), shape=(len(rows), vocab_size))
    counts.sum_duplicates()
    weighting = TfidfTransformer(sublinear_tf=True, smooth_idf=True).fit(counts)
    return WordCounts(weighting.transform(counts), (weighting.idf_ - 1).astype(np.float32))


def initialise_embeddings(model, words: WordCounts, config: PretrainingConfig) -> None:
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
