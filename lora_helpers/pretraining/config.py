"""What a pretraining is: one frozen, validated `PretrainingConfig`. Nothing here loads torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..errors import InputError
from ..field_checks import wrong_types


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

    def __post_init__(self):
        problems = list(wrong_types(self).values()) or [
            f"{name} is {value}, wanted a number above 0"
            for name, value in asdict(self).items()
            if not isinstance(value, str) and not value > 0
        ]
        if not problems and self.hidden_size % self.num_attention_heads:
            problems = [f"hidden_size is {self.hidden_size}, wanted a multiple of {self.num_attention_heads} heads"]
        if not problems:
            problems = [
                f"{name} is {getattr(self, name)}, wanted a multiple of eval_steps ({self.eval_steps})"
                for name in ("max_steps", "save_steps")
                if getattr(self, name) % self.eval_steps
            ]
        if problems:
            raise InputError("pretraining: " + "; ".join(problems))
