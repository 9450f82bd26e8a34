import json
import math
import shutil

import pytest

from lora_helpers.checkpoints import list_checkpoints
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.files.manifests import hash_file, read_manifest, seal
from lora_helpers.records import read_record, validation_rows
from lora_helpers.training.run import next_run_dir, train

TIMES = ("runtime", "per_second")


def facts(record):
    """The log without what the clock decides."""
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in record["log"]]


def last_bytes(run_dir):
    last = list_checkpoints(run_dir)[-1]
    return {name: hash_file(last / name) for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_config):
    run_dir = tmp_path_factory.mktemp("runs") / "unbroken"
    return tiny_config, run_dir, train(tiny_config, run_dir)


def test_the_first_evaluation_has_an_accuracy_and_the_last_step_is_logged(unbroken):
    _, run_dir, record = unbroken
    rows = validation_rows(record)
    assert rows[0]["step"] == 10 and 0 <= rows[0]["eval_accuracy"] <= 1
    assert rows[-1]["step"] == 150
    assert list(record["checkpoints"]) == ["70", "140", "150"]
    assert record == read_record(run_dir)
    best = max(record["checkpoints"].values(), key=lambda c: c["validation_accuracy"])
    assert record["checkpoints"][str(record["best_saved_step"])] == best


def test_a_record_holds_no_machine_path_and_no_environment(unbroken, monkeypatch):
    config, run_dir, record = unbroken
    text = (run_dir / "run.json").read_text()
    import os
    import socket

    secrets = [str(run_dir.parent), socket.gethostname(), os.environ.get("HOME", "/root") + "/"]
    assert f'"{config.base_model}' not in text  # a folder outside the repository is named relative to it
    adapter = (list_checkpoints(run_dir)[0] / "adapter_config.json").read_text()
    for secret in secrets:
        assert secret not in text and f'"{secret}' not in adapter
    assert not record["adapter_config"]["base_model_name_or_path"].startswith("/")


def test_a_checkpoint_is_sealed_and_holds_no_pickle_of_the_arguments(unbroken):
    _, run_dir, _ = unbroken
    for folder in list_checkpoints(run_dir):
        names = {path.name for path in folder.iterdir()}
        assert "training_args.bin" not in names
        assert set(json.loads((folder / "manifest.json").read_text())["files"]) == names - {"manifest.json"}


@pytest.mark.parametrize("step", [70, 140])
def test_a_resumed_run_ends_with_the_same_bits(unbroken, tmp_path, step):
    """Step 70 lies inside epoch 2, step 140 inside epoch 3; dropout and length grouping are on."""
    config, run_dir, record = unbroken
    again = train(config, tmp_path / "resumed", resume_from=run_dir / f"checkpoint-{step}")
    assert last_bytes(tmp_path / "resumed") == last_bytes(run_dir)
    assert facts(again) == facts(record)


def test_a_run_stopped_after_its_last_checkpoint_gets_its_record_and_no_further_step(unbroken, tmp_path):
    config, run_dir, record = unbroken
    stopped = tmp_path / "stopped"
    shutil.copytree(run_dir, stopped)
    (stopped / "run.json").unlink()
    again = train(config, stopped, resume=True)
    assert facts(again) == facts(record) and again["lora_norms"] == record["lora_norms"]
    assert last_bytes(stopped) == last_bytes(run_dir)


def test_another_seed_gives_other_bits(unbroken, tmp_path):
    config, run_dir, _ = unbroken
    train(config.replace(seed=43), tmp_path / "other")
    assert last_bytes(tmp_path / "other") != last_bytes(run_dir)


def test_resume_takes_the_newest_whole_checkpoint_and_says_what_it_skips(unbroken, tmp_path, caplog):
    config, run_dir, record = unbroken
    stopped = tmp_path / "stopped"
    shutil.copytree(run_dir, stopped)
    shutil.rmtree(stopped / "checkpoint-150")
    (stopped / "checkpoint-140" / "manifest.json").unlink()  # as if killed while it was being written
    with caplog.at_level("INFO", logger="lora_helpers"):
        again = train(config, stopped, resume=True)
    assert "checkpoint-140 skipped" in caplog.text and "at step 70" in caplog.text
    assert last_bytes(stopped) == last_bytes(run_dir)
    assert facts(again) == facts(record)


