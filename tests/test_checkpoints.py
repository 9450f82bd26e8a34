import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_helpers import bases, loading
from lora_helpers.__main__ import main
from lora_helpers.checkpoints import MANIFEST, load_checkpoint, verify_checkpoint
from lora_helpers.config import LABELS
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.files.manifests import read_manifest, seal, write_atomically
from lora_helpers.files.places import REPOSITORY
from lora_helpers.inference import Classifier

TEXTS = ["Central bank raises rates", "Striker scores twice in the final", "New telescope finds a planet"]


@pytest.fixture(scope="module")
def whole(tiny_run):
    return tiny_run / "checkpoint-10"


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "checkpoint-10"))


@pytest.fixture
def foreign(copy):
    (copy / MANIFEST).unlink()
    return copy


@pytest.mark.slow
def test_a_fresh_process_from_another_folder_computes_the_same_logits(whole, tmp_path):
    here = Classifier.from_checkpoint(whole).predict_probabilities(TEXTS)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np\n"
        "from lora_helpers.inference import Classifier\n"
        "np.save(sys.argv[3], Classifier.from_checkpoint(sys.argv[2]).predict_probabilities(sys.argv[4:]))"
    )
    arguments = [sys.executable, "-c", code, str(REPOSITORY), str(whole), str(tmp_path / "there.npy"), *TEXTS]
    subprocess.run(arguments, check=True, cwd=tmp_path, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), here, atol=1e-6)


def test_the_merged_classifier_equals_the_adapter_and_differs_from_an_untrained_head(whole, tiny_base):
    model, tokenizer, _ = load_checkpoint(whole)
    rows = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**rows).logits.softmax(-1).numpy()
        with model.disable_adapter():
            untrained = model(**rows).logits.softmax(-1).numpy()
    found = Classifier.from_checkpoint(whole).predict_probabilities(TEXTS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(untrained - wanted).max() > 1e-3


def test_a_foreign_checkpoint_is_taken_with_a_notice_and_predicts_the_same(whole, foreign):
    classifier, ours = Classifier.from_checkpoint(foreign), Classifier.from_checkpoint(whole)
    assert "no manifest" in " ".join(classifier.verification.notices)
    np.testing.assert_array_equal(classifier.predict_probabilities(TEXTS), ours.predict_probabilities(TEXTS))
    assert (ours.max_length, classifier.max_length) == (32, 64)  # the run's; the base's 66 positions but two
    assert [Classifier.from_checkpoint(whole, max_length=n).max_length for n in (8, 99)] == [8, 64]


def test_a_base_with_other_bytes_is_refused(copy, tiny_base):
    config = tiny_base / "config.json"
    text = config.read_text()
    try:
        config.write_text(text + " ")
        with pytest.raises(CheckFailed, match="not the ones this checkpoint was trained on"):
            verify_checkpoint(copy)
    finally:
        config.write_text(text)


def test_a_base_from_elsewhere_is_compared_as_far_as_the_manifest_tells(copy):
    """A checkpoint of the Hub's base, verified where a folder stands in: the tokenizer's files may be spelt otherwise."""
    manifest = read_manifest(copy)
    weights = {"weights_sha256": manifest["base"]["weights_sha256"]}
    for more, said in (
        (weights, "the weights are the same, the tokenizer's files were not"),
        ({}, "it was not compared"),
    ):
        base = {"name": manifest["base"]["name"], "revision": "c" * 40, "sha256": "0" * 64}
        seal(copy, manifest | {"base": base | more})
        assert any(said in notice for notice in verify_checkpoint(copy).notices)
    seal(copy, manifest | {"base": base | {"weights_sha256": "0" * 64}})
    with pytest.raises(CheckFailed, match="not the ones this checkpoint was trained on"):
        verify_checkpoint(copy)


def test_a_control_on_a_random_base_cannot_pass_for_a_model(copy):
    manifest = read_manifest(copy)
    manifest["config"]["random_base"] = True
    seal(copy, manifest)
    with pytest.raises(CheckFailed, match="random weights"):
        verify_checkpoint(copy)


def test_a_folder_called_as_a_base_on_the_hub_is_loaded_instead(foreign, tiny_base, tmp_path, monkeypatch):
    monkeypatch.delenv("ROBERTA_BASE_DIR", raising=False)  # it would go before the folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bases, "PARAMETERS", {})  # by which a folder of that name would have to be as large
    shutil.copytree(tiny_base, tmp_path / "roberta-base")
    wanted = Classifier.from_checkpoint(foreign).predict_probabilities(TEXTS)
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "roberta-base"}))
    np.testing.assert_array_equal(Classifier.from_checkpoint(foreign).predict_probabilities(TEXTS), wanted)


