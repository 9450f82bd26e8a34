"""Shared pieces of the tests: a tiny base model, tiny data, and outside data that may be missing.

Nothing here needs the network or trained weights.
"""

import csv
import json
import os
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lora_helpers import quiet

quiet()
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell began in its background ignores Ctrl-C

import pytest  # noqa: E402

from lora_helpers.config import get_profile  # noqa: E402
from lora_helpers.files.places import MINI_NEWS, REPOSITORY  # noqa: E402

ROBERTA_MINI = REPOSITORY / "checkpoints" / "roberta-mini"


# Words of the skips that stay skips under FAIL_ON_SKIP: what even a machine with the outside data may lack.
MAY_BE_MISSING = ("MPNET_BASE_DIR",)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Where the outside data is promised (FAIL_ON_SKIP), a skipped test is a failed one, but for `MAY_BE_MISSING` and GPUs."""
    outcome = yield
    report = outcome.get_result()
    allowed = "gpu" in item.keywords or any(word in str(report.longrepr) for word in MAY_BE_MISSING)
    if report.skipped and os.environ.get("FAIL_ON_SKIP") and not allowed:
        report.outcome = "failed"
        report.longrepr = f"skipped although FAIL_ON_SKIP is set: {report.longrepr}"


COUNTS = Counter()  # what was tried in this session, by name


def record_count(name: str, n: int = 1) -> None:
    """Count `n` more of `name`, e.g. "bad inputs tried"; the sums stand at the end of the session's output."""
    COUNTS[name] += n


def pytest_terminal_summary(terminalreporter):
    """The counts as lines; and as JSON in the file EVIDENCE_COUNTS, beside what other sessions counted there."""
    for name, n in sorted(COUNTS.items()):
        terminalreporter.write_line(f"evidence: {name} {n}")
    if COUNTS and os.environ.get("EVIDENCE_COUNTS"):
        path = Path(os.environ["EVIDENCE_COUNTS"])
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**before, **COUNTS}, indent=1, sort_keys=True) + "\n")


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


@contextmanager
def single_thread():
    """For a tiny model, whose threads would only wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one_thread():
    """`single_thread` for the tests of a module."""
    with single_thread():
        yield


PLANTED = {
    name: f"planted-{name.lower()}"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "USER", "LOGNAME", "USERNAME", "HOSTNAME")
}


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_base) -> Path:
    """The folder of a run of ten steps, with `PLANTED` in the environment while it trained."""
    from lora_helpers.training.run import train

    config = get_profile("mini", base_model=str(tiny_base), max_length=32, max_steps=10, eval_steps=10, save_steps=10)
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch, single_thread():
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        train(config, run_dir)
    return run_dir


@pytest.fixture(scope="session")
def classifier(tiny_run):
    """The last checkpoint of `tiny_run`, ready to predict."""
    from lora_helpers.inference import Classifier

    return Classifier.from_checkpoint(tiny_run / "checkpoint-10")


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
def roberta_base_files() -> Path:
    """The folder with roberta-base's configuration and tokenizer, or a visible skip."""
    if folder := os.environ.get("ROBERTA_BASE_DIR"):
        return Path(folder)
    pytest.skip("ROBERTA_BASE_DIR is not set: roberta-base's tokenizer is not on this machine")


@pytest.fixture(scope="session")
def roberta_base_dir(roberta_base_files, tmp_path_factory) -> Path:
    """roberta-base's true configuration and tokenizer with random weights.

    It stands in for the Hub's copy where only shapes matter; nothing it predicts means anything.
    """
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM

    folder = tmp_path_factory.mktemp("roberta-base")
    for name in ("config.json", "vocab.json", "merges.txt"):
        shutil.copy(roberta_base_files / name, folder)
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


class Bomb:
    """A pickle of it creates the file `path` when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))
