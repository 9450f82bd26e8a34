"""`original` and `roberta-base` through the Hub's own client libraries, from a server on this machine, with and without faults.

The weights are small and random: this is about what is asked for, what is refused, and what is left in the cache.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hub_client import Client
from hub_repositories import SMALL, SMALL_COUNTS, build_mpnet, build_repositories, write_sources
from hub_server import Fault, HubServer

from lora_helpers.config import AG_NEWS, AG_NEWS_REVISION, MPNET_BASE, PINNED, ROBERTA_BASE, ROBERTA_BASE_REVISION
from lora_helpers.records import read_record

pytestmark = pytest.mark.slow

ROWS = {"train": 2000, "test": 400}
SIZES = {"rows": ROWS, "parameters": SMALL_COUNTS}  # what the product insists on, for these repositories
TEXTS = ["Central bank raises rates", "Striker scores twice in the final", "New chip halves the power of a phone"]
TWENTY = {"max-steps": 20, "eval-steps": 20, "save-steps": 20, "validation-size": 32, "batch-size": 2}
ONE = {"max-steps": 1, "eval-steps": 1, "save-steps": 1, "validation-size": 8, "batch-size": 2, "max-length": 16}
TRAIN = "data/train-00000-of-00001.parquet"
OTHER_COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The two small repositories, of the real vocabulary and rows where they are on this machine."""
    root = tmp_path_factory.mktemp("hub")
    here = [Path(os.environ[name]) for name in ("ROBERTA_BASE_DIR", "AG_NEWS_DIR") if os.environ.get(name)]
    return build_repositories(root, *(here if len(here) == 2 else write_sources(root, ROWS)), shape=SMALL, rows=ROWS)


@dataclass(frozen=True)
class Runs:
    """What an online client and then an offline one did with each profile: name of the run -> what came of it."""

    folder: Path
    statuses: dict[str, tuple[int, list[str]]]
    log: list  # of the server, which closed before the offline client began
    offline: Client

    def record(self, run: str) -> dict:
        return read_record(self.folder / run)

    def predictions(self, name: str) -> str:
        return (self.folder / f"{name}.csv").read_text()


