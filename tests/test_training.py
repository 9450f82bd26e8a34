import json
import math
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from lora_helpers.bases import load_base
from lora_helpers.batching import LengthGroupedSampler, padding_costs
from lora_helpers.checkpoints import list_checkpoints, load_checkpoint
from lora_helpers.data import load_ag_news, tokenize
from lora_helpers.environment import trains_on_gpu
from lora_helpers.errors import CheckFailed, InputError, Stopped
from lora_helpers.files.manifests import hash_file, read_manifest, seal
from lora_helpers.files.places import MINI_NEWS
from lora_helpers.processes import this_process
from lora_helpers.records import RunRecord, read_record, training_rows, validation_rows
from lora_helpers.training import arguments, failures, trainer
from lora_helpers.training.arguments import BFLOAT16, FLOAT32, Plan, choose_arithmetic, make_arguments
from lora_helpers.training.run import _claimed as claimed
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


def test_the_log_begins_with_an_accuracy_ends_with_the_last_step_and_names_the_best(unbroken):
    _, run_dir, record = unbroken
    rows = validation_rows(record)
    assert rows[0]["step"] == 10 and 0 <= rows[0]["eval_accuracy"] <= 1
    assert rows[-1]["step"] == 150
    assert list(record["checkpoints"]) == ["70", "140", "150"]
    assert record == read_record(run_dir) and isinstance(record, RunRecord)
    best = max(record["checkpoints"].values(), key=lambda c: c["validation_accuracy"])
    assert record["checkpoints"][str(record["best_saved_step"])] == best
    highest = max(row["eval_accuracy"] for row in rows)
    assert record["best_evaluated_step"] == next(row["step"] for row in rows if row["eval_accuracy"] == highest)


def test_padding_is_that_of_the_run_s_own_batches(tiny_config, tmp_path):
    config = tiny_config.replace(max_length=64, max_steps=2, eval_steps=2, save_steps=2, warmup_steps=0)
    record = train(config, tmp_path / "run")
    rows = tokenize(load_ag_news(config).train, load_base(config.base_model, None)[1], config.max_length)
    assert record["padding"] == padding_costs(rows["length"][:], config.batch_size, seed=config.seed)


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
        assert json.loads((folder / "trainer_state.json").read_text())["total_flos"] == 0  # counting takes time
        assert set(json.loads((folder / "manifest.json").read_text())["files"]) == names - {"manifest.json"}


@pytest.mark.slow
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


@pytest.mark.slow
def test_another_seed_gives_other_bits(unbroken, tmp_path):
    config, run_dir, _ = unbroken
    train(config.replace(seed=43), tmp_path / "other")
    assert last_bytes(tmp_path / "other") != last_bytes(run_dir)


@pytest.mark.slow
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


