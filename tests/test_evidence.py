"""`make evidence` in small: every profile is a part, a stopped one goes on, and no part loses another's result."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import islice

import pytest
from hub_repositories import SMALL, SMALL_PARAMETERS, build_base

from lora_helpers import bases, checkpoints, records
from lora_helpers.config import AG_NEWS, PROFILES, ROBERTA_BASE, get_profile
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.evidence import rebuild, report, study, tables
from lora_helpers.files.manifests import read_manifest
from lora_helpers.files.places import CHECKPOINTS
from lora_helpers.training.run import train

FEW = {
    "max_steps": 30, "eval_steps": 10, "save_steps": 10, "validation_size": 40, "batch_size": 4, "max_length": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def stand_ins(ag_news_dir, roberta_base_files, tmp_path_factory):
    """Folders in the place of roberta-base (small, random weights) and of AG News (few rows), as variables."""
    base, data = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("ag_news")
    build_base(base, roberta_base_files, **SMALL)
    for name, rows in (("train.csv", 400), ("test.csv", 100)):
        with (ag_news_dir / name).open(encoding="utf-8") as lines:  # a row a line in these files
            (data / name).write_text("".join(islice(lines, rows)), encoding="utf-8")
    return {"ROBERTA_BASE_DIR": str(base), "AG_NEWS_DIR": str(data)}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """checkpoints/, its runs/ and figures/ elsewhere."""
    for module in (rebuild, study, records):
        for name, folder in (
            ("CHECKPOINTS", tmp_path),
            ("RUNS", tmp_path / "runs"),
            ("FIGURES_FOLDER", tmp_path / "figures"),
        ):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, folder)
    monkeypatch.setattr(records, "EVIDENCE", tmp_path / "evidence.json")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["original", "roberta-base"])
def test_a_first_run_is_stopped_goes_on_and_becomes_the_committed_one(
    profile, stand_ins, folders, monkeypatch, caplog, one_thread
):
    import transformers

    for name, value in stand_ins.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(bases.PARAMETERS, ROBERTA_BASE, SMALL_PARAMETERS)
    monkeypatch.setattr(rebuild, "get_profile", lambda name: get_profile(name, **FEW))
    monkeypatch.setattr(rebuild, "LARGE_STATES", 0)
    stock, steps = transformers.Trainer.training_step, iter(range(1, 1000))

    def stop_at_25(*arguments, **named):
        if next(steps) == 25:
            raise KeyboardInterrupt
        return stock(*arguments, **named)

    monkeypatch.setattr(transformers.Trainer, "training_step", stop_at_25)
    with pytest.raises(KeyboardInterrupt, match="checkpoint-20"):
        rebuild.rebuild([profile])
    assert records.committed_runs() == []
    rebuild.rebuild([profile])
    assert next(steps) == 25 + 10 + 1 and "at step 20" in caplog.text  # ten steps more, not thirty
    target = folders / profile
    record = records.read_record(target)
    assert records.committed_runs() == [target] and not list((folders / "runs").glob("evidence-*"))
    assert record["test"]["examples"] == len(record["test"]["predictions"]) == 100
    assert record["config"]["dataset"] == AG_NEWS and record["environment"]["code_sha256"]
    assert {path.name.removeprefix(f"{profile}-") for path in (folders / "figures").iterdir()} >= {"loss.png"}

    first, *_ = found = checkpoints.list_checkpoints(target)
    assert [checkpoints.verify_checkpoint(folder).manifest["step"] for folder in found] == [10, 20, 30]
    assert ["optimizer.pt" in read_manifest(folder)["files"] for folder in found] == [False, True, False]
    for stripped in (first, found[-1]):
        assert not [path for path in stripped.iterdir() if re.match("optimizer|scheduler|rng_state", path.name)]
    with pytest.raises(CheckFailed, match=f"{first.name} holds no optimizer state"):
        train(get_profile(profile, **FEW), folders / "again", resume_from=first)
    ended = train(get_profile(profile, **FEW), folders / "again", resume_from=found[1])
    assert ended["checkpoints"]["30"] == record["checkpoints"]["30"]  # the same adapter, bit by bit

    card = (target / "README.md").read_text()
    assert "**Resuming** takes checkpoint-20.\n" in card and "{" not in card
    known = {profile: record | {"last": records.validation_rows(record)[-1]}}
    shown = [report.make_text(known, mark["name"], mark["form"]) for mark in report.MARK.finditer(card)]
    assert f"{record['test']['accuracy']:.4f}" in shown and not {tables.NO_RECORD, tables.NO_VALUE} & set(shown)


def test_it_is_said_whether_a_committed_run_ends_in_the_same_bits_when_it_goes_on(
    folders, tiny_base, monkeypatch, one_thread
):
    config = get_profile("mini", base_model=str(tiny_base), max_length=32, max_steps=4, eval_steps=2, save_steps=2)
    monkeypatch.setattr(rebuild, "get_profile", lambda _: config)
    train(config, folders / "mini")
    same = {"profile": "mini", "resumed_at": 2, "same_bits": True}
    record = records.read_record(folders / "runs" / "resumed-mini") if rebuild.resume_again("mini") else None
    record["environment"] = same["environment"] = {"code_sha256": "of when it was computed"}
    records.write_record(folders / "runs" / "resumed-mini", record)
    monkeypatch.setattr("lora_helpers.training.trainer.make_trainer", None)  # the second time nothing is trained
    assert rebuild.resume_again("mini") == same
    (folders / "mini" / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"other")
    assert rebuild.resume_again("mini") == same | {"same_bits": False}


def test_a_committed_run_is_replaced_whole_and_keeps_its_card(tmp_path):
    target, fresh = tmp_path / "mini", tmp_path / "runs" / "evidence-mini"
    for folder, step in ((target, 1), (fresh, 2)):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    (target / "README.md").write_text("a card written by hand\n")
    (fresh / ".lock").touch()
    rebuild._replace(target, fresh, "a first card")
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "checkpoint-2"]
    assert (target / "README.md").read_text() == "a card written by hand\n"
    assert not list((tmp_path / "runs").iterdir())


def test_every_profile_is_a_part_and_hours_are_asked_for_by_name(monkeypatch, folders):
    assert set(PROFILES) <= rebuild.PARTS.keys()
    ran = []
    monkeypatch.setattr(rebuild, "PARTS", {name: lambda name=name: ran.append(name) for name in rebuild.PARTS})
    rebuild.rebuild([])
    assert ran and not set(ran) & {*PROFILES, *rebuild.NAMED_ALONE, *rebuild.ON_BFLOAT16, *rebuild.ON_GPU}
    (folders / "mini").mkdir()
    (folders / "mini" / "run.json").write_text("{}")
    rebuild.rebuild([])
    assert set(ran) & set(PROFILES) == {"mini"}


def test_parts_that_are_named_by_strings_are_there():
    named = [part.args for part in rebuild.PARTS.values() if getattr(part, "func", None) is rebuild._load_and_run]
    assert len(named) > 5
    for module, function, *_ in named:
        assert callable(getattr(import_module(f"lora_helpers.evidence.{module}"), function))


def test_parts_that_end_together_lose_no_result(folders, monkeypatch):
    stock = records.read_evidence

    def slow_read():
        found = stock()
        time.sleep(0.02)
        return found

    monkeypatch.setattr(records, "read_evidence", slow_read)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: records.write_evidence(f"part-{i}", {"number": i}), range(8)))
    assert stock() == {f"part-{i}": {"number": i} for i in range(8)}


def test_a_part_is_recorded_with_the_code_that_computed_it_beside_what_came_meanwhile(folders, monkeypatch):
    def slow_part():
        records.write_evidence("other", {"value": 2})  # another process, while this one computes
        monkeypatch.setattr(rebuild, "environment", lambda: {"code_sha256": "after"})
        return {"value": 1}

    monkeypatch.setattr(rebuild, "environment", lambda: {"code_sha256": "before"})
    of_a_run = {"value": 3, "environment": {"code_sha256": "of the run, finished before"}}
    monkeypatch.setattr(rebuild, "PARTS", {"slow": slow_part, "read": lambda: of_a_run})
    rebuild.rebuild(["slow", "read"])
    assert records.read_evidence() == {
        "read": of_a_run,
        "other": {"value": 2},
        "slow": {"value": 1, "environment": {"code_sha256": "before"}},
    }


def test_the_rate_is_chosen_by_validation_loss_in_folders_of_fixed_names(folders, monkeypatch):
    losses = {5e-4: 0.5, 1e-3: 0.4, 2e-3: 0.6}
    trained = []

    def fake_train(config, run_dir, *, resume):
        ends = config.max_steps, config.eval_steps, config.save_steps
        trained.append((run_dir.name, resume, config.warmup_steps, *ends))
        loss = losses[config.learning_rate]
        return {
            "config": config.to_dict(),
            "log": [{"eval_loss": loss, "eval_accuracy": 1 - loss, "step": 300}],
            "timing": {"seconds": 9.0},
            "environment": {"code_sha256": "a" * 64, "code_committed": True},
        }

    monkeypatch.setattr(study, "train", fake_train)
    found = study.choose_rate()
    ends = "eval_steps=300{}-max_steps=300-save_steps=300-warmup_steps=30"
    names = [f"mpnet-base-{ends}".format(rate) for rate in ("-learning_rate=0.0005", "-learning_rate=0.001", "")]
    assert trained == [(name, True, 30, 300, 300, 300) for name in names]
    assert found["learning_rate"] == 1e-3
    assert [row["validation_loss"] for row in found["runs"]] == list(losses.values())
    assert all(row["seconds"] == 9.0 and row["code"] == "code aaaaaaaaaa" for row in found["runs"])


def test_a_study_pairs_its_arms_by_seed(folders, monkeypatch):
    def fake_train(config, run_dir, *, resume):
        accuracy = 0.9 + config.seed / 1000 - (0.01 if config.batch_order == "random" else 0)
        return {
            "config": config.to_dict(),
            "log": [{"eval_loss": 1.0, "eval_accuracy": accuracy, "step": 1}],
            "timing": {"seconds": 1.0},
            "environment": {"code_sha256": "a" * 64, "code_committed": False},
        }

    monkeypatch.setattr(study, "train", fake_train)
    arms = {"ours": {}, "random-order": {"batch_order": "random"}}
    found = study.run_study(arms, seeds=(1, 2, 3))
    made = [(run["seed"], run["code"]) for run in found["variants"]["ours"]["runs"]]
    assert made == [(seed, "code aaaaaaaaaa, not committed") for seed in (1, 2, 3)]
    assert found["variants"]["random-order"]["difference"] == pytest.approx(0.01)
    assert found["variants"]["random-order"]["interval"] == pytest.approx([0.01, 0.01])
    ours = found["variants"]["ours"]
    assert (ours["mean"], ours["std"]) == pytest.approx((0.902, 0.001))  # n - 1: with n it would be 0.0008


def test_arithmetic_is_compared_with_the_same_seeds_that_a_gpu_trained(monkeypatch):
    def run_seeds(profile, seeds, **fields):
        assert fields == {"tested": False, "eval_steps": 2400, "save_steps": 2400}
        row = {"arithmetic": arithmetic[-1]}
        return [row | {"seed": seed, "validation_accuracy": 0.92 + (seed - 42) / 100} for seed in seeds]

    arithmetic = ["float32"]
    variants = {"on query": {"validation_accuracy": [0.91, 0.92, 0.93, 0.94, 0.95]}, "on key": {}}
    monkeypatch.setattr(study, "run_seeds", run_seeds)
    monkeypatch.setattr(study, "read_evidence", lambda: {"places": {"variants": variants}})
    found = rebuild.PARTS["arithmetic"]()
    assert found["variants"]["float32"]["mean"] == pytest.approx(0.94)
    assert found["variants"]["bfloat16"]["difference"] == pytest.approx(0.01)  # float32 is ahead
    arithmetic.append("bfloat16 autocast")
    with pytest.raises(InputError, match="the runs here are in bfloat16 autocast; wanted float32"):
        rebuild.PARTS["arithmetic"]()


def test_losses_are_compared_on_bases_that_lack_one_and_paired_by_the_seed_of_both(folders, monkeypatch):
    pretrained, tuned = {}, []

    def fake_pretrain(config, folder, *, resume):
        pretrained[str(folder)] = (config.words_weight, config.contrast_weight, config.seed, config.max_steps, resume)
        return {"log": [{"eval_masked_loss": 3.5}, {"eval_masked_loss": config.words_weight + config.seed}]}

    def fake_seeds(profile, seeds, *, tested, base_model, **ends):
        tuned.append((base_model, seeds))
        words, contrast, seed, *_ = pretrained[base_model]
        assert (profile, seeds, tested, ends) == ("mini-agnews", (seed,), False, study.at_its_end(get_profile(profile)))
        return [{"validation_accuracy": 0.9 + words / 100 + contrast / 1000 + seed / 10_000}]

    monkeypatch.setattr("lora_helpers.pretraining.run.pretrain", fake_pretrain)
    monkeypatch.setattr(study, "run_seeds", fake_seeds)
    found = rebuild.PARTS["losses"]()
    assert [key for key, _ in tuned] == list(pretrained) and len(pretrained) == 4 * 3  # every base has its own folder
    assert {each[:2] for each in pretrained.values()} == {(0.5, 0.5), (0.0, 0.5), (0.5, 0.0), (0.0, 0.0)}
    assert {each[2:] for each in pretrained.values()} == {(seed, 4000, True) for seed in (42, 43, 44)}
    assert found["masked_loss"]["without words"] == [42.0, 43.0, 44.0] and found["steps"] == 4000
    variants = found["variants"]
    assert variants["without words"]["difference"] == pytest.approx(0.005)
    assert variants["without halves"]["difference"] == pytest.approx(0.0005)
    assert variants["masked tokens alone"]["difference"] == pytest.approx(0.0055)


def test_seeds_have_a_mean_and_a_standard_deviation(monkeypatch):
    rows = [{"test_accuracy": test, "validation_accuracy": other} for test, other in ((0.80, 0.7), (0.84, 0.9))]
    monkeypatch.setattr(study, "run_seeds", lambda *asked, **fields: rows if asked == ("mini", (42, 43, 44)) else [])
    assert study.repeat_seeds("mini") == {
        "runs": rows,
        "test_mean": pytest.approx(0.82),
        "test_std": pytest.approx(0.02 * 2**0.5),
    }


def test_the_committed_run_is_a_seed_of_its_profile_alone(monkeypatch):
    made = []

    def fake(config, folder):
        made.append((config.seed, config.shuffled_labels, folder.name))
        return records.read_record(CHECKPOINTS / "mini")

    monkeypatch.setattr(study, "train_and_test", fake)
    study.run_seeds("mini", (42, 43))
    study.run_seeds("mini", (42,), shuffled_labels=True)
    assert made == [(43, False, "mini-seed=43"), (42, True, "mini-shuffled_labels=True")]


def test_the_last_checkpoint_is_scored_and_the_last_evaluation_told(folders, monkeypatch):
    opened, environment = [], {"code_sha256": "a" * 64, "code_committed": True}
    log = [{"eval_loss": 1.0, "eval_accuracy": accuracy, "step": step} for step, accuracy in ((10, 0.95), (20, 0.90))]
    record = {
        "config": {"seed": 43, "learning_rate": 1e-3},
        "log": log,
        "timing": {"seconds": 1.0},
        "environment": environment,
    }
    monkeypatch.setattr(study, "list_checkpoints", lambda folder: [folder / "checkpoint-10", folder / "checkpoint-20"])
    monkeypatch.setattr(study.Classifier, "from_checkpoint", lambda path, **_: opened.append(path.name))
    monkeypatch.setattr(study, "evaluate_classifier", lambda *_: {"accuracy": 0.8})
    monkeypatch.setattr(study, "write_record", lambda *_: None)
    monkeypatch.setattr(study, "train", lambda *_, **__: dict(record))
    assert study.train_and_test(get_profile("mini"), folders)["test"]["accuracy"] == 0.8
    study.load_committed("mini")
    assert opened == ["checkpoint-20"] * 2
    assert [row["validation_accuracy"] for row in study.run_seeds("mini", (43,), tested=False)] == [0.90]


def test_a_study_keeps_its_runs_by_arm_and_tests_them_if_asked(monkeypatch):
    asked, tests = [], []

    def fake_seeds(profile, seeds, *, tested, **fields):
        asked.append(get_profile(profile, **fields))
        tests.append(tested)
        return [{"seed": seed, "validation_accuracy": 0.9 + seed / 1000} for seed in seeds]

    monkeypatch.setattr(study, "run_seeds", fake_seeds)
    arms = {"ours": {}, "batches of 32": {"batch_size": 32}}
    for tested in (True, False):
        found = study.run_study(arms, profile="mpnet-base", seeds=(1, 2), tested=tested)["variants"]
        assert [[row["seed"] for row in arm["runs"]] for arm in found.values()] == [[1, 2]] * 2
        assert found["ours"]["validation_accuracy"] == [0.901, 0.902]
    ends = {"eval_steps": (2400, 250), "save_steps": (2400, 500)}
    changed = [each.differences(get_profile("mpnet-base").to_dict()) for each in asked]
    assert changed == [ends, ends | {"batch_size": (32, 16)}] * 2 and tests == [True, True, False, False]


def test_a_row_of_a_seed_says_how_many_labels_it_saw(monkeypatch):
    record = records.read_record(CHECKPOINTS / "mini")
    its = lambda config, _: record | {"config": config.to_dict()}  # noqa: E731
    monkeypatch.setattr(study, "train_and_test", its)
    seen = [study.run_seeds("mini", (43,), max_steps=steps)[0]["labelled_rows"] for steps in (20, 300)]
    assert seen == [320, 840] and record["data"]["rows"]["train"] == 840
