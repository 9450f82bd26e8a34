"""A base model and its tokenizer, read from a folder as data: JSON and safetensors, nobody's code, no question asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from . import loading
from .config import LABELS
from .errors import InputError, first_line
from .files.hub import base_files, how_to_restore
from .files.places import MPNET_BASE, ROBERTA_BASE, full_name

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Two bases of 12 layers of width 768: what differs from their configurations' defaults, and parameters with our head.
_SHAPE = {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}
FULL_SIZE = {ROBERTA_BASE: ("roberta", _SHAPE | {"type_vocab_size": 1}), MPNET_BASE: ("mpnet", _SHAPE)}
PARAMETERS = {ROBERTA_BASE: 124_648_708, MPNET_BASE: 109_489_540}
FEWEST = 10  # tokens of a vocabulary, besides special ones
WANTED = "wanted an encoder for which transformers has a sequence-classification head (RoBERTa, DistilBERT, MPNet, ...)"


def load_base(
    name: str, revision: str | None, *, dropout: float | None = None, random: bool = False, or_else: str = ""
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """An encoder with a 4-class head, its tokenizer, and the names of the weights that the base did not bring.

    `name` is a Hub name at commit `revision`, or a folder. `dropout` replaces the probabilities of its configuration;
    with `random` every weight is drawn anew. `or_else` ends the advice where the base is not to be had.
    """
    import torch
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as WITH_HEAD
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    folder = base_files(name, revision, or_else)
    disable_progress_bar()  # a download deserves a bar, reading a local file does not
    with loading(), _refusals_in_one_line(name, revision):
        shape = read_shape(folder, dropout)
        if type(shape) not in WITH_HEAD or shape.is_encoder_decoder:
            kind = "an encoder with a decoder" if shape.is_encoder_decoder else "without such a head"
            raise InputError(f"base model {name!r} is of type {shape.model_type}, {kind}; {WANTED}")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        discord = _find_discord(folder, tokenizer)
        if getattr(shape, "pad_token_id", None) is None:
            shape.pad_token_id = tokenizer.pad_token_id  # a decoder's head looks for the last token before it
        if random:
            model = AutoModelForSequenceClassification.from_config(shape, dtype=torch.float32, trust_remote_code=False)
            missing = [n for n, _ in model.named_parameters() if not n.startswith(model.base_model_prefix)]
        else:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, config=shape, dtype=torch.float32,
                use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
            missing = sorted(info["missing_keys"])
    if tokenizer.pad_token_id is None:
        raise InputError(f"base model {name!r} has no padding token, so texts cannot share a batch; {WANTED}")
    if len(tokenizer) - len({*tokenizer.all_special_ids}) < FEWEST:  # which transformers makes up without files
        raise InputError(f"base model {name!r} brings no tokenizer; put its files there, or take another base")
    if misfit := discord or _find_misfit(full_name(name), model, tokenizer, missing):
        raise InputError(f"base model {name!r} {misfit}; {how_to_restore(name, revision)}")
    compute_first_token_alone(model)
    return model, tokenizer, missing


def read_shape(folder: Path, dropout: float | None = None) -> PreTrainedConfig:
    """The configuration in `folder`, for our four classes; what it says about files and kernels to load is dropped."""
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, attn_implementation=None, num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    shape.transformers_weights = None  # else another file than those that identify the base
    shape.problem_type, shape.return_dict = None, True  # else another loss, or a tuple in the place of the logits
    for field, value in ({} if dropout is None else shape.to_dict()).items():
        if type(value) in (int, float) and ("dropout" in field or "pdrop" in field):  # GPT-2's: attn_pdrop
            setattr(shape, field, dropout)
    return shape


def full_size_shape(name: str) -> PreTrainedConfig:
    """The configuration of a base in `FULL_SIZE` with a 4-class head, without any file."""
    from transformers import AutoConfig

    kind, fields = FULL_SIZE[name]
    return AutoConfig.for_model(kind, num_labels=len(LABELS), **fields)


def compute_first_token_alone(model: PreTrainedModel) -> AbstractContextManager:
    """After its last attention, let a RoBERTa or MPNet classifier compute `<s>` alone: its head reads nothing else.

    8 or 9 of the last layer's 12 width x width products are done for one token instead of all. Logits and gradients
    stay the same; `last_hidden_state` has one token. Returns the hook's handle: `with` removes it at its end.
    """
    behind_attention = {"roberta": "output", "mpnet": "LayerNorm"}.get(model.config.model_type)
    if behind_attention is None:
        return nullcontext()
    attention = model.base_model.encoder.layer[-1].attention
    return getattr(attention, behind_attention).register_forward_pre_hook(_keep_first_token)


def _keep_first_token(module, inputs: tuple) -> tuple:
    """Of each hidden state <float32>[rows, tokens, width], the first token's; a hook, so at module level to be pickled."""
    return tuple(each[:, :1] for each in inputs)


def _find_misfit(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing: list[str]) -> str:
    """What does not belong together, or is not what its name says; empty if all is well."""
    inside = [key for key in missing if key.startswith(model.base_model_prefix + ".")]
    rows, tokens, parameters = model.get_input_embeddings().num_embeddings, len(tokenizer), model.num_parameters()
    if inside:
        return f"lacks {len(inside)} weights of its own, e.g. {inside[0]}; it is incomplete"
    if parameters != PARAMETERS.get(name, parameters):
        return f"has {parameters:,} parameters, wanted {PARAMETERS[name]:,}"
    if tokens > rows or (name in PARAMETERS and tokens != rows):  # other models pad their embeddings
        return f"has {tokens:,} tokens in its vocabulary and {rows:,} in its embeddings, wanted as many"
    return ""


def _find_discord(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token that was loaded from another file than those that identify the base; empty if there is none."""
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, token in tokenizer.special_tokens_map.items():
        its = said.get(name)
        its = its.get("content") if isinstance(its, dict) else its
        if isinstance(token, str) and its not in (None, token):
            return f"loads {token!r} as its {name}, where its tokenizer_config.json says {its!r}"
    return ""


@contextmanager
def _refusals_in_one_line(name: str, revision: str | None) -> Iterator[None]:
    """Whatever the libraries raise over a base without weights, damaged, of another shape, or with code of its own:
    `tokenizers`, for one, raises a bare Exception."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        fault = f"could not be loaded ({first_line(error)}); {how_to_restore(name, revision)}"
        if "custom code" in str(error):
            fault = "brings Python code of its own (auto_map), which is never run; give one that transformers knows"
        raise InputError(f"base model {name!r} {fault}") from error