def test_a_run_killed_before_its_first_checkpoint_can_be_begun_again(tiny_config, tmp_path, caplog):
    config = tiny_config.replace(max_steps=4, eval_steps=2, save_steps=2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # all that is left of it
    train(config, tmp_path / "run")
    with caplog.at_level("INFO", logger="lora_helpers"):
        train(config, tmp_path / "elsewhere", resume=True)  # a slip of the finger, perhaps
    assert "elsewhere holds no checkpoint to go on from: step 0" in caplog.text


def test_a_control_on_a_random_base_goes_on_and_is_not_trained_twice(tiny_config, tmp_path, monkeypatch):
    config, run_dir = tiny_config.replace(max_steps=4, eval_steps=2, save_steps=2, random_base=True), tmp_path / "run"
    whole = train(config, run_dir)
    (run_dir / "run.json").unlink()
    shutil.rmtree(run_dir / "checkpoint-4")
    again = train(config, run_dir, resume=True)
    assert again["resumed_from"]["checkpoint"].endswith("checkpoint-2")
    assert again["checkpoints"] == whole["checkpoints"]
    monkeypatch.setattr("lora_helpers.training.trainer.make_trainer", None)
    assert train(config, run_dir, resume=True) == again


def test_a_finished_run_needs_no_optimizer_state_to_be_left_as_it_is(tiny_config, tmp_path, monkeypatch):
    config, run_dir = tiny_config.replace(max_steps=4, eval_steps=2, save_steps=2), tmp_path / "run"
    record = train(config, run_dir)
    manifest = read_manifest(run_dir / "checkpoint-4")
    (run_dir / "checkpoint-4" / "optimizer.pt").unlink()
    seal(run_dir / "checkpoint-4", {name: value for name, value in manifest.items() if name != "files"})
    monkeypatch.setattr("lora_helpers.training.trainer.make_trainer", None)
    assert train(config, run_dir, resume=True) == record


@pytest.mark.parametrize(("system", "quoted"), [("posix", "'a b/it'"), ("nt", '"a b/it"')])
def test_the_command_to_go_on_is_quoted_as_the_shell_wants_it(tiny_config, monkeypatch, system, quoted):
    monkeypatch.setattr(failures, "os", SimpleNamespace(name=system))
    assert quoted in failures._command(tiny_config, {"output_dir": "a b/it", "resume": True})


def test_a_run_is_never_overwritten(unbroken):
    config, run_dir, _ = unbroken
    with pytest.raises(InputError, match="holds files already"):
        train(config, run_dir)


def test_what_another_program_left_is_not_resumed_and_not_touched(tiny_config, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "checkpoint-2").mkdir(parents=True)
    for name in ("run.json", "checkpoint-2/trainer_state.json", "checkpoint-2/notes.txt"):
        (theirs / name).write_text("{}")
    with pytest.raises(InputError, match="holds files, but no run that was begun here; name another folder"):
        train(tiny_config.replace(max_steps=2, eval_steps=2, save_steps=2, warmup_steps=0), theirs, resume=True)
    here = {path.relative_to(theirs).as_posix(): path.read_text() for path in theirs.rglob("*") if path.is_file()}
    assert here == dict.fromkeys(("run.json", "checkpoint-2/trainer_state.json", "checkpoint-2/notes.txt"), "{}")


def test_a_run_that_ended_in_its_first_checkpoint_begins_again_by_the_same_command(tmp_path):
    """A warm start or a seed with `resume_from` too, which `--resume` would forget."""
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path, resume=False):
        (tmp_path / "checkpoint-2").mkdir()
        raise KeyboardInterrupt
    with claimed(tmp_path, resume=False):
        (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds files already"), claimed(tmp_path, resume=False):
        pass
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "checkpoint-2" / "manifest.json").touch()  # whole now
    with pytest.raises(InputError, match="holds files already"), claimed(tmp_path, resume=False):
        pass


def test_a_finished_checkpoint_is_copied_whole_or_not_at_all(unbroken, tmp_path, monkeypatch):
    config, run_dir, _ = unbroken

    def copy_a_part(source, target):
        Path(shutil.copytree(source, target), "optimizer.pt").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "lora_helpers.training.resuming.shutil", SimpleNamespace(rmtree=shutil.rmtree, copytree=copy_a_part)
    )
    with pytest.raises(Stopped, match="last whole checkpoint: none"):
        train(config, tmp_path / "run", resume_from=run_dir / "checkpoint-150")
    monkeypatch.undo()
    record = train(config, tmp_path / "run", resume_from=run_dir / "checkpoint-150")
    assert record["checkpoints"].keys() == {"150"} and not list((tmp_path / "run").glob("*.partial"))


def test_a_run_that_was_begun_here_is_known_although_windows_removed_its_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path, resume=False):
        (tmp_path / "checkpoint-2").mkdir()  # it was being written
        (tmp_path / ".lock").unlink()
        raise KeyboardInterrupt
    with claimed(tmp_path, resume=True):
        assert (tmp_path / "checkpoint-2").is_dir()


def test_resuming_with_another_configuration_names_every_difference(unbroken, tmp_path):
    config, run_dir, _ = unbroken
    changed = config.replace(learning_rate=3e-3, lora_dropout=0.0)
    with pytest.raises(InputError, match=r"learning_rate is 0\.003 here, 0\.001 there") as caught:
        train(changed, tmp_path / "new", resume_from=run_dir / "checkpoint-70")
    assert "lora_dropout" in str(caught.value) and "learning_rate" in str(caught.value)


