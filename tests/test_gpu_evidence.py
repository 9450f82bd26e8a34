"""The parts of the evidence that need a GPU, as far as a CPU can try them."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_helpers.checkpoints import list_checkpoints
from lora_helpers.config import get_profile
from lora_helpers.errors import InputError
from lora_helpers.evidence import gpu, rebuild, study


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "RUNS", tmp_path)
    return tmp_path


def test_a_run_that_goes_on_or_is_made_again_is_compared_bit_by_bit(runs, tiny_config, monkeypatch, one_thread):
    config = tiny_config.replace(max_steps=12, eval_steps=4, save_steps=4)
    monkeypatch.setattr(gpu, "get_profile", lambda _: config)
    found = gpu.repeat_runs("tiny")
    same = {"same_bits": True, "largest_difference": 0.0}
    assert found["resumed_at"] == 8 and found["repeated"] == found["resumed"] == same
    monkeypatch.setattr("lora_helpers.training.trainer.make_trainer", None)  # the second time nothing is trained
    assert gpu.repeat_runs("tiny") == found
    weights = list_checkpoints(runs / "gpu-tiny-resumed")[-1] / gpu.WEIGHTS
    changed = load_file(weights)
    next(iter(changed.values())).add_(0.25)
    for module in (gpu, study):  # `train` notices the change itself
        monkeypatch.setattr(module, "train", lambda *_, **__: {"arithmetic": "float32", "environment": {}})
    save_file(changed, weights)
    assert gpu.repeat_runs("tiny")["resumed"] == {"same_bits": False, "largest_difference": pytest.approx(0.25)}


def test_devices_are_compared_by_probability_and_bfloat16_by_label(monkeypatch):
    cpu = np.array([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5], [0.9, 0.1]], np.float32)
    other = np.concatenate([cpu[:3], cpu[3:, ::-1]])  # one label of four
    given = {("cpu", "float32"): cpu, ("cuda", "float32"): cpu + 2e-5, ("cuda", "bfloat16"): other}

    class Fake:
        def __init__(self, device, precision):
            self.predict_probabilities = lambda texts: given[device, precision][: len(texts)]

    monkeypatch.setattr(gpu, "load_committed", lambda _, device, precision: Fake(device, precision))
    monkeypatch.setattr(gpu, "load_ag_news", lambda _: type("", (), {"validation": {"text": ["a", "b", "c", "d"]}}))
    found = gpu.compare_devices()
    assert found == {"rows": 4, "largest_difference": pytest.approx(2e-5, rel=0.01), "bfloat16_agreement": 0.75}


def test_a_whole_run_is_timed_with_random_weights(runs, monkeypatch):
    timing, asked = {"seconds": 60.0, "peak_memory_mib": {"gpu": 1000.0}}, []
    record = {"arithmetic": "bfloat16", "timing": timing, "environment": {"code_sha256": "a" * 64}}
    monkeypatch.setattr(gpu, "train", lambda config, _, resume: asked.append((config, resume)) or record)
    (row,) = gpu.time_headline(["roberta-base"])["rows"]
    assert asked == [(get_profile("roberta-base", random_base=True), True)]
    assert row["arithmetic"] == "bfloat16" and row["code"] == "code aaaaaaaaaa"
    assert (row["seconds"], row["peak_memory_mib"]) == (60.0, 1000.0)


def test_what_takes_a_gpu_is_not_measured_without_one(monkeypatch):
    monkeypatch.setattr(rebuild, "trains_on_gpu", lambda: False)
    with pytest.raises(InputError, match="gpu-course: measured on a GPU with CUDA, and there is none"):
        rebuild.rebuild(["gpu-course"])


@pytest.mark.parametrize(("bfloat16", "gpu"), [(False, False), (True, True), (True, False)])
def test_what_takes_a_processor_with_bfloat16_is_measured_on_one_alone(bfloat16, gpu, monkeypatch):
    ran = []
    monkeypatch.setattr(rebuild, "has_fast_bfloat16", lambda device: bfloat16 and device == "cpu")
    monkeypatch.setattr(rebuild, "best_device", lambda: torch.device("cuda" if gpu else "cpu"))
    monkeypatch.setattr(rebuild, "PARTS", {"bench-bfloat16": lambda: ran.append("bench")})
    refused = pytest.raises(InputError, match="bench-bfloat16: measured on a processor with bfloat16")
    with nullcontext() if bfloat16 and not gpu else refused:
        rebuild.rebuild(["bench-bfloat16"])
    assert len(ran) == (bfloat16 and not gpu)


@pytest.mark.slow
def test_steps_are_timed_by_batch_size_and_arithmetic(tiny_base, monkeypatch):
    from transformers import AutoConfig

    shape = AutoConfig.from_pretrained(tiny_base, num_labels=4)
    assert shape.hidden_dropout_prob == 0.1
    monkeypatch.setattr(gpu, "full_size_shape", lambda _: shape)
    monkeypatch.setattr(gpu, "SAMPLED", 2_000)
    monkeypatch.setattr(gpu, "get_profile", lambda name: get_profile(name, max_length=64))
    rows = gpu.time_batch_sizes((4, 8), 2)["rows"]
    ways = [(row["batch_size"], row["arithmetic"]) for row in rows]
    assert ways == [(4, "bfloat16"), (8, "bfloat16"), (4, "float32"), (8, "float32")]
    assert all(row["examples_per_second"] > 0 for row in rows)
    assert shape.hidden_dropout_prob == shape.attention_probs_dropout_prob == 0.0  # as our recipe has it
    course = gpu.time_course(3)
    assert course["steps"] == 3
    assert course["seconds_of_a_run"] == pytest.approx(2400 * 16 / course["examples_per_second"])


def test_full_size_is_measured_by_three_seeds_with_the_runs_of_its_studies(monkeypatch):
    asked, trained = {}, []
    fake = lambda *given, **named: asked.update(given=given, named=named) or {}  # noqa: E731
    monkeypatch.setattr("lora_helpers.evidence.rivals.measure_rivals", fake)
    rebuild.PARTS["mpnet-rivals-seeds"]()
    assert asked["given"] == ("mpnet-base", {"head alone": study.SEEDS})
    assert asked["named"].pop("with_probes") is False
    its = get_profile("mpnet-base", **asked["named"])
    record = {"config": its.to_dict(), "log": [{"eval_loss": 1.0, "eval_accuracy": 0.9, "step": 1}]}
    record |= {"timing": {"seconds": 1.0}, "environment": {"code_sha256": "a" * 64, "code_committed": True}}
    record |= {"data": {"rows": {"train": 76_878}}, "parameters": {"trainable": 630_532}}
    record["test"] = {"accuracy": 0.9, "interval": [0.8, 0.95], "predictions": "1"}
    monkeypatch.setattr(study, "train_and_test", lambda config, folder: trained.append(config) or record)
    rebuild.PARTS["mpnet-studies"]()
    assert its in trained and len(trained) == 3 * len(study.AT_FULL_SIZE)
    course = trained[3]
    assert (course.learning_rate, course.batch_order, course.base_dropout) == (5e-5, "random", 0.1)
    assert course.base_model == its.base_model and course.lora_targets == ("q",)
