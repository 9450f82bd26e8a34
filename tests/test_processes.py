"""One run on two processes: the same batches, losses and weights as on one, one of everything that is written.

`two_processes.py` starts them.
"""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import two_processes
from two_processes import SECONDS, Launch, rows_written_to

from lora_helpers.__main__ import main
from lora_helpers.config import get_profile

SHAPE = {  # 840 rows: epochs of 53 steps, the last one with 8 rows; 120 validation rows: 2 * 7 * 8 + 8
    **{"base_dropout": 0.0, "lora_dropout": 0.0, "max_length": 32, "learning_rate": 5e-3, "warmup_steps": 5},
    **{"max_steps": 60, "eval_steps": 10, "save_steps": 30, "eval_batch_size": 7},
}


def command(tiny_base, output_dir, *more, **changes):
    """`train mini …` as the command line takes it."""
    fields = {"base_model": tiny_base} | SHAPE | changes
    flags = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", "mini", "--output-dir", str(output_dir), *flags, *map(str, more)]


# As in the launches: two cores are enough for two processes, not for two with two threads each.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one(tmp_path_factory, tiny_base):
    """The folder of the run on one process; its rows stand beside it."""
    folder = tmp_path_factory.mktemp("one")
    with rows_written_to(folder / "rows.json"):
        assert main(command(tiny_base, folder / "run")) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_base):
    """The folder of the same run on two processes, and the launch."""
    folder = tmp_path_factory.mktemp("two")
    launch = Launch(folder / "logs", two_processes.__file__, "rows", str(folder), *command(tiny_base, folder / "run"))
    assert launch.finish() == 0, launch.written(0)[-2000:]
    return folder / "run", launch


def record_of(run_dir):
    return json.loads((run_dir / "run.json").read_text())


def assert_same_end(run_dir, other_dir, atol=1e-5):
    """Every number of the logs, and adapter and head at the end."""
    from safetensors.torch import load_file

    mine, other = record_of(run_dir)["log"], record_of(other_dir)["log"]
    assert [row["step"] for row in mine] == [row["step"] for row in other]
    for row, wanted in zip(mine, other, strict=True):
        for name in {"loss", "eval_loss", "eval_accuracy", "eval_macro_f1", "learning_rate", "epoch"} & wanted.keys():
            assert row[name] == pytest.approx(wanted[name], abs=atol), f"{name} at step {row['step']}"
        assert row.get("grad_norm", 0) == pytest.approx(wanted.get("grad_norm", 0), rel=1e-3)
    weights, others = (load_file(d / "checkpoint-60" / "adapter_model.safetensors") for d in (run_dir, other_dir))
    assert weights.keys() == others.keys()
    for name in weights:
        assert (weights[name] - others[name]).abs().max() < 10 * atol, name


def test_two_processes_take_part_and_one_alone_does_not_count_as_two(one, two):
    assert record_of(two[0])["world_size"] == 2
    assert record_of(one)["world_size"] == 1


