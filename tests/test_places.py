"""What a name means here: a folder, the folder that stands in for it, or the Hub's, by its old short name too."""

import os
from pathlib import Path

import pytest

from lora_helpers.config import AG_NEWS, AG_NEWS_REVISION, MPNET_BASE, ROBERTA_BASE, ROBERTA_BASE_REVISION, get_profile
from lora_helpers.data import describe_source, load_split
from lora_helpers.errors import InputError
from lora_helpers.files import hub
from lora_helpers.files.places import REPOSITORY, STAND_INS, find_folder, full_name, local_folder, portable_name

SHORT = {"roberta-base": ROBERTA_BASE, "ag_news": AG_NEWS}


@pytest.fixture(autouse=True)
def no_stand_ins(monkeypatch, tmp_path):
    for variable in STAND_INS.values():
        monkeypatch.delenv(variable, raising=False)
    for home in ("HOME", "USERPROFILE"):  # the latter on Windows
        monkeypatch.setenv(home, str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", [*STAND_INS, *SHORT])
def test_a_stand_in_takes_the_place_of_a_name_and_of_its_old_short_one(monkeypatch, tmp_path, name):
    assert local_folder(name, "files") is None
    (tmp_path / "here").mkdir()
    monkeypatch.setenv(STAND_INS[full_name(name)], "~/here")
    assert local_folder(name, "files") == tmp_path / "here"
    monkeypatch.setenv(STAND_INS[full_name(name)], "~/gone")
    with pytest.raises(InputError, match=rf"{STAND_INS[full_name(name)]} is .*gone'.*no folder; give one with files"):
        local_folder(name, "files")


def test_the_variable_of_another_name_stands_in_for_nothing(monkeypatch, tmp_path):
    for variable in STAND_INS.values():
        monkeypatch.setenv(variable, str(tmp_path))
    for name in ("someone/roberta-base", "roberta-large", "bert-base-uncased", "microsoft/mpnet-base"):
        assert full_name(name) == name and local_folder(name, "files") is None
    assert full_name(MPNET_BASE) == MPNET_BASE


def test_a_folder_of_the_short_name_is_that_folder(tmp_path):
    (tmp_path / "roberta-base").mkdir()
    assert local_folder("roberta-base", "files") == tmp_path / "roberta-base"


def test_a_folder_is_sought_here_first_then_in_the_repository_and_below_home(tmp_path):
    assert find_folder("checkpoints/roberta-mini") == REPOSITORY / "checkpoints" / "roberta-mini"
    (tmp_path / "checkpoints" / "roberta-mini").mkdir(parents=True)
    assert find_folder("checkpoints/roberta-mini") == tmp_path / "checkpoints" / "roberta-mini"
    assert find_folder("~/checkpoints") == tmp_path / "checkpoints" and find_folder("~/none") is None


def test_a_short_name_has_the_pinned_commit_and_is_recorded_in_full():
    config = get_profile("mini", base_model="roberta-base", dataset="ag_news")
    assert (config.base_revision, config.dataset_revision) == (ROBERTA_BASE_REVISION, AG_NEWS_REVISION)
    assert (config.portable().base_model, config.portable().dataset) == (ROBERTA_BASE, AG_NEWS)
    assert portable_name("someone/model") == "someone/model"
    assert describe_source("ag_news", "x") == f"{AG_NEWS} at x"
    other = get_profile("mini", base_model="roberta-base", base_revision="0a" * 20)
    assert other.base_revision == "0a" * 20


def test_ag_news_from_a_folder_below_home(monkeypatch, tmp_path):
    (tmp_path / "ag").mkdir()
    (tmp_path / "ag" / "test.csv").write_text("Class Index,Title,Description\n4,a,b\n")
    monkeypatch.setenv("AG_NEWS_DIR", "~/ag")
    for name in (AG_NEWS, "ag_news"):
        assert load_split(name, "test", AG_NEWS_REVISION)["label"][:] == [3]
        assert describe_source(name, AG_NEWS_REVISION) == f"a folder with rows of {AG_NEWS}"


def test_a_home_that_is_not_known_is_a_folder_that_is_missing(monkeypatch):
    monkeypatch.setenv("AG_NEWS_DIR", "~nobody-of-this-name/ag")
    with pytest.raises(InputError, match="AG_NEWS_DIR is '~nobody-of-this-name/ag', which is no folder"):
        local_folder(AG_NEWS, "train.csv")
    assert not Path(os.path.expanduser("~nobody-of-this-name")).is_dir()


@pytest.mark.parametrize(
    ("proxy", "but_for", "place"),
    [
        ("", "", ("huggingface.co", 443)),
        ("http://proxy.example:3128", "", ("proxy.example", 3128)),
        ("http://proxy.example", "", ("proxy.example", 80)),
        ("proxy.example:3128", "elsewhere.example", ("proxy.example", 3128)),
        ("http://proxy.example:3128", "huggingface.co", ("huggingface.co", 443)),
    ],
)
def test_the_hub_is_sought_where_the_proxies_say(proxy, but_for, place, monkeypatch):
    asked = []

    def connect(address, seconds):
        asked.append(address)
        raise OSError("nobody there")

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(hub.socket, "create_connection", connect)
    for name, value in (("https_proxy", proxy), ("no_proxy", but_for), ("all_proxy", "")):
        monkeypatch.setenv(name, value)
    assert not hub.is_at_hand("someone/model", "0a" * 20, kind="model") and asked == [place]


def test_a_folder_on_another_drive_is_still_a_folder_by_its_recorded_name(monkeypatch, tmp_path):
    """Windows has no relative path from one drive to another."""

    def relpath(path, start):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    (tmp_path / "my-rows").mkdir()
    monkeypatch.setattr("lora_helpers.files.places.os.path.relpath", relpath)
    config = get_profile("roberta-base", dataset=str(tmp_path / "my-rows"))
    assert config.portable().dataset == "./my-rows"


def test_an_address_of_the_hub_without_its_scheme_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "hf-mirror.example")
    with pytest.raises(
        ValueError, match="HF_ENDPOINT is 'hf-mirror.example', wanted an address that begins with https://"
    ):
        hub._connect()
    assert not hub.is_at_hand("someone/model", "0a" * 20, kind="model")