@pytest.fixture(scope="module")
def runs(repositories, tmp_path_factory):
    """Each profile for 20 steps and its checkpoint reloaded: from the server, then from the cache alone."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    statuses = {}

    def train_and_reload(client, where):
        for profile in ("original", "roberta-base"):
            run = f"{profile}-{where}"
            statuses[run] = client.run("train", profile, "--output-dir", folder / run, *_flags(TWENTY))
            statuses[f"{run}-reload"] = _reload(client, folder, run, f"{run}-reload")

    with HubServer(repositories) as hub:
        online = Client(tmp_path_factory.mktemp("client"), hub.endpoint, **SIZES)
        offline = Client(online.folder, hub.endpoint, **SIZES, HF_HUB_OFFLINE="1")  # imports meanwhile
        train_and_reload(online, "online")
    online.close()
    train_and_reload(offline, "offline")
    statuses["across"] = _reload(offline, folder, "original-online", "across")
    yield Runs(folder, statuses, hub.log, offline)
    offline.close()


@pytest.fixture(scope="module")
def served(repositories, tmp_path_factory):
    """A server and a client of it that waits one second for an answer; the tests below share them."""
    with HubServer(repositories) as hub:
        timeouts = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
        client = Client(tmp_path_factory.mktemp("client"), hub.endpoint, **SIZES, hurried=True, **timeouts)
        yield hub, client
        client.close()


@pytest.fixture
def fresh(served, repositories, tmp_path):
    """Server, client with an empty cache, and the command that trains one step; faults and changes end with the test."""
    hub, client = served
    hub.faults.clear()
    hub.log.clear()
    client.forget()
    hub.repositories = list(repositories)
    return hub, client, ("train", "original", "--output-dir", tmp_path / "run", *_flags(ONE))


def test_20_steps_of_both_profiles_from_the_hub_and_their_checkpoints_reloaded(runs):
    for outcome in runs.statuses.values():
        _require_success(outcome)
    for profile in ("original", "roberta-base"):
        record = runs.record(f"{profile}-online")
        assert record["base"]["name"] == ROBERTA_BASE and record["base"]["revision"] == ROBERTA_BASE_REVISION
        assert record["data"]["source"] == f"{AG_NEWS} at {AG_NEWS_REVISION}"
        assert record["data"]["rows"] == {"train": ROWS["train"] - 32, "validation": 32}
        assert runs.predictions(f"{profile}-online-reload").count("\n") == len(TEXTS) + 1
    assert runs.predictions("original-online-reload") != runs.predictions("roberta-base-online-reload")


def test_only_the_pinned_commits_are_asked_for_and_only_what_is_needed(runs):
    assert {request.status for request in runs.log} == {200, 302}
    named = [r.path for r in runs.log if not r.path.startswith("/storage/")]
    what = "(tree|resolve|revision)"
    pinned = f"/{ROBERTA_BASE}/{what}/{ROBERTA_BASE_REVISION}|/{AG_NEWS}/{what}/{AG_NEWS_REVISION}"
    assert len(named) > 5 and all(re.search(pinned, path) for path in named)
    files = sorted(re.split("/resolve/[^/]+/", path)[1] for path in set(named) if "/resolve/" in path)
    assert files == ["config.json", TRAIN, "merges.txt", "model.safetensors", "vocab.json"]  # no pickle, no test split
    stored = [(r.path.split("/")[-2], r.bytes) for r in runs.log if r.path.startswith("/storage/")]
    assert len(stored) == 2  # one download each, for four runs of training and reloading


def test_what_is_fetched_is_announced_with_its_size_and_what_is_in_the_cache_is_not(fresh, repositories):
    _, client, train = fresh
    _require_success(client.run(*train))
    data, base = client.announced
    size = sum((repositories[0].folder / name).stat().st_size for name in ("config.json", "merges.txt", "vocab.json"))
    size += (repositories[0].folder / "model.safetensors").stat().st_size
    files = f"{ROBERTA_BASE} at {ROBERTA_BASE_REVISION}: 4 files, {size / 1e6:.1f} MB"
    assert base.startswith("fetching model ") and files in base and data.startswith(f"fetching dataset {AG_NEWS} at ")
    shutil.rmtree(train[3])
    _require_success(client.run(*train))
    assert client.announced == []


def test_verify_fetches_no_base_that_an_adapter_alone_names(fresh, repositories, tmp_path):
    hub, client, train = fresh
    _require_success(client.run(*train))
    client.forget()
    hub.log.clear()
    checkpoint = Path(shutil.copytree(train[3] / "checkpoint-1", tmp_path / "sent"))
    (checkpoint / "manifest.json").unlink()
    hub.repositories.append(replace(repositories[0], name="somebody/base", commit=OTHER_COMMIT))
    for name in (ROBERTA_BASE, "somebody/base"):
        edit_json(checkpoint / "adapter_config.json", base_model_name_or_path=name, revision=OTHER_COMMIT)
        _require_one_line(
            client.run("verify", checkpoint),
            2,
            "is not here, and `verify` downloads nothing that only the checkpoint names",
        )
    assert not hub.log and not client.cache.exists()
    _require_success(client.run("predict", checkpoint, "Oil prices rise"))
    assert len(client.announced) == 1 and "fetching model somebody/base at" in client.announced[0]
    _require_success(client.run("verify", checkpoint))  # now it is here


CUT_OFF = """
import socket, time
from lora_helpers.bases import load_base
from lora_helpers.config import get_profile
from lora_helpers.data import load_ag_news
from lora_helpers.errors import InputError
from lora_helpers.files.hub import is_at_hand
tried = []
def fail(*place, **options):
    tried.append(place)
    time.sleep({seconds})
    raise ConnectionRefusedError(111, "Connection refused")
socket.create_connection = fail
def refused(load, *arguments):
    began, before = time.monotonic(), len(tried)
    try:
        load(*arguments)
    except InputError as error:
        print(error)
    assert time.monotonic() - began < 2.9 and len(tried) == before + 1, (time.monotonic() - began, tried)