@pytest.mark.slow
def test_resuming_on_other_data_is_refused_unless_allowed(unbroken, tmp_path):
    config, run_dir, _ = unbroken
    start, splits = tmp_path / "run" / "checkpoint-140", load_ag_news(config)
    shutil.copytree(run_dir / "checkpoint-140", start)
    manifest = read_manifest(start)
    manifest["seconds"] = 1e6
    manifest["config"] |= {"report_to": "tensorboard", "eval_batch_size": 7}  # which may differ
    for split in ("validation", "train"):
        manifest["data"]["sha256"] |= splits.fingerprints() | {split: "0" * 64}
        seal(start, manifest)
        with pytest.raises(InputError, match="trained on other data"):
            train(config, tmp_path / "new", resume_from=start)
    elsewhere = config.replace(dataset=str(shutil.copytree(MINI_NEWS, tmp_path / "mine")))
    with pytest.raises(InputError, match="another configuration: dataset is .*mine' here, 'bundled' there"):
        train(elsewhere, tmp_path / "new", resume_from=start)
    record = train(elsewhere, tmp_path / "allowed", resume_from=start, allow_other_data=True)
    assert record["resumed_from"]["other_data"] is True
    assert record["timing"]["seconds"] > 1e6  # those before it was resumed included
    (tmp_path / "allowed" / "run.json").unlink()  # as if it had been stopped at its end
    assert train(elsewhere, tmp_path / "allowed", resume=True)["resumed_from"]["other_data"] is True


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tiny_config, tmp_path, monkeypatch):
    config = tiny_config.replace(learning_rate=1e38, max_grad_norm=1e38, warmup_steps=0)
    with pytest.raises(CheckFailed, match="at step 2;"):
        train(config, tmp_path / "run")
    monkeypatch.setattr(trainer.FineTuningTrainer, "training_step", Trainer.training_step)  # as on a GPU: the log tells
    monkeypatch.setattr(trainer, "SHOWN", {"loss": "loss"})  # before the evaluation does
    with pytest.raises(CheckFailed, match="at step 10;"):
        train(config, tmp_path / "run")


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
    assert next_run_dir("mini", tmp_path).name == "mini-1" and (tmp_path / "mini-1").is_dir()
    (tmp_path / "mini-9").mkdir()
    (tmp_path / "mini-agnews-12").mkdir()
    assert next_run_dir("mini", tmp_path).name == "mini-10"
    assert next_run_dir("mini-agnews", tmp_path).name == "mini-agnews-13"


def test_runs_that_start_together_never_get_the_same_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: next_run_dir("mini", tmp_path / "runs"), range(64)))
    assert {folder.name for folder in folders} == {f"mini-{number}" for number in range(1, 65)}


def test_a_folder_made_for_a_run_that_could_not_begin_is_removed(tiny_config, tmp_path):
    run_dir = next_run_dir("mini", tmp_path)
    with pytest.raises(InputError, match="max_length is 100"):
        train(tiny_config.replace(max_length=100), run_dir)
    assert not run_dir.exists() and next_run_dir("mini", tmp_path) == run_dir


def test_the_tokenizer_stands_beside_the_last_checkpoint_alone(unbroken):
    _, run_dir, _ = unbroken
    with_tokenizer = [folder.name for folder in list_checkpoints(run_dir) if list(folder.glob("tokenizer*"))]
    assert with_tokenizer == ["checkpoint-150"]


