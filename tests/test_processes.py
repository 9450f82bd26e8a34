"""One run on two processes: the same batches and losses as on one, and one of everything that is written.

`two_processes.py` starts them. Not the same are the last batch of an epoch, which accelerate fills up, and the weight
of the last batch in the validation loss: LIMIT is what that may do to a loss.
"""

import json
import os
import signal
import time
from collections import Counter

import pytest
import two_processes
from two_processes import SECONDS, Launch, rows_written_to

from lora_helpers.__main__ import main
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.records import read_record, validation_rows
from lora_helpers.training.arguments import Plan, make_arguments
from lora_helpers.training.failures import failures_in_one_sentence
from lora_helpers.training.resuming import Beginning

SHAPE = {  # 840 rows: epochs of 53 steps, the last one with 8 rows; 120 validation rows: 2 * 7 * 8 + 8
    **{"base_dropout": 0.0, "lora_dropout": 0.0, "max_length": 32, "learning_rate": 5e-3, "warmup_steps": 5},
    **{"max_steps": 60, "eval_steps": 10, "save_steps": 30, "eval_batch_size": 7},
}
LIMIT = 0.02  # nats; measured were 0.008 in the validation loss, and 0.010 in the training loss after an epoch


def command(tiny_base, output_dir, *more, **changes):
    """`train mini …` as the command line takes it."""
    fields = {"base_model": tiny_base} | SHAPE | changes
    flags = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", "mini", "--output-dir", str(output_dir), *flags, *map(str, more)]


# As in the launches: two cores are enough for two processes, not for two with two threads each.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


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
    launch = Launch(folder / "logs", two_processes.__file__, str(folder), *command(tiny_base, folder / "run"))
    assert launch.finish() == 0, launch.written(0)[-2000:]
    return folder / "run", launch


def record_of(run_dir):
    return json.loads((run_dir / "run.json").read_text())


def assert_same_run(run_dir, other_dir):
    """Every number of the logs, and adapter and head inside the first epoch."""
    from safetensors.torch import load_file

    mine, other = record_of(run_dir)["log"], record_of(other_dir)["log"]
    assert [row["step"] for row in mine] == [row["step"] for row in other]
    for row, wanted in zip(mine, other, strict=True):
        exact = row["step"] <= 50
        limits = {"loss": 1e-5 if exact else LIMIT, "eval_loss": LIMIT, "learning_rate": 1e-9, "epoch": 1e-9}
        limits |= {"grad_norm": 1e-3, "eval_accuracy": 1e-9} if exact else {}
        for name in limits.keys() & wanted.keys():
            assert row[name] == pytest.approx(wanted[name], abs=limits[name]), f"{name} at step {row['step']}"
    weights, others = (load_file(d / "checkpoint-30" / "adapter_model.safetensors") for d in (run_dir, other_dir))
    assert weights.keys() == others.keys()
    for name in weights:
        assert (weights[name] - others[name]).abs().max() < 1e-4, name


def test_two_processes_take_part_and_one_alone_does_not_count_as_two(one, two):
    assert record_of(two[0])["world_size"] == 2
    assert record_of(one)["world_size"] == 1


