"""Damaged checkpoints are noticed, whatever opens them; a planted pickle is never executed."""

import functools
import hashlib
import io
import json
import pickle
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Bomb, record_count

from lora_helpers.__main__ import main
from lora_helpers.checkpoints import MANIFEST, WEIGHTS, hash_file, verify_checkpoint
from lora_helpers.config import get_profile
from lora_helpers.data import load_ag_news
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.files.manifests import read_manifest
from lora_helpers.inference import Classifier
from lora_helpers.training import run as training
from lora_helpers.training.resuming import Beginning
from lora_helpers.training.resuming import find_start as find

pytestmark = pytest.mark.slow

FILES = [
    *("adapter_config.json", WEIGHTS, "optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer.json"),
    *("tokenizer_config.json", "trainer_state.json"),
]
DAMAGES = [
    "missing",
    *(f"{kind} at the {place}" for kind in ("cut", "flipped") for place in ("start", "middle", "end")),
]


def find_start(run_dir: Path, resume_from: Path | None = None) -> Path | None:
    """The checkpoint that `resume_from`, or else the newest of `run_dir`, goes on from."""
    start = find(run_dir, Beginning(resume=resume_from is None, resume_from=resume_from))
    return start and start.path


@pytest.fixture(scope="module")
def config(tiny_base):
    return get_profile("mini", base_model=str(tiny_base), max_length=32, max_steps=20, eval_steps=10, save_steps=10)