def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name in ("missing", "loop"):
        with pytest.raises(InputError, match="no checkpoint at"):
            verify_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="is no checkpoint"):
        verify_checkpoint(tmp_path)


def test_a_run_given_for_a_checkpoint_names_its_checkpoints_and_the_last(tiny_run, tmp_path, capsys):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    shutil.copytree(run / "checkpoint-10", run / "checkpoint-5")
    shutil.copytree(run / "checkpoint-10", run / "checkpoint-20")
    assert main(["predict", str(run), "Oil prices rise"]) == 2
    line = capsys.readouterr().err
    assert "it holds checkpoint-5, checkpoint-10, checkpoint-20; name one" in line
    assert line.endswith(f"name one, as in {run / 'checkpoint-20'}\n")


def test_an_adapter_in_a_subfolder_is_named(copy):
    copy.rename(copy.with_name("adapter"))
    with pytest.raises(InputError, match="but it holds adapter; name one, as in .*adapter$"):
        verify_checkpoint(copy.parent)


QUIET = """
import sys; sys.path.insert(0, sys.argv[1])
from transformers.utils import logging
before = logging.get_verbosity()
from lora_helpers.inference import Classifier
print(Classifier.from_checkpoint(sys.argv[2]).predict(["Central bank raises rates"])["name"][0])
assert logging.get_verbosity() == before
"""


@pytest.mark.slow
def test_loading_says_nothing_that_was_not_asked(whole, tmp_path):
    """transformers would report a "newly initialized" head, which the adapter brings."""
    command = [sys.executable, "-c", QUIET, str(REPOSITORY), str(whole)]
    plain = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=plain)
    assert found.returncode == 0 and found.stdout.strip() in LABELS and found.stderr == ""


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_written_whole_has_the_users_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "new", "text\n")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["new"] and (tmp_path / "new").read_bytes() == b"text\n"


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path):
    (tmp_path / "old").write_text("as it was")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "old", "half a pair: \ud800")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "as it was")]


def test_the_garbage_collector_pauses_for_the_first_loading_alone(monkeypatch):
    import peft  # noqa: F401  (whichever test ran first)

    frozen = gc.get_freeze_count()
    with loading():
        assert gc.isenabled()
    monkeypatch.delitem(sys.modules, "peft")
    with pytest.raises(InputError), loading():
        assert not gc.isenabled()
        raise InputError("even then")
    assert gc.isenabled()
    monkeypatch.setitem(sys.modules, "transformers.utils", None)  # an import that breaks off, as at an interrupt
    with pytest.raises(ImportError), loading():
        pass
    assert gc.isenabled() and gc.get_freeze_count() == frozen  # a model that is dropped gives its memory back


def test_a_sealed_checkpoint_can_be_read_by_others(copy):
    """safetensors writes for the owner alone."""
    (copy / "adapter_model.safetensors").chmod(0o600)
    (copy / "README.md").write_text("PEFT's card, which says nothing")
    seal(copy, {"step": 10})
    assert not (copy / "README.md").exists()
    assert {path.stat().st_mode for path in copy.iterdir()} == {(copy / "trainer_state.json").stat().st_mode}


def test_a_pointer_of_git_lfs_is_called_so_in_a_sealed_checkpoint_too(copy):
    (copy / "adapter_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    with pytest.raises(InputError, match="is a Git LFS pointer"):
        verify_checkpoint(copy)


def test_a_tokenizer_that_the_manifest_does_not_list_is_not_read(tiny_run, tmp_path):
    copy = Path(shutil.copytree(tiny_run / "checkpoint-10", tmp_path / "checkpoint-10"))
    about = {key: value for key, value in read_manifest(copy).items() if key != "files"}
    (copy / "tokenizer.json").unlink()
    seal(copy, about)
    (copy / "tokenizer.json").write_text("no tokenizer")
    assert "not in the manifest, and not read: tokenizer.json" in verify_checkpoint(copy).notices
    (copy / ".DS_Store").write_text("left by Finder")
    assert verify_checkpoint(copy).unlisted == ["tokenizer.json"]