@pytest.mark.slow
def test_a_warm_start_takes_the_weights_alone(unbroken, tmp_path, monkeypatch, caplog):
    """A new optimizer and schedule: the first loss is what the checkpoint's last evaluation leads one to expect."""
    config, run_dir, _ = unbroken
    source, seen = run_dir / "checkpoint-150", {}
    stock = trainer.make_trainer

    def make_trainer(plan):
        seen.update({name: p.detach().clone() for name, p in plan.model.named_parameters() if p.requires_grad})
        return stock(plan)

    monkeypatch.setattr(trainer, "make_trainer", make_trainer)
    longer = config.replace(max_steps=20, save_steps=10, learning_rate=2e-3)
    source = Path(shutil.copytree(source, tmp_path / source.name))
    (source / "notes.txt").touch()
    record = train(longer, tmp_path / "warm", warm_start=source)
    theirs = dict(load_checkpoint(source)[0].named_parameters())
    assert seen and all(torch.equal(p, theirs[name]) for name, p in seen.items())
    assert any("lora_B" in name and p.any() for name, p in seen.items())
    assert "not in the manifest, and not read: notes.txt" in caplog.text
    assert record["log"][0]["step"] == 10 and "resumed_from" not in record
    sha256 = hash_file(source / "adapter_model.safetensors")
    assert record["warm_started_from"] == {"checkpoint": "checkpoint-150", "adapter_sha256": sha256}
    manifest = read_manifest(tmp_path / "warm" / "checkpoint-10")
    assert manifest["warm_started_from"] == record["warm_started_from"]
    states = torch.load(tmp_path / "warm" / "checkpoint-10" / "optimizer.pt", weights_only=True)["state"]
    assert {state["step"].item() for state in states.values()} == {10.0}
    shutil.rmtree(tmp_path / "warm" / "checkpoint-20")
    (tmp_path / "warm" / "run.json").unlink()
    again = train(longer, tmp_path / "warm", resume=True)  # and it still says where it came from
    assert again["warm_started_from"] == record["warm_started_from"] and facts(again) == facts(record)


def test_a_warm_start_is_offered_where_the_length_alone_differs(unbroken, tmp_path):
    config, run_dir, _ = unbroken
    start = run_dir / "checkpoint-140"
    with pytest.raises(
        InputError, match="checkpoint-140 .*max_steps is 300 here, 150 there.*--warm-start with this checkpoint"
    ):
        train(config.replace(max_steps=300), tmp_path / "new", resume_from=start)
    with pytest.raises(InputError, match="max_steps.*warmup_steps.*--warm-start"):
        train(config.replace(max_steps=300, warmup_steps=30), tmp_path / "new", resume_from=start)
    with pytest.raises(InputError, match="lora_rank") as caught:
        train(config.replace(max_steps=300, lora_rank=4), tmp_path / "new", resume_from=start)
    assert "--warm-start" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 4}, "other adapters"),
        ({"lora_alpha": 8.0}, "other adapters"),
        ({"random_base": True}, "base model"),
    ],
)
def test_a_warm_start_with_other_adapters_or_base_is_refused(unbroken, tmp_path, changes, message):
    config, run_dir, _ = unbroken
    with pytest.raises(InputError, match=message):
        train(config.replace(**changes), tmp_path / "new", warm_start=run_dir / "checkpoint-150")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("two", list(combinations(("resume", "resume_from", "warm_start"), 2)), ids="-".join)
def test_the_ways_to_begin_exclude_each_other(tiny_config, tmp_path, two):
    with pytest.raises(InputError, match="give one of them"):
        train(tiny_config, tmp_path / "run", **dict.fromkeys(two, "checkpoint-70"))


LARGE_MODEL, SMALL_MODEL = (SimpleNamespace(num_parameters=lambda n=n: n) for n in (110_000_000, 7_400_000))


