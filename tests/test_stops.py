"""However a run is stopped, it goes on to the same bits, and what stood there before still stands."""

import signal
import subprocess

import drill
import pytest

from lora_helpers.__main__ import main
from lora_helpers.checkpoints import list_checkpoints, verify_checkpoint
from lora_helpers.errors import InputError, Stopped
from lora_helpers.training import run as training
from lora_helpers.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 5 MiB: one checkpoint of the tiny run fits, a second does not."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system to fill it")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


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
    with pytest.raises(Stopped, match=r"checkpoint-70; --resume --output-dir .*resume=True") as caught:
        train(tiny_config, tmp_path / "run")
    assert caught.value._render_traceback_() == [f"Stopped: {caught.value}"]  # what Jupyter shows
    train(tiny_config, tmp_path / "run", resume=True)
    assert drill.fingerprint(tmp_path / "run") == drill.fingerprint(unbroken)


def test_ctrl_c_on_the_command_line_is_one_line_and_status_130(tiny_base, tmp_path, at_step, capsys):
    at_step(5, lambda: signal.raise_signal(signal.SIGINT))
    fields = ("--base-model", str(tiny_base), "--max-length", "32", "--max-steps", "20")
    assert main(["train", "mini", "--output-dir", str(tmp_path / "run"), *fields]) == 130
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert last.startswith("stopped; last whole checkpoint: none; --resume --output-dir")


def test_a_full_disk_is_one_line_and_costs_nothing_that_was_there(unbroken, tiny_config, small_disk):
    run_dir = small_disk / "run"
    message = r"run: .* MiB are free, a checkpoint needs .* MiB; last whole checkpoint: checkpoint-70; mend that"
    with pytest.raises(InputError, match=message):
        train(tiny_config, run_dir)
    assert [folder.name for folder in list_checkpoints(run_dir)] == ["checkpoint-70"]
    verify_checkpoint(run_dir / "checkpoint-70")
    remount(small_disk, "size=64m")
    train(tiny_config, run_dir, resume=True)
    assert drill.fingerprint(run_dir) == drill.fingerprint(unbroken)


def test_a_folder_that_turns_read_only_is_one_line_and_costs_nothing(unbroken, tiny_config, small_disk, at_step):
    run_dir, place = small_disk / "run", small_disk / "run" / "checkpoint-140"
    remount(small_disk, "size=64m")

    def make_read_only():
        place.mkdir()
        subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
        remount(place, "bind,ro")

    at_step(75, make_read_only)
    with pytest.raises(InputError, match=r"run: .*Read-only file system.*last whole checkpoint: checkpoint-70"):
        train(tiny_config, run_dir)
    subprocess.run(["umount", str(place)], check=True)
    verify_checkpoint(run_dir / "checkpoint-70")
    train(tiny_config, run_dir, resume=True)
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


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 2.00 GiB.", "DefaultCPUAllocator: can't"])
def test_too_little_memory_is_one_line_that_says_what_helps(tiny_config, at_step, tmp_path, message):
    import torch

    def run_out():
        raise torch.OutOfMemoryError(message) if message.startswith("CUDA") else RuntimeError(message)

    at_step(72, run_out)
    with pytest.raises(InputError, match="smaller batch_size.*last whole checkpoint: checkpoint-70"):
        train(tiny_config, tmp_path / "run")