@pytest.fixture(scope="module", autouse=True)
def few_rows():
    """64 rows to train on and 16 to validate, read once: none of this is about what is learnt."""

    @functools.cache
    def load(config):
        splits = load_ag_news(config)
        return replace(splits, train=splits.train.select(range(64)), validation=splits.validation.select(range(16)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_ag_news", load)
        yield


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    """A run with the checkpoints 10 and 20, which everything accepts as it is."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    training.train(config, run_dir)
    newest = run_dir / "checkpoint-20"
    assert {path.name for path in newest.iterdir()} == {*FILES, MANIFEST}
    verification = verify_checkpoint(newest)
    assert verification.manifest == read_manifest(newest) and verification.notices == []
    assert (verification.manifest["files"].keys(), verification.manifest["step"]) == ({*FILES}, 20)
    assert Classifier.from_checkpoint(newest).verification == verification
    assert find_start(run_dir, newest) == newest.resolve() == find_start(run_dir)
    return run_dir


@pytest.fixture
def run_dir(unbroken, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(unbroken, tmp_path / "run"))


@contextmanager
def damaged(path: Path, damage: str):
    """`path` missing, cut short, or with one bit flipped; as it was again at the end."""
    whole = path.read_bytes()
    place = {"start": 0, "middle": len(whole) // 2, "end": len(whole) - 1}.get(damage.rpartition(" ")[2])
    flip = b"" if place is None else bytes([whole[place] ^ 1])
    path.unlink()
    if damage.startswith("cut"):
        path.write_bytes(whole[:place])
    elif damage.startswith("flipped"):
        path.write_bytes(whole[:place] + flip + whole[place + 1 :])
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_damage_of_every_file_is_noticed_by_all_that_open_a_checkpoint(run_dir, caplog, name):
    newest = run_dir / "checkpoint-20"
    verify_checkpoint(newest)
    older = (run_dir / "checkpoint-10").rename(run_dir / "older")
    openers = (verify_checkpoint, Classifier.from_checkpoint, lambda folder: find_start(run_dir, folder))
    for damage in DAMAGES[name == MANIFEST :]:  # without its manifest it is foreign, below
        with damaged(newest / name, damage):
            for look in openers:
                with pytest.raises(CheckFailed, match=f"{name}: ") as caught:
                    look(newest)
                assert "\n" not in str(caught.value)
            caplog.clear()
            with pytest.raises(CheckFailed, match="none of its checkpoints can be continued"):
                find_start(run_dir)
            assert "checkpoint-20 skipped: " in caplog.text and f"{name}: " in caplog.text
        record_count("damaged files noticed")
    older.rename(run_dir / "checkpoint-10")
    if name == WEIGHTS:  # of two that are damaged, the fault of the newest is told
        told = pytest.raises(CheckFailed, match=f"the newest: .*checkpoint-20.{name}: ")
        with damaged(newest / name, damage), damaged(run_dir / "checkpoint-10" / "scheduler.pt", "missing"), told:
            find_start(run_dir)
    with damaged(newest / name, damage):
        assert find_start(run_dir) == (run_dir / "checkpoint-10").resolve()
    assert find_start(run_dir) == newest.resolve()


def test_every_flipped_byte_of_a_manifest_is_noticed(run_dir):
    """Step, seconds and configuration have no file of their own whose checksum would tell."""
    newest = run_dir / "checkpoint-20"
    assert read_manifest(newest)["step"] == 20
    path = newest / MANIFEST
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        with pytest.raises(CheckFailed, match="damaged"):
            read_manifest(newest)


def test_a_manifest_that_was_edited_or_has_no_checksum_is_refused(run_dir):
    path = run_dir / "checkpoint-20" / MANIFEST
    whole = json.loads(path.read_text())
    edited = whole | {"step": 30}
    bare = {name: value for name, value in whole.items() if name != "sha256"}
    for content in (edited, bare, [], {}, None, {"sha256": hashlib.sha256(b"{}").hexdigest()}):
        path.write_text(json.dumps(content, indent=2) + "\n")
        with pytest.raises(CheckFailed, match="not a manifest"):
            verify_checkpoint(path.parent)
    path.write_text(json.dumps(whole, indent=2) + "\n")
    verify_checkpoint(path.parent)


def test_without_a_manifest_a_checkpoint_predicts_with_a_notice_and_is_not_resumed(run_dir, caplog):
    with pytest.raises(InputError, match="checkpoint-10"):  # the run instead of a checkpoint: what lies in it is named
        find_start(run_dir, run_dir)
    newest = run_dir / "checkpoint-20"
    (newest / MANIFEST).unlink()
    assert "no manifest" in verify_checkpoint(newest).notices[0]
    with pytest.raises(InputError, match="no manifest"):
        find_start(run_dir, newest)
    assert find_start(run_dir) == (run_dir / "checkpoint-10").resolve()
    assert "checkpoint-20 skipped: it has no manifest" in caplog.text


def test_a_run_whose_base_changed_is_not_begun_anew_over_its_checkpoints(config, run_dir, caplog):
    """The fault is not in the checkpoints, and mending the base saves them all."""
    changed = Path(config.base_model) / "tokenizer_config.json"
    files = {path: path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()}
    with (
        damaged(changed, "flipped at the end"),
        pytest.raises(CheckFailed, match="none of its checkpoints can be continued"),
    ):
        training.train(config, run_dir, resume=True)
    assert "checkpoint-20 skipped: " in caplog.text
    assert {path: path.read_bytes() for path in files} == files
    assert find_start(run_dir) == (run_dir / "checkpoint-20").resolve()


def test_a_run_resumed_past_a_damaged_checkpoint_ends_as_the_unbroken_one(config, unbroken, run_dir, caplog):
    """And nothing that lay in the damaged folder becomes part of the new one."""
    newest = run_dir / "checkpoint-20"
    with (newest / "optimizer.pt").open("ab") as stream:
        stream.write(b"0")
    (newest / "rng_state_1.pth").write_bytes(b"from a run of two processes")
    training.train(config, run_dir, resume=True)
    assert "checkpoint-20 skipped" in caplog.text and "optimizer.pt: SHA-256 differs" in caplog.text
    wanted, found = read_manifest(unbroken / "checkpoint-20")["files"], read_manifest(newest)["files"]
    assert found.keys() == wanted.keys() == {path.name for path in newest.iterdir()} - {MANIFEST}
    for name in (WEIGHTS, "optimizer.pt", "scheduler.pt"):
        assert found[name] == wanted[name] == hash_file(newest / name)


def test_a_checkpoint_under_the_name_of_another_step_is_not_resumed(run_dir, caplog):
    shutil.rmtree(run_dir / "checkpoint-20")
    renamed = (run_dir / "checkpoint-10").rename(run_dir / "checkpoint-20")
    with pytest.raises(CheckFailed, match="name it checkpoint-10 again"):
        find_start(run_dir, renamed)
    with pytest.raises(CheckFailed, match="none of its checkpoints"):
        find_start(run_dir)
    assert "checkpoint-20 skipped" in caplog.text
    renamed.rename(run_dir / "favourite")
    assert verify_checkpoint(run_dir / "favourite").manifest["step"] == 10  # to predict, any name will do
    with pytest.raises(CheckFailed, match="name it checkpoint-10 again"):
        find_start(run_dir, run_dir / "favourite")


NEVER_READ = ["adapter_model.bin", "optimizer.bin", "training_args.bin"]
READ_TO_RESUME = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.bin"]


@pytest.fixture
def planted(tmp_path):
    """The file that a `Bomb` would create, were it unpickled; that both forms of one would is shown at the end."""
    path = tmp_path / "planted"
    yield path
    assert not path.exists()
    bomb = tmp_path / "bomb"
    for write, read in ((write_pickle, pickle.loads), (write_torch, load_without_care)):
        write(bomb, path)
        read(bomb.read_bytes())
        assert path.exists()
        path.unlink()


def write_pickle(path: Path, target: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(target), protocol=2))


def write_torch(path: Path, target: Path) -> None:
    torch.save(Bomb(target), path)


def load_without_care(data: bytes):
    return torch.load(io.BytesIO(data), weights_only=False)


def forge(folder: Path) -> None:
    """Seal `folder` as it is, training_args.bin included, the way somebody would who has read `seal`."""
    content = read_manifest(folder)
    content["files"] = {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def test_no_pickle_is_executed_to_predict_evaluate_or_verify(run_dir, planted, tmp_path, capsys):
    newest = run_dir / "checkpoint-20"
    for name in (*NEVER_READ, *READ_TO_RESUME):
        write_pickle(newest / name, planted)
    (newest / MANIFEST).unlink()
    assert main(["verify", str(newest)]) == 0
    assert main(["predict", str(newest), "Oil prices rise"]) == 0
    assert main(["evaluate", str(newest), "--split", "validation"]) == 0
    (newest / WEIGHTS).unlink()
    for command in (["verify"], ["predict", "Oil prices rise"], ["evaluate"]):
        assert main([command[0], str(newest), *command[1:]]) == 2
    assert capsys.readouterr().err.count("never unpickled") == 3


def test_a_base_model_that_is_a_pickle_is_refused(run_dir, tiny_base, planted, tmp_path):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "model.safetensors").unlink()
    write_torch(base / "pytorch_model.bin", planted)
    newest = run_dir / "checkpoint-20"
    (newest / MANIFEST).unlink()
    adapter = json.loads((newest / "adapter_config.json").read_text())
    (newest / "adapter_config.json").write_text(json.dumps(adapter | {"base_model_name_or_path": str(base)}))
    with pytest.raises(InputError, match="could not be loaded"):
        Classifier.from_checkpoint(newest)


def test_what_the_manifest_does_not_list_is_named_and_never_resumed(config, run_dir, planted, caplog):
    """The Trainer opens files by name: a model.safetensors, for one, it would load instead of the adapter."""
    newest = run_dir / "checkpoint-20"
    extra = [*NEVER_READ, "scaler.pt", "pytorch_model.bin", "model.safetensors"]
    for name in extra:
        write_pickle(newest / name, planted)
    (newest / "other").mkdir()
    write_pickle(newest / "other" / "adapter_model.bin", planted)
    found = verify_checkpoint(newest)
    assert found.unlisted == sorted([*extra, "other"]) and all(name in found.notices[0] for name in extra)
    Classifier.from_checkpoint(newest).predict(["Oil prices rise"])
    with pytest.raises(CheckFailed, match="which its manifest does not list") as caught:
        training.train(config, run_dir.parent / "new", resume_from=newest)
    assert all(name in str(caught.value) for name in found.unlisted)
    training.train(config, run_dir, resume=True)
    assert "checkpoint-20 skipped" in caplog.text and "does not list" in caplog.text
    assert verify_checkpoint(newest).unlisted == []  # written anew, from step 10
    (newest / ".DS_Store").write_bytes(b"Finder")
    (newest / ".ipynb_checkpoints").mkdir()
    assert find_start(run_dir) == find_start(run_dir, newest) == newest.resolve()


@pytest.mark.parametrize("name", READ_TO_RESUME)
@pytest.mark.parametrize(("option", "write"), [("resume", write_pickle), ("resume_from", write_torch)])
def test_a_pickle_in_the_place_of_a_sealed_file_is_not_executed_to_resume(
    config, run_dir, planted, name, option, write
):
    start = run_dir / "checkpoint-10"
    shutil.rmtree(run_dir / "checkpoint-20")
    write(start / name, planted)
    forge(start)
    refusals = (
        (CheckFailed, AttributeError) if name == "scaler.pt" else CheckFailed
    )  # float32 has no scaler to load into
    with pytest.raises(refusals, match="cannot be read|load_state_dict"):
        if option == "resume":
            training.train(config, run_dir, resume=True)
        else:
            training.train(config, run_dir.parent / "new", resume_from=start)


def test_pickles_that_the_trainer_does_not_read_are_not_executed_to_resume(config, unbroken, run_dir, planted):
    start = run_dir / "checkpoint-10"
    shutil.rmtree(run_dir / "checkpoint-20")
    for name in NEVER_READ:
        write_torch(start / name, planted)
    forge(start)
    assert NEVER_READ[-1] in read_manifest(start)["files"]
    training.train(config, run_dir, resume=True)
    training.train(config, run_dir.parent / "new", resume_from=start)
    wanted = hash_file(unbroken / "checkpoint-20" / WEIGHTS)
    assert hash_file(run_dir / "checkpoint-20" / WEIGHTS) == wanted
    assert hash_file(run_dir.parent / "new" / "checkpoint-20" / WEIGHTS) == wanted