refused(load_base, {base!r}, {revision!r})
refused(load_base, "somebody/base", "0" * 40)
refused(load_ag_news, get_profile("original"))
assert not is_at_hand({base!r}, {revision!r}, kind="model")
assert main(["train", "original", "--dataset", "bundled", "--output-dir", {run!r}]) == 2
"""


@pytest.mark.parametrize(
    ("seconds", "reason"), [(0, "Connection refused"), (60, "no answer from 127.0.0.1 within 2 s")]
)
def test_the_hubs_absence_is_said_within_two_seconds_with_advice_that_fits(seconds, reason, fresh, tmp_path):
    """Its own client would try six times in 25 seconds; the look-up of a name, which hangs first, has no limit at all."""
    _, client, _ = fresh
    code = CUT_OFF.format(seconds=seconds, base=ROBERTA_BASE, revision=ROBERTA_BASE_REVISION, run=str(tmp_path / "run"))
    status, lines = client.execute(code)
    assert status == 0 and len(lines) == 4 and all(reason in line for line in lines), lines
    train, base, other, data = (line.split("); ")[1] for line in lines)  # errors are not buffered
    assert base == "connect to the Hub, or set ROBERTA_BASE_DIR to a folder with its files"
    assert other == "connect to the Hub, or name a folder that holds its files"
    assert data.startswith("connect to the Hub, or set AG_NEWS_DIR to a folder with train.csv")
    assert train.startswith(base) and "profile mini" in train and not (tmp_path / "run").exists()


MPNET_TRAIN = {
    **{"dataset": "bundled", "max-length": 64, "max-steps": 2},
    **{"eval-steps": 2, "save-steps": 2, "warmup-steps": 1},
}
ONE_LINE = """
from lora_helpers.inference import Classifier
classifier = Classifier.from_checkpoint({checkpoint!r})
print("notices", classifier.verification.notices)
print("found", classifier.predict_probabilities({texts!r}).tolist())
"""
PLAIN_PEFT = """
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer
from transformers.utils import logging
logging.set_verbosity_error()
model = AutoPeftModelForSequenceClassification.from_pretrained({checkpoint!r}, num_labels=4).eval()
rows = AutoTokenizer.from_pretrained({checkpoint!r})({texts!r}, padding=True, return_tensors="pt")
with torch.no_grad():
    print("found", model(**rows).logits.softmax(-1).tolist())
"""


def test_mpnet_base_trained_on_a_folder_is_loaded_in_one_line_from_the_hub_and_by_plain_peft(fresh, tmp_path):
    hub, client, _ = fresh
    repository = build_mpnet(tmp_path)
    hub.repositories.append(repository)
    stand_in = f"import os; os.environ['MPNET_BASE_DIR'] = {str(repository.folder)!r}\n"
    train = ["train", "mpnet-base", "--output-dir", str(tmp_path / "run"), *map(str, _flags(MPNET_TRAIN))]
    _require_success(client.execute(f"{stand_in}assert main({train!r}) == 0"))
    assert not hub.log  # the folder stood in for the Hub
    given = {"checkpoint": str(tmp_path / "run" / "checkpoint-2"), "texts": TEXTS}
    wanted = _found(client.execute(stand_in + ONE_LINE.format(**given)))

    outcome = client.execute(ONE_LINE.format(**given))
    np.testing.assert_allclose(_found(outcome), wanted, atol=1e-6)
    assert "notices []" in outcome[1]  # what the folder held and what the Hub has are the same bytes
    announced = [line for line in client.announced if MPNET_BASE in line]
    assert len(announced) == len(client.announced) == 1
    pinned = f"/{MPNET_BASE}/(tree|resolve|revision)/{PINNED[MPNET_BASE]}|/storage/model.safetensors/"
    assert hub.log and all(re.search(pinned, request.path) for request in hub.log)
    np.testing.assert_allclose(_found(client.execute(PLAIN_PEFT.format(**given))), wanted, atol=1e-5)

    client.forget()
    hub.repositories[-1] = _changed(repository, tmp_path / "weights", _change_one_weight)
    _require_one_line(client.run("verify", given["checkpoint"]), 1, "not the ones this checkpoint was trained on")
    client.forget()
    hub.repositories[-1] = _changed(
        repository, tmp_path / "words", lambda f: edit_json(f / "tokenizer_config.json", a=1)
    )
    status, lines = client.run("verify", given["checkpoint"])
    assert status == 0 and "the weights are the same, the tokenizer's files were not compared" in "".join(lines)


def test_offline_the_cache_gives_the_same_run_to_the_bit(runs):
    for profile in ("original", "roberta-base"):
        online, offline = runs.record(f"{profile}-online"), runs.record(f"{profile}-offline")
        assert online["base"] == offline["base"] and len(online["base"]["sha256"]) == 64
        assert online["data"] == offline["data"]
        assert online["checkpoints"] == offline["checkpoints"]
        assert runs.predictions(f"{profile}-online-reload") == runs.predictions(f"{profile}-offline-reload")
    assert runs.predictions("across") == runs.predictions("original-online-reload")
    assert runs.record("original-online")["checkpoints"] != runs.record("roberta-base-online")["checkpoints"]


def test_an_adapter_that_names_no_commit_is_read_with_the_pinned_one(runs, tmp_path):
    checkpoint = Path(shutil.copytree(runs.folder / "original-online" / "checkpoint-20", tmp_path / "foreign"))
    (checkpoint / "manifest.json").unlink()
    path = checkpoint / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": None}))
    status, lines = runs.offline.run("verify", checkpoint)
    assert status == 0 and f"names no commit of {ROBERTA_BASE}; using {ROBERTA_BASE_REVISION}" in "".join(lines)


def test_no_file_of_a_run_names_the_cache(runs):
    files = [f for f in runs.folder.glob("original-online/**/*") if f.is_file()]
    assert len(files) > 5
    assert not [f for f in files if str(runs.offline.cache).encode() in f.read_bytes()]


@pytest.mark.parametrize("name", ["base", "dataset"])
def test_offline_another_commit_is_not_replaced_by_the_one_in_the_cache(name, runs, tmp_path):
    train = ("train", "original", "--output-dir", tmp_path / "run", *_flags(ONE))
    _require_one_line(
        runs.offline.run(*train, f"--{name}-revision", OTHER_COMMIT), 2, f"{OTHER_COMMIT} could not be loaded"
    )
    _require_success(runs.offline.run(*train))


def test_the_stock_libraries_read_the_same_server(fresh):
    hub, client, _ = fresh
    code = f"""