def test_a_run_is_never_overwritten(unbroken):
    config, run_dir, _ = unbroken
    with pytest.raises(InputError, match="holds files already"):
        train(config, run_dir)


def test_resuming_with_another_configuration_names_every_difference(unbroken, tmp_path):
    config, run_dir, _ = unbroken
    changed = config.replace(learning_rate=3e-3, lora_dropout=0.0)
    with pytest.raises(InputError, match=r"learning_rate is 0\.003 here, 0\.001 there") as caught:
        train(changed, tmp_path / "new", resume_from=run_dir / "checkpoint-70")
    assert "lora_dropout" in str(caught.value) and "learning_rate" in str(caught.value)


def test_resuming_on_other_data_is_refused_unless_allowed(unbroken, tmp_path):
    config, run_dir, _ = unbroken
    start = tmp_path / "run" / "checkpoint-140"
    shutil.copytree(run_dir / "checkpoint-140", start)
    manifest = read_manifest(start)
    manifest["data"]["sha256"]["train"] = "0" * 64
    seal(start, manifest)
    with pytest.raises(InputError, match="trained on other data"):
        train(config, tmp_path / "new", resume_from=start)
    record = train(config, tmp_path / "allowed", resume_from=start, allow_other_data=True)
    assert record["resumed_from"]["other_data"] is True
    (tmp_path / "allowed" / "run.json").unlink()  # as if it had been stopped at its end
    assert train(config, tmp_path / "allowed", resume=True)["resumed_from"]["other_data"] is True


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tiny_config, tmp_path):
    with pytest.raises(CheckFailed, match="at step 2;"):
        train(tiny_config.replace(learning_rate=1e38, max_grad_norm=1e38, warmup_steps=0), tmp_path / "run")


def test_resuming_the_last_checkpoint_elsewhere_is_that_checkpoint(unbroken, tmp_path):
    config, run_dir, record = unbroken
    again = train(config, tmp_path / "copy", resume_from=run_dir / "checkpoint-150")
    assert last_bytes(tmp_path / "copy") == last_bytes(run_dir) and facts(again) == facts(record)


def test_resuming_a_finished_run_changes_nothing(unbroken):
    config, run_dir, record = unbroken
    before = (run_dir / "run.json").read_bytes()
    assert train(config, run_dir, resume=True) == record
    assert (run_dir / "run.json").read_bytes() == before


def test_a_run_that_could_not_begin_leaves_no_folder(tiny_config, tmp_path):
    for wrong in ({"lora_targets": ("nothing",)}, {"max_length": 100}):
        with pytest.raises(InputError):
            train(tiny_config.replace(**wrong), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_two_processes_never_train_into_one_folder(tiny_config, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(InputError, match="another process"):
        train(tiny_config, tmp_path / "run", resume=True)


def test_the_next_run_gets_the_next_free_number(tmp_path):
    assert next_run_dir("mini", tmp_path).name == "mini-1"
    (tmp_path / "mini-9").mkdir()
    (tmp_path / "mini-agnews-12").mkdir()
    assert next_run_dir("mini", tmp_path).name == "mini-10"
    assert next_run_dir("mini-agnews", tmp_path).name == "mini-agnews-13"


def test_norms_follow_the_formula(unbroken):
    from lora_helpers.checkpoints import load_checkpoint

    config, run_dir, record = unbroken
    model, _, _ = load_checkpoint(list_checkpoints(run_dir)[-1])
    state = model.state_dict()
    for name, norm in record["lora_norms"].items():
        A, B = (state[f"base_model.model.{name}.lora_{m}.default.weight"] for m in "AB")
        by_hand = config.lora_alpha / config.lora_rank * math.sqrt(((B @ A) ** 2).sum().item())
        assert norm == pytest.approx(by_hand, rel=1e-4) and norm > 0
