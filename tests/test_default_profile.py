"""The notebook's default follows the machine: roberta-base where a GPU and its files are at hand, else mini."""

import os
import subprocess
import sys

import pytest
import torch
from hub_server import Fault, HubServer, Repository

from lora_helpers.config import AG_NEWS, AG_NEWS_REVISION, PROFILES, ROBERTA_BASE, ROBERTA_BASE_REVISION, get_profile
from lora_helpers.environment import choose_profile
from lora_helpers.errors import InputError
from lora_helpers.files import hub
from lora_helpers.files.places import REPOSITORY


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU or without, where the repositories in `at_hand` are at hand."""
    monkeypatch.delenv("PROFILE", raising=False)

    def make(*, gpu, at_hand=()):
        monkeypatch.setattr("lora_helpers.environment.best_device", lambda: torch.device("cuda" if gpu else "cpu"))
        monkeypatch.setattr(hub, "is_at_hand", lambda name, revision, *, kind: name in at_hand)

    return make


def test_with_a_gpu_and_its_files_it_is_roberta_base(machine):
    machine(gpu=True, at_hand=(ROBERTA_BASE, AG_NEWS))
    name, why = choose_profile()
    assert name == "roberta-base" and "GPU" in why and "\n" not in why


@pytest.mark.parametrize(
    ("gpu", "at_hand", "reason"),
    [
        (False, (ROBERTA_BASE, AG_NEWS), "no GPU"),
        (True, (), ROBERTA_BASE),
        (True, (ROBERTA_BASE,), AG_NEWS),
        (True, (AG_NEWS,), ROBERTA_BASE),
    ],
)
def test_else_it_is_mini_and_says_why(machine, gpu, at_hand, reason):
    machine(gpu=gpu, at_hand=at_hand)
    name, why = choose_profile()
    assert name == "mini" and reason in why


def test_what_the_user_says_wins(machine, monkeypatch):
    machine(gpu=True, at_hand=(ROBERTA_BASE, AG_NEWS))
    monkeypatch.setenv("PROFILE", "mini")
    assert choose_profile() == ("mini", "as the environment variable PROFILE says")
    assert choose_profile("mini-agnews") == ("mini-agnews", "as the parameters say")
    with pytest.raises(InputError, match="unknown profile 'minni' .did you mean 'mini'"):
        choose_profile("minni")
    with pytest.raises(InputError, match="unknown profile None; there are mini, "):
        get_profile(None)
    assert {"mini", "roberta-base"} <= PROFILES.keys()


REPOSITORIES = (("model", ROBERTA_BASE, ROBERTA_BASE_REVISION), ("dataset", AG_NEWS, AG_NEWS_REVISION))


def ask(cache, endpoint, *, fetch=False, **environment):
    """What `is_at_hand` says of both repositories in a process of its own, and the seconds that it took to ask."""
    code = f"""
import time
from huggingface_hub import snapshot_download
from lora_helpers.files.hub import is_at_hand
for kind, name, revision in {REPOSITORIES!r}:
    if {fetch}:
        snapshot_download(name, revision=revision, repo_type=kind)
    began = time.monotonic()
    print(is_at_hand(name, revision, kind=kind), time.monotonic() - began)
"""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    hub_variables = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint}
    command = (sys.executable, "-c", code)
    done = subprocess.run(
        command, cwd=REPOSITORY, env=kept | hub_variables | environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    answers = [line.split() for line in done.stdout.splitlines()]
    return [answer == "True" for answer, _ in answers], max(float(seconds) for _, seconds in answers)


@pytest.mark.slow
def test_files_are_at_hand_in_the_hub_the_cache_or_a_folder(tmp_path):
    for folder, name in (("base", "model.safetensors"), ("data", "train-00000-of-00001.parquet")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"no one opens it")
    served = [
        Repository("models", ROBERTA_BASE, ROBERTA_BASE_REVISION, tmp_path / "base"),
        Repository("datasets", AG_NEWS, AG_NEWS_REVISION, tmp_path / "data"),
    ]
    with HubServer(served) as server:
        assert ask(tmp_path / "empty", server.endpoint)[0] == [True, True]
        assert ask(tmp_path / "cache", server.endpoint, fetch=True)[0] == [True, True]
        server.faults.append(Fault("slow", "/api/", seconds=20))
        found, seconds = ask(tmp_path / "empty", server.endpoint)
        assert found == [False, False] and seconds < 6
    assert ask(tmp_path / "cache", server.endpoint)[0] == [True, True]
    assert ask(tmp_path / "empty", server.endpoint)[0] == [False, False]
    assert ask(tmp_path / "empty", server.endpoint, HF_HUB_OFFLINE="1")[0] == [False, False]
    folders = {"ROBERTA_BASE_DIR": str(tmp_path / "base"), "AG_NEWS_DIR": str(tmp_path / "data")}
    assert ask(tmp_path / "empty", server.endpoint, HF_HUB_OFFLINE="1", **folders)[0] == [True, True]