@pytest.mark.skipif(trains_on_gpu(), reason="what a CPU has matters where there is no GPU")
@pytest.mark.parametrize(
    ("has", "model", "mixed", "wanted"),
    [
        ({"avx512_bf16": True}, LARGE_MODEL, True, BFLOAT16),
        ({"amx_bf16": True}, LARGE_MODEL, True, BFLOAT16),
        ({"avx512_bf16": True}, LARGE_MODEL, False, FLOAT32),  # nobody asked for it
        ({"avx512_bf16": True}, SMALL_MODEL, True, FLOAT32),
        ({"avx2": True, "avx512_bf16": False}, LARGE_MODEL, True, FLOAT32),
    ],
)
def test_mixed_precision_is_bfloat16_where_the_processor_has_it(tiny_config, monkeypatch, has, model, mixed, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert choose_arithmetic(tiny_config.replace(mixed_precision=mixed), model) == wanted


@pytest.fixture
def in_bfloat16(monkeypatch):
    """As on a processor that computes in bfloat16, even for a base this small; torch emulates what is missing."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(arguments, "LARGE", 0)


@pytest.mark.slow
@pytest.mark.skipif(trains_on_gpu(), reason="test_gpu does this on a GPU")
def test_a_run_in_bfloat16_keeps_float32_weights_and_resumes_exactly(tiny_config, tmp_path, in_bfloat16, monkeypatch):
    config = tiny_config.replace(max_steps=12, eval_steps=4, save_steps=8)
    in_float32 = train(config.replace(mixed_precision=False), tmp_path / "float32")
    seen, stock = set(), trainer.FineTuningTrainer.compute_loss

    def compute_loss(self, model, inputs, *more, **named):
        found = stock(self, model, inputs, *more, **named)
        loss = found[0] if isinstance(found, tuple) else found
        states = [t for state in self.optimizer.state.values() for t in state.values() if t.ndim]
        seen.update(t.dtype for t in [loss, *states, *(p for p in model.parameters() if p.requires_grad)])
        return found

    monkeypatch.setattr(trainer.FineTuningTrainer, "compute_loss", compute_loss)
    record = train(config, tmp_path / "run")
    assert seen == {torch.float32}
    assert record["arithmetic"] == BFLOAT16 and in_float32["arithmetic"] == FLOAT32
    assert read_manifest(tmp_path / "run" / "checkpoint-8")["arithmetic"] == BFLOAT16
    assert facts(record) != facts(in_float32)  # it did compute otherwise
    losses = [[row["eval_loss"] for row in validation_rows(each)] for each in (record, in_float32)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    again = train(config, tmp_path / "resumed", resume_from=tmp_path / "run" / "checkpoint-8")
    assert last_bytes(tmp_path / "resumed") == last_bytes(tmp_path / "run") and facts(again) == facts(record)
    assert again["resumed_from"]["arithmetic"] == BFLOAT16


@pytest.mark.slow
@pytest.mark.skipif(trains_on_gpu(), reason="a GPU has one arithmetic for both")
def test_resuming_under_another_arithmetic_is_said_and_recorded(unbroken, tmp_path, in_bfloat16, caplog):
    config, run_dir, _ = unbroken
    with caplog.at_level("WARNING", logger="lora_helpers"):
        record = train(config, tmp_path / "run", resume_from=run_dir / "checkpoint-140")
    assert "arithmetic: bfloat16 autocast here, float32 there" in caplog.text
    assert record["arithmetic"] == BFLOAT16 and record["resumed_from"]["arithmetic"] == FLOAT32


def plan_of(config, folder):
    parts = dict.fromkeys(("tokenizer", "train_rows", "validation_rows"))
    return Plan(config=config, output_dir=folder, model=SMALL_MODEL, **parts)


def test_training_keeps_to_the_cpu_where_there_is_no_cuda(tiny_config, tmp_path, monkeypatch):
    """Apple's GPU is an accelerator to torch, but no checkpoint holds its random state."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    made = make_arguments(plan_of(tiny_config, tmp_path))
    assert made.use_cpu and made.device.type == "cpu" and this_process().device.type == "cpu"


def test_the_trainer_orders_rows_as_configured_and_smooths_the_validation_loss_too(tiny_config, tmp_path):
    config = tiny_config.replace(label_smoothing_factor=0.2, max_steps=10, eval_steps=10, save_steps=10)
    made, stock = [], trainer.make_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "make_trainer", lambda plan: made.append(stock(plan)) or made[0])
        logged = validation_rows(train(config, tmp_path / "run"))[-1]["eval_loss"]
    order = {"order": config.batch_order, "seed": config.seed}
    assert list(made[0].sampler) == list(LengthGroupedSampler(made[0].sampler.lengths, config.batch_size, **order))
    found = made[0].predict(made[0].eval_dataset)
    logits, labels = torch.from_numpy(found.predictions), torch.from_numpy(found.label_ids)
    smoothed, plain = (torch.nn.functional.cross_entropy(logits, labels, label_smoothing=s) for s in (0.2, 0.0))
    assert logged == pytest.approx(smoothed.item(), abs=1e-5) and abs(smoothed - plain) > 1e-3


