"""What the bundled base learns from: masked tokens, the words of the document, which halves belong together."""

import torch
from torch.nn import functional

from ..batching import pad
from .config import PretrainingConfig

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0-4, as in roberta-base but for <mask>
BOS, PAD, EOS, MASK = 0, 1, 2, 4


def mask_tokens(ids, share: float):
    """Masked language modelling's input: (ids with masks, <bool> what was masked), both [rows, longest]."""
    masked = (torch.rand(ids.shape, device=ids.device) < share) & (ids >= len(SPECIAL_TOKENS))
    fate = torch.rand(ids.shape, device=ids.device)
    ids = ids.masked_fill(masked & (fate < 0.8), MASK)
    return torch.where(masked & (fate >= 0.9), torch.randint_like(ids, len(SPECIAL_TOKENS), ids.max() + 1), ids), masked


def compute_losses(model, documents: list[list[int]], idf, config: PretrainingConfig, *, halves: bool) -> dict:
    """The losses of one batch: `masked`, `words` and, with `halves`, `contrast`; each a scalar in nats.

    `documents` are token ids without special tokens; by `idf` <float32>[vocabulary], inverse document frequency, rare
    words count more in `words`; with `halves` each document is fed as two, cut at random near its middle. On a GPU the
    model computes in bfloat16, the losses in float32.
    """
    device = model.device
    parts = _cut_in_halves(documents) if halves else documents
    inputs = pad([[BOS, *part, EOS] for part in parts], PAD)
    ids = inputs["input_ids"]
    inputs["input_ids"], masked = mask_tokens(ids, config.mask_share)
    # All is drawn and counted on the CPU: asking a GPU which tokens are masked would wait for it.
    places, wanted = masked.flatten().nonzero()[:, 0].to(device), ids[masked].to(device)
    words = pad(documents, PAD)["input_ids"].to(device)
    copies = (2 if halves else 1, 1)
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        hidden = model.roberta(**inputs).last_hidden_state  # <float32>[rows, longest, hidden]
        guessed = model.lm_head(hidden.flatten(0, 1)[places])
        told = model.lm_head(hidden[:, 0])
    found = {"masked": functional.cross_entropy(guessed.float(), wanted)}

    # Every word of the whole document, also of the half that this row does not show.
    weight = idf[words] * (words != PAD)
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)
    likely = told.float().log_softmax(dim=-1).gather(1, words.repeat(copies))
    found["words"] = -(likely * weight.repeat(copies)).sum(dim=1).mean()

    if halves:  # InfoNCE over the batch, both ways (van den Oord et al. 2018, eq. 4)
        first, second = functional.normalize(hidden[:, 0], dim=-1).chunk(2)
        similarity = first @ second.T / config.temperature
        own = torch.arange(len(documents), device=device)
        found["contrast"] = sum(functional.cross_entropy(each, own) for each in (similarity, similarity.T)) / 2
    return found


def _cut_in_halves(documents: list[list[int]]) -> list[list[int]]:
    """First halves, then second halves, each cut at a random place between 40 and 60 % of the document."""
    places = torch.empty(len(documents)).uniform_(0.4, 0.6).tolist()
    pairs = [(each, int(len(each) * place)) for each, place in zip(documents, places, strict=True)]
    return [each[:cut] for each, cut in pairs] + [each[cut:] for each, cut in pairs]
