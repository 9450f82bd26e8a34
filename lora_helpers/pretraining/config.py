"""What a pretraining is: one frozen, validated `PretrainingConfig`. Nothing here loads torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..field_checks import require_valid, setting

_model, _optimisation = partial(setting, "data and model"), partial(setting, "optimisation")
_losses, _evaluation = partial(setting, "losses"), partial(setting, "evaluation")


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """How the base is made. Its text is the training rows of `profile`, so its validation rows stay unseen."""

    profile: str = _model("mini-agnews", "name", "the profile whose training text is read")
    vocab_size: int = _model(16384, "vocabulary", "of the tokenizer, a byte-level BPE", "tokens")
    hidden_size: int = _model(256, "count", "width")
    num_hidden_layers: int = _model(4, "count", "depth")
    num_attention_heads: int = _model(4, "count", "share the width")
    max_length: int = _model(128, "length", "longest document, special tokens included; the rest is cut off", "tokens")
    embedding_scale: float = _model(0.05, "positive", "standard deviation of the initial token embeddings")

    max_steps: int = _optimisation(
        10_000, "count", "10,000 * 16,384 tokens: 42 epochs of the rows we had", "optimizer steps"
    )
    batch_tokens: int = _optimisation(16_384, "count", "an optimizer step, padding included", "tokens")
    learning_rate: float = _optimisation(1e-3, "positive", "at its peak; decays linearly to 0")
    warmup_steps: int = _optimisation(500, "not negative", "the rate rises from 0 during these", "optimizer steps")
    weight_decay: float = _optimisation(0.01, "not negative", "of AdamW")
    seed: int = _optimisation(42, "seed", "of weights, batch order and masks")

    # Of the masked tokens 80 % become <mask>, 10 % another token, 10 % stay (Devlin et al. 2019).
    mask_share: float = _losses(0.2, "positive share", "of the tokens are to be guessed", "share")
    words_weight: float = _losses(0.5, "not negative", 'of the loss "words of the document from <s>"')
    contrast_weight: float = _losses(0.5, "not negative", 'of the loss "which halves belong together"')
    temperature: float = _losses(0.05, "positive", "of the contrastive softmax")

    eval_steps: int = _evaluation(500, "count", "between two rows of the log", "optimizer steps")
    save_steps: int = _evaluation(1000, "count", "between two checkpoints", "optimizer steps")

    def __post_init__(self):
        require_valid(self, "pretraining", _at_odds)


def _at_odds(config: PretrainingConfig) -> list[str]:
    """Violations that take two fields to see."""
    pairs = (("max_steps", "eval_steps"), ("save_steps", "eval_steps"), ("hidden_size", "num_attention_heads"))
    problems = [
        f"{name} is {getattr(config, name)}, wanted a multiple of {other} ({getattr(config, other)})"
        for name, other in pairs
        if getattr(config, name) % getattr(config, other)
    ]
    if config.hidden_size > config.vocab_size:  # the embeddings begin as an analysis of so many dimensions
        problems.append(f"hidden_size is {config.hidden_size}, wanted at most vocab_size ({config.vocab_size})")
    return problems