def test_the_arguments_take_every_field_that_transformers_calls_the_same(tiny_config, tmp_path):
    unusual = {
        "max_steps": 12, "eval_steps": 3, "save_steps": 6, "learning_rate": 3e-4, "lr_scheduler_type": "cosine",
        "warmup_steps": 2, "weight_decay": 0.02, "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-7,
        "max_grad_norm": 0.5, "label_smoothing_factor": 0.1, "seed": 7,
    }  # fmt: skip
    names = {field.name for field in fields(tiny_config)} & {field.name for field in fields(TrainingArguments)}
    assert names == unusual.keys() | {"report_to"}
    changed = tiny_config.replace(**unusual, batch_size=5, eval_batch_size=7, mixed_precision=False)
    made = make_arguments(plan_of(changed, tmp_path))
    assert {name: getattr(made, name) for name in unusual} == unusual
    assert (made.per_device_train_batch_size, made.per_device_eval_batch_size, made.logging_steps) == (5, 7, 3)
    with pytest.raises(InputError, match="report_to is 'tensorbord': .*; install the tracker, or use none"):
        make_arguments(plan_of(tiny_config.replace(report_to="tensorbord"), tmp_path))


def test_norms_follow_the_formula(unbroken):
    config, run_dir, record = unbroken
    model, _, _ = load_checkpoint(list_checkpoints(run_dir)[-1])
    state = model.state_dict()
    for name, found in record["lora_norms"].items():
        A, B = (state[f"base_model.model.{name}.lora_{m}.default.weight"] for m in "AB")
        by_hand = config.lora_alpha / config.lora_rank * math.sqrt(((B @ A) ** 2).sum().item())
        assert found["norm"] == pytest.approx(by_hand, rel=1e-4) and found["norm"] > 0
        W = state[f"base_model.model.{name}.base_layer.weight"]
        assert found["relative"] == pytest.approx(by_hand / math.sqrt((W**2).sum().item()), rel=1e-4)
        first, second = found["singular_values"]  # of a matrix of rank 2: their squares add up to the norm's
        assert first > second > 0 and math.hypot(first, second) == pytest.approx(by_hand, rel=1e-4)
        squares = (W.T @ W).double()  # its eigenvalues are the squares of W's singular values
        assert found["largest_of_W"] ** 2 == pytest.approx(torch.linalg.eigvalsh(squares)[-1].item(), rel=1e-4)


def test_a_last_step_off_the_beat_is_logged_and_the_bar_ends_where_the_run_does(tiny_config, tmp_path, monkeypatch):
    config, made, stock = tiny_config.replace(max_steps=5, eval_steps=2, save_steps=4), [], trainer.make_trainer
    monkeypatch.setattr(trainer, "make_trainer", lambda plan: made.append(stock(plan)) or made[-1])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    record = train(config, tmp_path / "run")
    assert (
        [row["step"] for row in training_rows(record)] == [row["step"] for row in validation_rows(record)] == [2, 4, 5]
    )
    train(config, tmp_path / "further", resume_from=tmp_path / "run" / "checkpoint-4")
    assert [each.run.bar.n for each in made] == [5, 5]


def test_a_checkpoint_needs_room_for_each_trained_weight_and_its_two_moments(tiny_config, tmp_path, monkeypatch):
    model = torch.nn.Linear(2**20, 1, bias=False)
    model.register_parameter("frozen", torch.nn.Parameter(torch.zeros(2**20), requires_grad=False))
    monkeypatch.setattr(trainer.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    with pytest.raises(OSError, match=r"1\.0 MiB are free, a checkpoint needs 16\.0 MiB"):
        trainer.require_room(SimpleNamespace(model=model, output_dir=tmp_path))


def test_a_warm_up_that_outlasts_the_run_is_said(tiny_config, tmp_path, caplog):
    """--max-steps alone, with the warm-up of a profile that trains for longer."""
    config = tiny_config.replace(max_steps=4, eval_steps=2, save_steps=2)
    train(config, tmp_path / "short")
    assert (
        "warmup_steps is 5, max_steps 4: the run ends while the learning rate rises; lower warmup_steps" in caplog.text
    )
    train(config.replace(warmup_steps=4), tmp_path / "just")
    assert "warmup_steps is 4, max_steps 4" in caplog.text
    caplog.clear()
    train(config.replace(warmup_steps=3), tmp_path / "enough")
    assert "rises" not in caplog.text


def test_other_data_are_allowed_only_where_something_is_resumed(tiny_config, tmp_path):
    with pytest.raises(InputError, match="allow_other_data: without effect in a run that resumes nothing"):
        train(tiny_config, tmp_path / "run", allow_other_data=True)
