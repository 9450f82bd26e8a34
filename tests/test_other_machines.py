"""What other machines do, as far as it can be played on this one: GPUs that are no use, no memory left, no network."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lora_helpers import arithmetic, environment
from lora_helpers.arithmetic import find_device, set_precision
from lora_helpers.bases import load_base
from lora_helpers.config import get_profile
from lora_helpers.errors import InputError
from lora_helpers.files import hub
from lora_helpers.training import arguments, resuming, run, trainer
from lora_helpers.training.failures import failures_in_one_sentence
from lora_helpers.training.resuming import Beginning


@pytest.fixture
def old_card(monkeypatch):
    """A card that torch sees and has no kernels for; what it answers is asked for anew."""
    environment.find_cuda_fault.cache_clear()
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))

    def refuse(*_, **named):
        raise torch.AcceleratorError("no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "zeros", refuse)
    yield
    environment.find_cuda_fault.cache_clear()


def test_a_card_that_torch_was_not_built_for_is_left_alone_and_named(old_card, monkeypatch, caplog):
    monkeypatch.delenv("PROFILE", raising=False)
    assert environment.best_device() == torch.device("cpu") and not environment.trains_on_gpu()
    name, why = environment.choose_profile()
    assert [line.getMessage()[:41] for line in caplog.records] == ["the GPU is not used: a trial sum failed ("]
    assert name == "mini" and "cannot compute on it (no kernel image" in why and "\n" not in why


def test_a_card_that_torch_does_not_see_is_named_too(monkeypatch):
    monkeypatch.delenv("PROFILE", raising=False)
    monkeypatch.setattr(environment, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment.shutil, "which", {"nvidia-smi": "/usr/bin/nvidia-smi"}.get)
    assert "an NVIDIA GPU seems to be here" in environment.choose_profile()[1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert "no GPU" in environment.choose_profile()[1]


@pytest.mark.parametrize(("told", "wanted"), [("false", True), ("true", False)])
def test_accelerate_may_be_told_to_keep_to_the_cpu(told, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(environment, "find_cuda_fault", lambda: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", told)
    assert environment.trains_on_gpu() is wanted


def test_the_remedy_names_the_file_from_wherever_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "compare_with_pins", lambda: (["peft is not installed"], []))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="peft is not installed") as caught:
        environment.require_packages()
    assert str(environment.REPOSITORY / "requirements.txt") in str(caught.value)


def test_a_device_of_ones_own_choice_is_not_blamed_on_the_user(monkeypatch):
    monkeypatch.setattr("lora_helpers.arithmetic.best_device", lambda: torch.device("cuda:99"))
    with pytest.raises(InputError, match='device is cuda:99: .*; device="cpu", or '):
        find_device(None, "float32")


def test_int8_is_the_cpus_whatever_else_there_is(monkeypatch):
    monkeypatch.setattr("lora_helpers.arithmetic.best_device", lambda: torch.device("meta"))
    assert find_device(None, "int8") == torch.device("cpu") and find_device(None, "bfloat16") == torch.device("meta")
    with pytest.raises(InputError, match="precision is int8 and device meta: int8 is for the CPU; use bfloat16 there"):
        find_device("meta", "int8")


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_that_is_emulated_is_said_to_be_slow(fast, monkeypatch, caplog):
    monkeypatch.setattr("lora_helpers.arithmetic.has_fast_bfloat16", lambda device: fast)
    model = set_precision(torch.nn.Linear(2, 2), "bfloat16", torch.device("cpu"))
    assert model.weight.dtype == torch.bfloat16
    assert ["emulates bfloat16" in line.getMessage() for line in caplog.records] == [True] * (not fast)


def test_a_batch_for_which_there_is_no_memory_is_split(classifier, monkeypatch):
    texts, refused, sizes = [f"word {i}" * (1 + i % 5) for i in range(40)], [], []
    wanted, whole = classifier.predict_probabilities(texts), classifier.model.forward

    def forward(self, input_ids, **named):
        if len(input_ids) > 3:
            refused.append(len(input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        sizes.append(len(input_ids))
        return whole(input_ids, **named)

    monkeypatch.setattr(type(classifier.model), "forward", forward)
    np.testing.assert_allclose(classifier.predict_probabilities(texts), wanted, atol=1e-6)
    assert refused and sum(sizes) == len(texts)

    def never(self, *given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(type(classifier.model), "forward", never)
    said = f"CUDA out of memory.*; {re.escape(environment.WITHOUT_GPU)}"
    with pytest.raises(InputError, match=said):
        classifier.predict(texts)
    monkeypatch.setattr(torch.nn.Module, "to", never)
    with pytest.raises(InputError, match=said):  # no room for the model itself
        arithmetic.set_precision(classifier.model, "float32", torch.device("cpu"))


def plan_on_gpu(config, folder, monkeypatch):
    """A plan whose machine has a GPU, as far as `make_arguments` looks."""
    monkeypatch.setattr(arguments, "trains_on_gpu", lambda: True)
    model, tokenizer, _ = load_base(config.base_model, config.base_revision)
    rows = dict.fromkeys(("train_rows", "validation_rows"))
    return arguments.Plan(config=config, output_dir=folder, model=model, tokenizer=tokenizer, **rows)


def test_tf32_is_off_for_an_exact_run_even_where_it_was_asked_for_and_is_given_back(tiny_config, tmp_path, monkeypatch):
    plan = plan_on_gpu(tiny_config.replace(mixed_precision=False), tmp_path, monkeypatch)
    before = torch.get_float32_matmul_precision()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    torch.set_float32_matmul_precision("high")
    try:
        with arguments.restored_precision():
            assert arguments.make_arguments(plan).mixed_precision == "no"
            assert {each.matmul.fp32_precision for each in (torch.backends.cuda, torch.backends.mkldnn)} == {"ieee"}
        assert {each.matmul.fp32_precision for each in (torch.backends.cuda, torch.backends.mkldnn)} == {"tf32"}
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("system", "workers"), [("posix", 2), ("nt", 0)])
def test_windows_starts_no_workers_that_would_import_torch_again(system, workers, tiny_config, tmp_path, monkeypatch):
    plan = plan_on_gpu(tiny_config, tmp_path, monkeypatch)
    monkeypatch.setattr(arguments, "os", SimpleNamespace(name=system))
    with arguments.restored_precision():
        assert arguments.make_arguments(plan).dataloader_num_workers == workers


@pytest.mark.parametrize(("positions", "multiple"), [(512, 8), (30, None)])
def test_rows_are_padded_to_whole_tiles_unless_positions_end_between_two(
    positions, multiple, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "trains_on_gpu", lambda: True)
    monkeypatch.setattr(trainer, "longest_input", lambda model: positions)
    monkeypatch.setattr(trainer, "FineTuningTrainer", lambda **named: named["data_collator"].__self__)
    monkeypatch.setattr(trainer, "make_arguments", lambda plan: None)
    rows = SimpleNamespace(remove_columns=lambda name: None)
    lengths = type("Rows", (dict,), {"remove_columns": lambda self, name: None, "sort": lambda self, name: rows})
    plan = SimpleNamespace(
        config=tiny_config, model=None, tokenizer=None,
        train_rows=lengths(length=np.array([3] * 40)), validation_rows=lengths(length=np.array([3])),
    )  # fmt: skip
    assert trainer.make_trainer(plan).pad_to_multiple_of == multiple


def test_every_process_waits_until_a_checkpoint_is_sealed(tmp_path, monkeypatch):
    """Else one that does not lead would list the checkpoints, for its record, before the last is one."""
    events = []
    monkeypatch.setattr(
        trainer, "this_process", lambda: SimpleNamespace(wait_for_everyone=lambda: events.append("all"))
    )
    monkeypatch.setattr(trainer, "seal", lambda *_: events.append("sealed"))
    plan = SimpleNamespace(output_dir=tmp_path, seconds=lambda: 1.0, details={})
    for leading in (True, False):
        state = SimpleNamespace(is_world_process_zero=leading, global_step=5, max_steps=10)
        trainer.RunCallback(plan, None).on_save(None, state, None)
    assert events == ["all", "sealed", "all", "all", "all"]


def test_a_folder_of_nothing_is_removed_when_its_lock_is_open_again(tmp_path, monkeypatch):
    """Windows removes no open file."""
    from filelock import FileLock

    def remove(folder, **_):
        with FileLock(folder / ".lock").acquire(timeout=0):
            (folder / ".lock").unlink()
        folder.rmdir()

    monkeypatch.setattr(run.shutil, "rmtree", remove)
    with pytest.raises(InputError, match="no reason"), run._claimed(tmp_path / "run", resume=False):
        raise InputError("no reason")
    assert not (tmp_path / "run").exists()


def test_a_reader_of_rows_that_the_system_ended_is_one_sentence(tmp_path):
    error = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed.")
    said = pytest.raises(InputError, match=r"DataLoader worker .*; to go on: .*--resume")
    with said, failures_in_one_sentence(get_profile("mini"), tmp_path, Beginning()):
        raise error
    ours = RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
    with (
        pytest.raises(RuntimeError, match="Caught"),
        failures_in_one_sentence(get_profile("mini"), tmp_path, Beginning()),
    ):
        raise ours


@pytest.mark.parametrize(
    ("device", "dropout", "said"),
    [
        ("NVIDIA H100", {"lora_dropout": 0.05}, "dropout masks and rounding"),
        ("NVIDIA H100", {"base_dropout": 0.05}, "dropout masks and rounding"),
        ("NVIDIA H100", {}, "rounding"),
        ("CPU, 4 threads", {"lora_dropout": 0.05}, "rounding"),
    ],
)
def test_on_another_kind_of_device_other_units_drop_out(device, dropout, said, tmp_path, caplog):
    def describe(device):
        config = {"base_dropout": 0.0, "lora_dropout": 0.0} | dropout
        its = {"environment": {"device": device}, "data": {"sha256": "0"}, "arithmetic": "float32", "world_size": 1}
        return its | {"config": config}

    start = resuming.Start(tmp_path / "checkpoint-10", describe("CPU, 2 threads"))
    resuming.describe_resumption(start, describe(device))
    assert [line.getMessage() for line in caplog.records] == [
        f"device: {device} here, CPU, 2 threads there; {said} may differ"
    ]


def test_what_a_resumed_run_was_computed_by_before_is_kept_and_said_where_it_rounds_otherwise(tmp_path, caplog):
    def describe(**facts):
        its = {"libraries": {"torch": "2.13.0", "transformers": "5.23.0"}, "code_sha256": "1" * 64} | facts
        config = {"base_dropout": 0.0, "lora_dropout": 0.0}
        return {"environment": {"device": "CPU, 2 threads"} | its, "data": {"sha256": "0"}, "config": config} | ONE

    ONE = {"arithmetic": "float32", "world_size": 1}
    then = describe(processor="Apple M3", libraries={"torch": "2.11.0", "transformers": "5.23.0"}, code_sha256="2" * 64)
    kept = resuming.describe_resumption(resuming.Start(tmp_path / "checkpoint-10", then), describe(processor="EPYC"))
    assert [line.getMessage() for line in caplog.records] == [
        "torch: 2.13.0 here, 2.11.0 there; rounding may differ",
        "processor: EPYC here, Apple M3 there; rounding may differ",
    ]
    wanted = {"processor": "Apple M3", "torch": "2.11.0", "transformers": "5.23.0", "code": "code 2222222222"}
    assert wanted.items() <= kept["resumed_from"].items()


def test_a_proxy_for_everything_is_a_proxy_for_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "getproxies", lambda: {"all": "http://proxy.example:3128"})
    monkeypatch.setattr(hub, "proxy_bypass", lambda host: False)
    monkeypatch.setattr(
        hub.socket, "create_connection", lambda place, limit: asked.append(place) or SimpleNamespace(close=int)
    )
    hub._connect()
    assert asked == [("proxy.example", 3128)]


def test_a_cache_that_another_program_filled_serves_where_the_hub_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    asked = []

    def announce(*what):
        asked.append(what)
        raise TimeoutError("no answer")

    monkeypatch.setattr(hub, "_announce", announce)
    revision, snapshot = "a" * 40, tmp_path / "models--some--base" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    ask = ("some/base", revision, hub.LOADED_FILES)
    with pytest.raises(InputError, match="no answer"):  # no weights
        hub.download(*ask, kind="model", instead="")
    (snapshot / "tokenizer.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    assert hub.download(*ask, kind="model", instead="") == snapshot and len(asked) == 2  # it was asked first
    assert hub.is_at_hand("some/base", revision, kind="model")
    snapshot = tmp_path / "datasets--some--data" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    ask = ("some/data", revision, ("train.csv", "train.parquet"))
    with pytest.raises(InputError, match="no answer"):
        hub.download(*ask, kind="dataset", instead="")
    (snapshot / "train.parquet").write_bytes(b"")  # one of the files that could make the split
    assert hub.download(*ask, kind="dataset", instead="") == snapshot
