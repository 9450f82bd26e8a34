"""However a run is stopped, it goes on to the same bits, and what stood there before still stands."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import drill
import pytest

from lora_helpers.__main__ import main
from lora_helpers.checkpoints import list_checkpoints, verify_checkpoint
from lora_helpers.errors import InputError, Stopped
from lora_helpers.files.places import REPOSITORY
from lora_helpers.training import trainer as training
from lora_helpers.training.failures import failures_in_one_sentence
from lora_helpers.training.resuming import Beginning
from lora_helpers.training.run import train

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_config, one_thread):
    run_dir = tmp_path_factory.mktemp("runs") / "unbroken"
    train(tiny_config, run_dir)
    return run_dir


@pytest.fixture
def at_step(monkeypatch):
    """Do something in the middle of a run, once: `at_step(75, action)`."""
    from transformers import TrainerCallback

    def arrange(step, action):
        todo = [action]

        class Act(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == step and todo:
                    todo.pop()()

        stock = training.make_trainer

        def make_trainer(*arguments):
            trainer = stock(*arguments)
            trainer.add_callback(Act())
            return trainer

        monkeypatch.setattr(training, "make_trainer", make_trainer)

    yield arrange
    monkeypatch.undo()


def test_killed_runs_end_with_the_same_bits(tiny_config, tmp_path):
    places = [drill.TRAINING, drill.WRITING, drill.EVALUATION, drill.WRITING]
    kills = drill.drill(tiny_config, tmp_path, places)
    found = drill.summary(kills)
    assert found["kills"] == 4 and found["mismatches"] == 0, found
    aimed = drill.summary(kills[1:])["places"]  # the first fell at any moment, in an evaluation too if it so happened
    assert found["places"]["writing"] >= 1 and aimed["evaluation"] == 1
    assert drill.fingerprint(tmp_path / "reference") != drill.fingerprint(_another_seed(tiny_config, tmp_path))


def _another_seed(config, folder):
    train(config.replace(seed=7), folder / "another-seed")
    return folder / "another-seed"


def test_an_interrupted_run_says_how_it_goes_on_and_does(unbroken, tiny_config, tmp_path, at_step):
    at_step(75, lambda: signal.raise_signal(signal.SIGINT))
    said = (
        r"last whole checkpoint: checkpoint-70; to go on: python -m lora_helpers train mini --output-dir \S+ --resume "
    )
    with pytest.raises(Stopped, match=said) as caught:
        train(tiny_config, tmp_path / "run")
    assert str(caught.value).endswith("; in a notebook: record = train(config, run_dir, resume=True)")
    assert caught.value._render_traceback_() == [f"Stopped: {caught.value}"]  # what Jupyter shows
    train(tiny_config, tmp_path / "run", resume=True)
    assert drill.fingerprint(tmp_path / "run") == drill.fingerprint(unbroken)


def told(config, output_dir, **beginning):
    """What a run that is interrupted says."""
    with pytest.raises(Stopped) as caught, failures_in_one_sentence(config, output_dir, Beginning(**beginning)):
        raise KeyboardInterrupt
    return str(caught.value)


def test_the_command_that_goes_on_holds_every_changed_field_and_where_it_began(tiny_config, unbroken, tmp_path):
    config, folder = tiny_config.replace(lora_targets=("query", "value"), stratified=False), tmp_path / "my run"
    words = told(config, folder).split("to go on: ")[1].split("; in a notebook")[0]
    assert f"--output-dir '{folder}' --resume" in words and "--lora-targets query,value" in words
    assert "--stratified false" in words and "--eval-batch-size" not in words  # as the profile has it
    begun = told(config, folder, resume_from=tmp_path / "checkpoint-70", allow_other_data=True)
    assert "--resume " not in begun and f"--resume-from {tmp_path / 'checkpoint-70'} --allow-other-data" in begun
    assert f"train(config, run_dir, resume_from='{tmp_path / 'checkpoint-70'}', allow_other_data=True)" in begun
    assert f"--warm-start {tmp_path}" in told(config, folder, warm_start=tmp_path)
    shutil.copytree(unbroken / "checkpoint-70", folder / "checkpoint-70")  # now it has one of its own
    for beginning in ({"resume_from": tmp_path / "checkpoint-70"}, {"warm_start": tmp_path}):
        further = told(config, folder, **beginning)
        assert " --resume " in further and further.endswith("train(config, run_dir, resume=True)")
        assert "--resume-from" not in further and "--warm-start" not in further
    assert "python -m" not in told(config.replace(profile="my own"), folder)  # no command knows that profile


def test_the_command_that_a_stopped_run_tells_goes_on(tiny_base, tmp_path, at_step, capsys, monkeypatch):
    at_step(15, lambda: signal.raise_signal(signal.SIGINT))
    fields = ("--base-model", str(tiny_base), "--max-length", "32", "--max-steps", "20", "--save-steps", "10")
    run = ["train", "mini", "--output-dir", str(tmp_path / "run"), *fields, "--eval-steps", "10"]
    assert main(run) == 130
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert last.startswith(
        "stopped; last whole checkpoint: checkpoint-10; to go on: python -m lora_helpers train mini "
    )
    command = last.split("to go on: ")[1].split("; in a notebook")[0].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=REPOSITORY, capture_output=True)
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_disk_that_cannot_hold_a_checkpoint_is_one_line_and_costs_nothing(
    unbroken, tiny_config, tmp_path, monkeypatch
):
    """Of what a checkpoint is taken to need, 32 KiB more than 4 MiB: one fits, a second does not."""
    run_dir = tmp_path / "run"

    def small_disk(folder):
        return SimpleNamespace(free=2**22 + 2**15 - sum(path.stat().st_size for path in run_dir.rglob("*")))

    message = r"run: .* MiB are free, a checkpoint needs .* MiB; mend that; last whole checkpoint: checkpoint-70"
    with monkeypatch.context() as patch:
        patch.setattr(training.shutil, "disk_usage", small_disk)
        with pytest.raises(InputError, match=message):
            train(tiny_config, run_dir)
    assert_goes_on(tiny_config, run_dir, unbroken)


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_one_line(unbroken, tiny_config, tmp_path, at_step):
    """The system refuses to make a file longer than 10 KiB: the adapter fits, the optimizer's states do not."""
    resource = pytest.importorskip("resource")
    run_dir, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(139, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10 * 2**10, limits[1])))
    try:
        with pytest.raises(InputError, match=r"run: .*; mend that; last whole checkpoint: checkpoint-70"):
            train(tiny_config, run_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run_dir / "checkpoint-140" / "adapter_model.safetensors").stat().st_size > 2**10
    assert_goes_on(tiny_config, run_dir, unbroken)