def test_every_global_batch_is_that_of_one_process(one, two):
    alone = json.loads((one.parent / "rows.json").read_text())
    shares = [json.loads((two[0].parent / f"rows-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(alone) == len(shares[0]) == len(shares[1]) == 60
    assert {len(rows) for rows in shares[0] + shares[1]} == {8}
    wholes = [first + second for first, second in zip(*shares, strict=True)]
    for step, (whole, wanted) in enumerate(zip(wholes, alone, strict=True)):
        filled = wanted + alone[0][:8] if step == 52 else wanted  # 8 rows are left, and 8 of the epoch's first make 16
        assert Counter(whole) == Counter(filled), f"step {step}"
    assert Counter(alone[0]) != Counter(alone[53])  # the epochs differ, so equality means something
    assert all(first != second for first, second in zip(*shares, strict=True))


def test_losses_scores_and_weights_are_those_of_one_process(one, two):
    assert_same_run(two[0], one)


def test_another_seed_would_be_noticed(one, tiny_base, tmp_path):
    assert main(command(tiny_base, tmp_path / "run", seed=43)) == 0
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", one)


def test_one_folder_one_record_one_line_an_evaluation_and_one_at_the_end(two):
    run_dir, launch = two
    assert sorted(path.name for path in run_dir.iterdir() if path.name != ".lock") == [
        *("checkpoint-30", "checkpoint-60", "run.json"),
    ]
    *_, last = told = launch.written(0).splitlines()  # no terminal, so no bar
    assert last.startswith("step 60 of 60: loss ") and all(line.startswith("step ") for line in told)
    assert len(told) == len(validation_rows(read_record(run_dir)))
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
        assert verify_checkpoint(folder).manifest["step"] == step


def test_one_process_goes_on_from_what_two_wrote(one, two, tiny_base, tmp_path, caplog):
    start = two[0] / "checkpoint-30"
    assert main(command(tiny_base, tmp_path / "run", "--resume-from", start)) == 0
    mine, other = record_of(tmp_path / "run"), record_of(one)
    assert [row["loss"] for row in mine["log"] if "loss" in row] == pytest.approx(
        [row["loss"] for row in other["log"] if "loss" in row], abs=1e-4
    )
    assert mine["resumed_from"]["world_size"] == 2
    assert "dropout masks" not in caplog.text  # there is none to draw


def test_two_processes_go_on_from_what_one_wrote(one, tiny_base, tmp_path):
    arguments = command(tiny_base, tmp_path / "run", "--resume-from", one / "checkpoint-30")
    launch = Launch(tmp_path / "logs", "-m", "lora_helpers", *arguments)
    assert launch.finish() == 0, launch.written(0)[-2000:]
    mine, other = record_of(tmp_path / "run"), record_of(one)
    for row, wanted in zip(mine["log"], other["log"], strict=True):
        for name in {"loss", "eval_loss"} & row.keys():
            assert row[name] == pytest.approx(wanted[name], abs=LIMIT)
    assert mine["world_size"] == 2 and mine["resumed_from"]["world_size"] == 1
    assert launch.written(1) == "" and launch.written(0).count("resuming") == 1


def test_another_number_of_processes_is_a_warning_where_dropout_is_on(two, caplog):
    from lora_helpers.files.manifests import read_manifest
    from lora_helpers.training.resuming import Start, describe_resumption

    manifest = read_manifest(two[0] / "checkpoint-30")
    assert manifest["world_size"] == 2
    for dropout, warned in ((0.0, False), (0.05, True)):
        here = manifest | {"world_size": 1, "config": manifest["config"] | {"lora_dropout": dropout}}
        found = describe_resumption(Start(two[0] / "checkpoint-30", manifest), here)
        assert found["resumed_from"]["world_size"] == 2 and "device" not in caplog.text
        assert ("1 here, 2 there" in caplog.text and "dropout masks" in caplog.text) == warned
    on_gpu = manifest | {"environment": manifest["environment"] | {"device": "a GPU"}}
    found = describe_resumption(Start(two[0] / "checkpoint-30", manifest), on_gpu)
    assert found["resumed_from"]["device"] == manifest["environment"]["device"]
    assert f"device: a GPU here, {manifest['environment']['device']} there; rounding may differ" in caplog.text


def test_a_batch_that_cannot_be_shared_is_refused(tiny_config, tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("lora_helpers.training.arguments.this_process", lambda: SimpleNamespace(num_processes=2))
    model = SimpleNamespace(num_parameters=lambda: 0)
    parts = dict.fromkeys(("tokenizer", "train_rows", "validation_rows"))
    with pytest.raises(InputError, match="batch_size is 15, wanted a multiple of the 2 processes that share it"):
        make_arguments(Plan(config=tiny_config.replace(batch_size=15), output_dir=tmp_path, model=model, **parts))


@pytest.mark.parametrize(("error", "status"), [(InputError("wrong"), 2), (CheckFailed("damaged"), 1)])
def test_what_every_process_meets_is_said_by_the_one_that_leads(tiny_config, tmp_path, monkeypatch, error, status):
    def meet():
        with failures_in_one_sentence(tiny_config, tmp_path, Beginning()):
            raise error

    with pytest.raises(type(error), match=str(error)):
        meet()
    monkeypatch.setattr("lora_helpers.training.failures.leads", lambda: False)
    with pytest.raises(SystemExit) as caught:
        meet()
    assert caught.value.code == status


def test_an_error_ends_every_process_and_is_one_line(tiny_base, tmp_path):
    """The one that leads refuses the folder, which the other does not see."""
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    launch = Launch(tmp_path / "logs", "-m", "lora_helpers", *command(tiny_base, used))
    assert launch.finish() != 0
    said = launch.written(0).splitlines()
    assert len(said) == 1 and "holds files already" in said[0]
    assert "Traceback" not in launch.written(1) and "rror" not in launch.written(1)
    assert [path.name for path in used.iterdir()] == ["file"]


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
