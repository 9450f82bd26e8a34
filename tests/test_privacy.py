"""What is shown is escaped, and nothing of the machine or its user gets into what is written."""

import json
import re
import socket

import pytest
from conftest import PLANTED

from lora_helpers.environment import environment
from lora_helpers.figures import draw_figures
from lora_helpers.files.places import REPOSITORY

MACHINE_PATHS = re.compile(r"""(?<![\w.])/(home|root|tmp|Users|mnt|opt|var)/\w|[A-Z]:\\\\?Users""")
MARKUP = ["<script>alert(1)</script>", "<img src=x onerror='alert(1)'>", '"><b>bold</b>', "a &amp; b"]


def test_markup_in_a_text_is_shown_and_not_run(classifier):
    shown = classifier.predict(MARKUP)._repr_html_()
    for markup in ("<script", "<img", "<b>"):
        assert markup not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown and "a &amp;amp; b" in shown
    assert "<td>" in shown  # it is HTML, with tags of its own


@pytest.fixture(scope="module")
def written(tiny_run, tmp_path_factory):
    """Every file of a run and its figures, all made with `PLANTED` in the environment, by name."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        drawn = draw_figures([tiny_run], tmp_path_factory.mktemp("figures"))
    files = [path for path in tiny_run.rglob("*") if path.is_file()] + list(drawn["run"].values())
    return {str(path.relative_to(tiny_run) if path.is_relative_to(tiny_run) else path.name): path for path in files}


def find_secrets(path):
    """What of the planted variables' names and values, and of the host, stands in a file."""
    secrets, content = [*PLANTED.values(), *PLANTED, socket.gethostname()], path.read_bytes()
    return [secret for secret in secrets if len(secret) > 4 and secret.encode() in content]


def test_no_token_user_or_host_is_in_what_a_run_writes(written):
    assert {"run.json", "checkpoint-10/manifest.json", "checkpoint-10/trainer_state.json"} <= set(written)
    assert sum(name.endswith(".png") for name in written) >= 5
    for name, path in written.items():
        assert not find_secrets(path), name
        if path.suffix == ".png":  # its words stand there uncompressed, so the search above does see them
            assert not re.search(b"zTXt|iTXt", path.read_bytes()), name


def test_the_search_would_find_a_planted_value(written, tmp_path, monkeypatch):
    """The control: a value that is written does turn up in the search above, in text, weights and pictures alike."""
    for name in ("run.json", "checkpoint-10/adapter_model.safetensors", "run-loss.png"):
        (tmp_path / "leak").write_bytes(written[name].read_bytes() + PLANTED["HF_TOKEN"].encode())
        assert find_secrets(tmp_path / "leak") == [PLANTED["HF_TOKEN"]] and not find_secrets(written[name])
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    shown = json.dumps(environment())
    assert not [value for value in PLANTED.values() if value in shown]


def test_no_committed_text_names_a_path_of_a_machine():
    committed = [REPOSITORY / "roberta_lora_agnews.ipynb", *(REPOSITORY / "checkpoints").glob("*/*.json")]
    committed += (REPOSITORY / "checkpoints").glob("*/checkpoint-*/*.json")
    assert len(committed) > 30
    for path in committed:
        if path.name != "tokenizer.json" and "runs" not in path.parts:
            text = path.read_text(encoding="utf-8")
            found = MACHINE_PATHS.search(text) or re.search(re.escape(str(REPOSITORY)), text)
            assert not found, f"{path}: {found and found.group()}"
    assert MACHINE_PATHS.search('"/home/someone/x"') and MACHINE_PATHS.search('"C:\\\\Users\\\\x"')