def test_a_folder_that_turns_read_only_is_one_line_and_costs_nothing(unbroken, tiny_config, tmp_path, monkeypatch):
    def read_only(folder, details):
        if folder.name == "checkpoint-140":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder / "manifest.json"))
        seal(folder, details)

    seal, run_dir = training.seal, tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "seal", read_only)
        with pytest.raises(
            InputError, match=r"run: Read-only file system \(.*manifest.json\).*last whole.*: checkpoint-70"
        ):
            train(tiny_config, run_dir)
    assert_goes_on(tiny_config, run_dir, unbroken)


def assert_goes_on(config, run_dir, unbroken):
    """The checkpoint before is whole, and the run ends as the unbroken one does."""
    assert [folder.name for folder in list_checkpoints(run_dir)] == ["checkpoint-70"]
    verify_checkpoint(run_dir / "checkpoint-70")
    train(config, run_dir, resume=True)
    assert drill.fingerprint(run_dir) == drill.fingerprint(unbroken)


def test_a_second_process_is_refused_while_the_first_lives_and_not_after(tiny_config, tmp_path):
    run_dir = tmp_path / "run"
    process, busy = drill.start(drill.make_context(), tiny_config, run_dir)
    drill.wait_for(process, busy, drill.TRAINING)
    with pytest.raises(InputError, match="another process is training there"):
        train(tiny_config, run_dir, resume=True)
    process.kill()
    process.join()
    train(tiny_config, run_dir, resume=True)


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried 2 GiB.", "DefaultCPUAllocator: can't", ""])
def test_too_little_memory_is_one_line_that_says_what_helps(tiny_config, at_step, tmp_path, message):
    import torch

    def run_out():
        errors = {"CUDA": torch.OutOfMemoryError, "Defa": RuntimeError, "": MemoryError}
        raise errors[message[:4]](message)

    at_step(72, run_out)
    with pytest.raises(InputError, match="smaller batch_size.*last whole checkpoint: checkpoint-70"):
        train(tiny_config, tmp_path / "run")