def test_every_global_batch_is_that_of_one_process(one, two):
    alone = json.loads((one.parent / "rows.json").read_text())
    shares = [json.loads((two[0].parent / f"rows-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(alone) == len(shares[0]) == len(shares[1]) == 60
    assert [len(rows) for rows in shares[0]] == [len(rows) for rows in shares[1]] == [8] * 52 + [4] + [8] * 7
    for whole, first, second in zip(alone, *shares, strict=True):
        assert Counter(whole) == Counter(first) + Counter(second)
    assert Counter(alone[0]) != Counter(alone[53])  # the epochs differ, so equality means something
    assert all(first != second for first, second in zip(*shares, strict=True))


def test_losses_scores_and_weights_are_those_of_one_process(one, two):
    assert_same_end(two[0], one)


def test_another_seed_would_be_noticed(one, tiny_base, tmp_path):
    assert main(command(tiny_base, tmp_path / "run", seed=43)) == 0
    with pytest.raises(AssertionError):
        assert_same_end(tmp_path / "run", one)


def test_one_folder_one_record_one_bar_one_line(two):
    run_dir, launch = two
    assert sorted(path.name for path in run_dir.iterdir() if path.name != ".lock") == [
        *("checkpoint-30", "checkpoint-60", "run.json"),
    ]
    assert launch.written(0).count("\n") <= 1 and "60/60" in launch.written(0)  # a bar is one line, drawn over and over
    assert launch.written(0, "stdout").startswith(f"{run_dir}: step 60, validation accuracy")
    assert launch.written(1) == launch.written(1, "stdout") == ""


def test_checkpoints_are_whole_and_hold_the_random_state_of_each_process(two):
    import torch
    from transformers.trainer_pt_utils import safe_globals

    from lora_helpers.checkpoints import verify_checkpoint

    for step in (30, 60):
        folder = two[0] / f"checkpoint-{step}"
        files = json.loads((folder / "manifest.json").read_text())["files"]
        assert {"rng_state_0.pth", "rng_state_1.pth"} < files.keys() and "rng_state.pth" not in files
        with safe_globals():
            states = [torch.load(folder / f"rng_state_{rank}.pth", weights_only=True)["cpu"] for rank in (0, 1)]
        assert not torch.equal(*states)  # else both would drop out the same units
        assert verify_checkpoint(folder).step == step


def test_one_process_goes_on_from_what_two_wrote(one, two, tiny_base, tmp_path, caplog):
    start = two[0] / "checkpoint-30"
    assert main(command(tiny_base, tmp_path / "run", "--resume-from", start)) == 0
    assert_same_end(tmp_path / "run", one)
    assert record_of(tmp_path / "run")["resumed_from"]["world_size"] == 2
    assert "dropout masks" not in caplog.text  # there is none to draw


def test_two_processes_go_on_from_what_one_wrote(one, tiny_base, tmp_path):
    arguments = command(tiny_base, tmp_path / "run", "--resume-from", one / "checkpoint-30")
    launch = Launch(tmp_path / "logs", "-m", "lora_helpers", *arguments)
    assert launch.finish() == 0, launch.written(0)[-2000:]
    assert_same_end(tmp_path / "run", one)
    record = record_of(tmp_path / "run")
    assert record["world_size"] == 2 and record["resumed_from"]["world_size"] == 1
    assert launch.written(1) == "" and launch.written(0).count("resuming") == 1


def test_another_number_of_processes_is_a_warning_where_dropout_is_on(two, tiny_base, tmp_path, caplog):
    from lora_helpers.data import load_ag_news
    from lora_helpers.files.manifests import read_manifest, seal
    from lora_helpers.training.resuming import require_same_run

    config = get_profile("mini", base_model=str(tiny_base), **SHAPE)
    start, splits = two[0] / "checkpoint-30", load_ag_news(config)
    require_same_run(start, config, splits, False)
    assert not caplog.text
    manifest = read_manifest(start)
    manifest["config"]["lora_dropout"] = 0.05
    seal(tmp_path, manifest)
    require_same_run(tmp_path, config.replace(lora_dropout=0.05), splits, False)
    assert "1 here, 2 there" in caplog.text and "dropout masks" in caplog.text


def test_an_error_is_said_once_and_ends_every_process(tiny_base, tmp_path):
    """Bad input, a folder in use, a loss that is not finite; then a disk that is full for one process alone."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    (tmp_path / "mini-3").mkdir()
    commands = [
        command(tiny_base, tmp_path / "odd", batch_size=15),
        command(tiny_base, tmp_path / "used"),
        command(tiny_base, tmp_path / "nan", learning_rate=1e38, max_grad_norm=1e38, warmup_steps=0),
        command(tiny_base, tmp_path / "full", eval_steps=5, save_steps=5, max_steps=10),
    ]
    launch = Launch(tmp_path / "logs", two_processes.__file__, "errors", str(tmp_path), json.dumps(commands))
    assert launch.finish() != 0
    assert (tmp_path / "tried-1.json").is_file(), launch.written(1)[-2000:]
    first, second = (json.loads((tmp_path / f"tried-{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == second[0] and Path(first[0]["next"]).name in {"mini-4", "mini-8"}
    assert [each["status"] for each in first[1:]] == [each["status"] for each in second[1:]] == [2, 2, 1]
    odd, used, nan = (each["said"].splitlines()[-1] for each in first[1:])  # before the last stands the bar
    assert odd == "error: batch_size is 15, wanted a multiple of the 2 processes that share it"
    assert "holds files already" in used and "at step 2;" in nan
    assert [each["said"].count("\n") for each in first[1:3]] == [1, 1]
    assert [each["said"] for each in second[1:]] == ["", "", ""]
    assert not (tmp_path / "odd").exists() and [path.name for path in (tmp_path / "used").iterdir()] == ["file"]
    assert "No space left" in launch.written(0)
    assert launch.written(1) == ""


def test_ctrl_c_ends_both_processes_and_says_so_once(tiny_base, tmp_path):
    arguments = command(tiny_base, tmp_path / "run", max_steps=5000, save_steps=10)
    launch = Launch(tmp_path / "logs", "-m", "lora_helpers", *arguments)
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "run" / "checkpoint-10" / "manifest.json").is_file() and time.monotonic() < deadline:
        assert launch.process.poll() is None, launch.written(0)[-2000:]
        time.sleep(0.1)
    os.killpg(launch.process.pid, signal.SIGINT)
    assert launch.finish(60) != 0
    assert launch.written(0).splitlines()[-1].startswith("stopped; last whole checkpoint: checkpoint-")
    assert "Traceback" not in launch.written(0) + launch.written(1)
    assert launch.written(1) == ""
