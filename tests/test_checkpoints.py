import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Bomb
from safetensors.torch import load_file, save_file

from lora_helpers.checkpoints import MANIFEST, WEIGHTS, load_checkpoint, verify_checkpoint
from lora_helpers.config import REPOSITORY
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.inference import Classifier
from lora_helpers.training import train

TEXTS = ["Central bank raises rates", "Striker scores twice in the final", "New telescope finds a planet"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_base):
    from lora_helpers.config import get_profile

    config = get_profile("mini", base_model=str(tiny_base), max_length=32, max_steps=10, eval_steps=10, save_steps=10)
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    train(config, run_dir)
    return run_dir / "checkpoint-10"


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "checkpoint-10"))


@pytest.fixture
def foreign(copy):
    (copy / MANIFEST).unlink()
    return copy


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def change_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


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


def test_every_damaged_file_is_noticed(whole, tmp_path):
    verify_checkpoint(whole)
    names = json.loads((whole / MANIFEST).read_text())["files"]
    assert {WEIGHTS, "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(names)
    for number, name in enumerate([*names, MANIFEST]):
        for kind in ("flipped", "truncated", "missing"):
            if (name, kind) in {(MANIFEST, "missing"), (MANIFEST, "flipped")}:
                continue  # without a manifest it is foreign; one flipped blank would still be JSON
            folder = Path(shutil.copytree(whole, tmp_path / f"{number}-{kind}"))
            data = bytearray((folder / name).read_bytes())
            if kind == "flipped":
                data[len(data) // 2] ^= 1
            (folder / name).write_bytes(data[: len(data) // 2] if kind == "truncated" else data)
            if kind == "missing":
                (folder / name).unlink()
            with pytest.raises(CheckFailed):
                verify_checkpoint(folder)
            with pytest.raises(CheckFailed):
                Classifier.from_checkpoint(folder)


def test_a_foreign_checkpoint_is_taken_with_a_notice_and_predicts_the_same(whole, foreign):
    change_config(foreign, a_field_of_the_future=1)
    classifier = Classifier.from_checkpoint(foreign)
    notices = " ".join(classifier.verification.notices)
    assert "no manifest" in notices and "a_field_of_the_future" in notices
    wanted = Classifier.from_checkpoint(whole).predict_probabilities(TEXTS)
    np.testing.assert_array_equal(classifier.predict_probabilities(TEXTS), wanted)


def drop_head(weights):
    for name in [name for name in weights if "classifier" in name]:
        del weights[name]


def drop_layer(weights):
    for name in [name for name in weights if "layer.1." in name]:
        del weights[name]


def nest_head(weights):
    weights["base_model.model.classifier.modules_to_save.dense.lora_A.weight"] = torch.zeros(2, 32)


def poison(weights):
    next(iter(weights.values()))[0] = float("nan")


def widen(weights):
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = torch.zeros(3, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_head, "missing base_model.model.classifier"), (drop_layer, "missing .*layer.1"),
        (nest_head, "unexpected .*modules_to_save"), (poison, "NaN"), (widen, r"shape \(3, 32\), wanted \(2, 32\)"),
    ],
)  # fmt: skip
def test_what_would_load_only_partly_is_refused_with_its_keys(foreign, change, message):
    change_weights(foreign, change)
    with pytest.raises(CheckFailed, match=message):
        Classifier.from_checkpoint(foreign)


def test_a_wrong_rank_or_another_base_is_refused(foreign):
    change_config(foreign, r=4)
    with pytest.raises(CheckFailed, match="shape"):
        verify_checkpoint(foreign)
    change_config(foreign, r=2, base_model_name_or_path="checkpoints/roberta-mini")
    with pytest.raises(CheckFailed, match="shape|missing|unexpected"):
        verify_checkpoint(foreign)


def test_a_base_with_other_bytes_is_refused(copy, tiny_base):
    config = tiny_base / "config.json"
    text = config.read_text()
    try:
        config.write_text(text + " ")
        with pytest.raises(CheckFailed, match="not the ones this checkpoint was trained on"):
            verify_checkpoint(copy)
    finally:
        config.write_text(text)


def test_a_head_that_neither_the_file_nor_the_base_brings_is_refused(foreign):
    """PEFT asks only for what its own configuration lists; the rest would stay as it was drawn."""
    change_weights(foreign, lambda weights: [weights.pop(n) for n in list(weights) if "classifier.dense" in n])
    with pytest.raises(CheckFailed, match="missing .*classifier.dense"):
        verify_checkpoint(foreign)


def test_a_control_on_a_random_base_cannot_pass_for_a_model(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["config"]["random_base"] = True
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckFailed, match="random weights"):
        verify_checkpoint(copy)


def test_an_adapter_that_was_never_trained_gets_a_notice(foreign):
    def zero(weights):
        for name in weights:
            if "lora_B" in name:
                weights[name] = torch.zeros_like(weights[name])

    change_weights(foreign, zero)
    assert any("never trained" in notice for notice in verify_checkpoint(foreign).notices)


def test_no_pickle_is_ever_executed(foreign, tmp_path):
    planted = tmp_path / "planted"
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt", "pytorch_model.bin"):
        (foreign / name).write_bytes(pickle.dumps(Bomb(planted)))
    Classifier.from_checkpoint(foreign).predict(TEXTS)
    (foreign / WEIGHTS).unlink()
    with pytest.raises(InputError, match="never unpickled"):
        Classifier.from_checkpoint(foreign)
    assert not planted.exists()
    pickle.loads(pickle.dumps(Bomb(planted)))  # the bomb would have worked
    assert planted.exists()


def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        verify_checkpoint(tmp_path / "missing")
    with pytest.raises(InputError, match="is no checkpoint"):
        verify_checkpoint(tmp_path)