from datasets import load_dataset
from transformers import AutoModel, AutoTokenizer
data = load_dataset({AG_NEWS!r}, revision={AG_NEWS_REVISION!r})
assert {{name: len(rows) for name, rows in data.items()}} == {ROWS}
assert data["train"].features["label"].names == ["World", "Sports", "Business", "Sci/Tech"]
assert len(AutoTokenizer.from_pretrained({ROBERTA_BASE!r}, revision={ROBERTA_BASE_REVISION!r})) == 50265
AutoModel.from_pretrained({ROBERTA_BASE!r}, revision={ROBERTA_BASE_REVISION!r})
"""
    status, lines = client.execute(code)
    assert status == 0, lines
    assert {r.status for r in hub.log} == {200, 302, 404}  # they ask for optional files, too
    assert client.execute(f"from transformers import AutoModel; AutoModel.from_pretrained({ROBERTA_BASE!r})")[0] == 70


FAULTS = {
    "no such commit": (Fault("404", "/api/models/"), "RevisionNotFoundError"),
    "HTTP 500 for the data": (Fault("500", "/api/datasets/"), "500 Internal Server Error"),
    "HTTP 500 for the weights": (Fault("500", "/storage/model"), "500 Internal Server Error"),
    "a login page for the list of files": (Fault("portal", "/api/models/"), "JSONDecodeError"),
    "the data cut off": (Fault("cut", "/storage/data"), "RemoteProtocolError"),
    "the weights cut off": (Fault("cut", "/storage/model"), "RemoteProtocolError"),
    "the weights shorter than announced": (Fault("short", "/storage/model"), "Consistency check failed"),
    "the weights too slow": (Fault("slow", "/storage/model", seconds=2.5), "ReadTimeout"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_the_next_try_succeeds(fault, fresh):
    hub, client, train = fresh
    hub.faults, reason = [replace(FAULTS[fault][0])], FAULTS[fault][1]
    _require_one_line(
        client.run(*train), 2, rf"could not be loaded \(.*{reason}.*\); connect to the Hub, or set \w+_DIR to"
    )
    assert any(hub.faults[0].where in request.path for request in hub.log)
    assert not list(client.cache.rglob("*.incomplete"))
    hub.faults.clear()
    _require_success(client.run(*train))  # into the same folder: nothing is left in the way


@pytest.mark.parametrize("what", ["cut", "slow", "500"])
def test_a_passing_fault_is_overcome(what, fresh):
    hub, client, train = fresh
    where = "/resolve/" if what == "500" else "/storage/model"
    hub.faults = [Fault(what, where, times=1, seconds=2.5)]
    _require_success(client.run(*train))
    assert hub.faults[0].times == 0
    sent = [(r.status, r.bytes) for r in hub.log if r.path.startswith("/storage/model") and r.status in (200, 206)]
    if what == "cut":  # fetched again: the second half alone (206), or all, if the client had not kept the first
        assert len(sent) > 1


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def drop_a_token(folder):
    path = folder / "vocab.json"
    path.write_text(json.dumps({t: i for t, i in json.loads(path.read_text()).items() if t != "madeupword0002"}))


def change_the_data(folder, *, rows=ROWS["train"], **labels):
    from datasets import ClassLabel, Dataset

    path = str(folder / TRAIN)
    data = Dataset.from_parquet(path, cache_dir=str(folder / "cache")).select(range(rows))
    (data.cast_column("label", ClassLabel(**labels)) if labels else data).to_parquet(path)
    shutil.rmtree(folder / "cache")


OTHER_CONTENT = {  # which repository (0: the base, 1: the data) serves what else, and what the refusal says of it
    "a configuration that does not fit the weights": (
        0,
        lambda f: edit_json(f / "config.json", hidden_size=16),
        "could not be loaded",
    ),
    "half the layers": (
        0,
        lambda f: edit_json(f / "config.json", num_hidden_layers=1),
        "has 1,634,756 parameters, wanted",
    ),
    "a vocabulary short of one token": (0, drop_a_token, "50,264 tokens in its vocabulary and 50,265 in its"),
    "weights that are none": (0, lambda f: (f / "model.safetensors").write_bytes(b"none"), "could not be loaded"),
    "a row too few": (1, lambda f: change_the_data(f, rows=1999), "1999 rows .*, wanted 2000"),
    "labels in another order": (
        1,
        lambda f: change_the_data(f, names=["Sports", "World", "Business", "Sci/Tech"]),
        "labels .'Sports', 'World', 'Business', 'Sci/Tech'., wanted .* .'World'",
    ),
    "data that are no parquet file": (1, lambda f: (f / TRAIN).write_bytes(b"none"), "not a whole parquet file"),
}


@pytest.mark.parametrize("content", OTHER_CONTENT)
def test_other_content_under_the_pinned_commit_is_refused_and_the_line_says_what_to_delete(
    content, fresh, repositories, tmp_path
):
    hub, client, train = fresh
    place, change, reason = OTHER_CONTENT[content]
    hub.repositories[place] = _changed(repositories[place], tmp_path, change)
    status, lines = client.run(*train)
    _require_one_line((status, lines), 2, f"{reason}.*; delete .+ to download it again")
    _delete_what_it_says(lines[-1], client)
    hub.repositories[place] = repositories[place]
    _require_success(client.run(*train))


def test_other_bytes_of_the_same_shape_are_refused_by_the_checkpoints_record(fresh, repositories, tmp_path):
    hub, client, train = fresh
    _require_success(client.run(*train))
    verify = ("verify", tmp_path / "run" / "checkpoint-1")
    client.forget()
    _require_success(client.run(*verify))  # downloaded anew, the same bytes
    client.forget()
    hub.repositories = [_changed(repositories[0], tmp_path, _change_one_weight), repositories[1]]
    status, lines = client.run(*verify)
    _require_one_line((status, lines), 1, "not the ones this checkpoint was trained on .*; delete .+ to download")
    hub.repositories = list(repositories)
    _delete_what_it_says(lines[-1], client)
    _require_success(client.run(*verify))


def _flags(fields: dict) -> list:
    return [part for name, value in fields.items() for part in (f"--{name}", value)]


def _reload(client: Client, folder: Path, run: str, name: str) -> tuple[int, list[str]]:
    checkpoint, target = folder / run / "checkpoint-20", folder / f"{name}.csv"
    return client.run("predict", checkpoint, "--input", folder / "texts.txt", "--output", target, "--probabilities")


def _require_success(outcome: tuple[int, list[str]]) -> None:
    status, lines = outcome
    assert status == 0, "\n".join(lines)


def _found(outcome: tuple[int, list[str]]) -> np.ndarray:
    """The probabilities that a piece of code printed."""
    _require_success(outcome)
    return np.array(json.loads(next(line for line in outcome[1] if line.startswith("found"))[6:]))


def _require_one_line(outcome: tuple[int, list[str]], status: int, pattern: str) -> None:
    found, lines = outcome
    assert found == status, lines
    assert len(lines) == 1, lines
    assert re.match("error: " if status == 2 else "failed: ", lines[0]) and re.search(pattern, lines[0]), lines[0]


def _delete_what_it_says(line: str, client: Client) -> None:
    folder = Path(re.search(r"delete (.+?) to download", line)[1])
    assert folder.parent == client.cache / "hub"  # one repository, no more
    shutil.rmtree(folder)


def _changed(repository, tmp_path: Path, change):
    folder = shutil.copytree(repository.folder, tmp_path / repository.folder.name)
    change(folder)
    return replace(repository, folder=folder)


def _change_one_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the lowest bit of the last float32
    path.write_bytes(content)
