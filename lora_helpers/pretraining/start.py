"""Before the first step of pretraining, in this order: the tokenizer, the shape, token embeddings from word statistics."""

from __future__ import annotations

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
    special = list(SPECIAL_TOKENS)
    bpe.train_from_iterator(texts, vocab_size=config.vocab_size, special_tokens=special, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save_model(str(folder))
    return RobertaTokenizer.from_pretrained(folder, model_max_length=config.max_length, trust_remote_code=False)


def build_masked_model(config: PretrainingConfig):
    """The shape of `config` with random weights, and a head for masked tokens."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    shape = RobertaConfig(
        **{name: getattr(config, name) for name in same},
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=config.max_length + 2,  # RoBERTa's positions begin after the padding index
        type_vocab_size=1,
        hidden_dropout_prob=0.0,  # few epochs: underfitting, not overfitting, is the limit
        attention_probs_dropout_prob=0.0,
    )
    return RobertaForMaskedLM(shape)


def count_words(rows: list[list[int]], vocab_size: int):
    """TF-IDF of documents of token ids: a sparse matrix <float64>[documents, vocabulary], and idf <float32>[vocabulary]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    named = {"analyzer": list, "vocabulary": range(vocab_size), "lowercase": False}
    weighting = TfidfVectorizer(**named, sublinear_tf=True)
    return weighting.fit_transform(rows), (weighting.idf_ - 1).astype(np.float32)


def initialise_embeddings(model, words, config: PretrainingConfig) -> None:
    """Token embeddings begin as latent semantic analysis of the same text (Deerwester et al. 1990), not as noise.

    `words` is the matrix of `count_words`. On two cores that saves most of the first epoch: without it, words must first
    find their neighbours by descent.
    """
    import torch
    from sklearn.decomposition import TruncatedSVD

    rng = np.random.default_rng(config.seed)
    analysis = TruncatedSVD(config.hidden_size, random_state=config.seed).fit(words)
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
