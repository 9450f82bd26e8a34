"""Shared pieces of the tests: a tiny base model, tiny data, and outside data that may be missing.

Nothing here needs the network or trained weights.
"""

import csv
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lora_helpers import quiet

quiet()

import pytest  # noqa: E402

from lora_helpers.config import REPOSITORY, get_profile  # noqa: E402
from lora_helpers.data import MINI_NEWS  # noqa: E402

ROBERTA_MINI = REPOSITORY / "checkpoints" / "roberta-mini"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Where the outside data is promised (FAIL_ON_SKIP), a skipped test is a failed one, GPU tests apart."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("FAIL_ON_SKIP") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"skipped although FAIL_ON_SKIP is set: {report.longrepr}"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A 2-layer RoBERTa of width 32 with random weights and the bundled tokenizer, as a folder."""
    import torch
    from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM

    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = AutoTokenizer.from_pretrained(ROBERTA_MINI)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=66, type_vocab_size=1, initializer_range=0.2,
    )  # fmt: skip
    RobertaForMaskedLM(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_base):
    """Three epochs of a tiny run with dropout, length grouping and checkpoints inside epochs 2 and 3."""
    return get_profile(
        "mini", base_model=str(tiny_base), max_length=32, base_dropout=0.1, lora_dropout=0.1,
        max_steps=150, eval_steps=10, save_steps=70, warmup_steps=5,
    )  # fmt: skip


@pytest.fixture(scope="session")
def ag_news_dir() -> Path:
    """The folder with AG News, or a visible skip."""
    folder = os.environ.get("AG_NEWS_DIR")
    if not folder:
        pytest.skip("AG_NEWS_DIR is not set: no AG News on this machine")
    return Path(folder)


@pytest.fixture(scope="session")
def bundled_rows():
    """(label, text) of every labelled row of the bundled corpus, by split."""
    rows = {}
    for split in ("train", "validation", "test"):
        with (MINI_NEWS / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
            rows[split] = [
                (int(label) - 1, f"{title} {description}") for label, title, description in csv.reader(stream)
            ]
    return rows


@pytest.fixture(scope="session")
def roberta_base_dir(tmp_path_factory) -> Path:
    """roberta-base's true configuration and tokenizer with random weights, or a visible skip.

    It stands in for the Hub's copy where only shapes matter; nothing it predicts means anything.
    """
    source = os.environ.get("ROBERTA_BASE_DIR")
    if not source:
        pytest.skip("ROBERTA_BASE_DIR is not set: roberta-base's tokenizer is not on this machine")
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    folder = tmp_path_factory.mktemp("roberta-base")
    for name in ("config.json", "vocab.json", "merges.txt"):
        shutil.copy(Path(source) / name, folder)
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


class Bomb:
    """A pickle of it creates the file `path` when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
