"""On a GPU: the same run, resumed to the same end, and the same predictions as on a CPU. Skipped where there is none."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lora_helpers.environment import trains_on_gpu
from lora_helpers.files.places import REPOSITORY
from lora_helpers.inference import Classifier
from lora_helpers.records import read_record, validation_rows
from lora_helpers.training.arguments import BFLOAT16, FLOAT32, Plan, make_arguments, restored_precision
from lora_helpers.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not trains_on_gpu(), reason="no CUDA device on this machine"),
]


def has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """Three epochs of the tiny profile, mixed precision where the card has it, dropout on."""
    run_dir = tmp_path_factory.mktemp("gpu") / "run"
    train(tiny_config, run_dir)
    return run_dir


def test_the_run_was_on_the_gpu_and_says_so(run):
    record = read_record(run)
    assert record["environment"]["device"] == torch.cuda.get_device_name()
    assert record["timing"]["peak_memory_mib"]["gpu"] > 0
    rows = validation_rows(record)
    assert rows[-1]["step"] == 150 and 0 <= rows[0]["eval_accuracy"] <= 1
    assert list(record["checkpoints"]) == ["70", "140", "150"]


def test_a_resumed_run_ends_where_the_unbroken_one_ends(run, tiny_config, tmp_path):
    """To what the order of atomic additions may change; another seed ends elsewhere."""
    from safetensors.torch import load_file

    train(tiny_config, tmp_path / "resumed", resume_from=run / "checkpoint-70")
    train(tiny_config.replace(seed=43), tmp_path / "other")
    wanted, found, other = (
        load_file(folder / "checkpoint-150" / "adapter_model.safetensors")
        for folder in (run, tmp_path / "resumed", tmp_path / "other")
    )
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-3
    assert max((other[name] - wanted[name]).abs().max().item() for name in wanted) > 1e-2


@pytest.mark.parametrize("mixed", [True, False])
def test_trainable_weights_and_optimizer_state_are_float32(tiny_config, tmp_path, monkeypatch, mixed):
    from lora_helpers.training import trainer

    stock, seen = trainer.FineTuningTrainer.training_step, {}

    def training_step(self, model, *more):
        loss = stock(self, model, *more)
        seen["weights"] = {p.dtype for p in model.parameters() if p.requires_grad}
        seen["gradients"] = {p.grad.dtype for p in model.parameters() if p.grad is not None}
        seen["autocast"] = self.accelerator.mixed_precision
        seen["tf32"] = torch.backends.fp32_precision
        seen["state"] = {t.dtype for s in self.optimizer.state.values() for k, t in s.items() if k != "step"}
        return loss

    monkeypatch.setattr(trainer.FineTuningTrainer, "training_step", training_step)
    before = torch.backends.fp32_precision
    config = tiny_config.replace(mixed_precision=mixed, max_steps=20, save_steps=20)
    record = train(config, tmp_path / "run")
    assert record["arithmetic"] == (BFLOAT16 if mixed and has_bf16() else FLOAT32)
    assert seen["weights"] == seen["gradients"] == seen["state"] == {torch.float32}
    assert seen["autocast"] == ("bf16" if mixed and has_bf16() else "no")
    assert (seen["tf32"] == "tf32") == (mixed and has_bf16())
    assert torch.backends.fp32_precision == before  # what comes after the run computes in float32


def test_batches_are_padded_to_a_multiple_of_8(tiny_config, tmp_path, monkeypatch):
    from lora_helpers.training import trainer

    stock, widths = trainer.FineTuningTrainer.training_step, []

    def training_step(self, model, inputs, *more):
        widths.append(inputs["input_ids"].shape[1])
        return stock(self, model, inputs, *more)

    monkeypatch.setattr(trainer.FineTuningTrainer, "training_step", training_step)
    train(tiny_config.replace(max_length=30, max_steps=20, save_steps=20), tmp_path / "run")
    assert len(widths) == 20 and all(width % 8 == 0 for width in widths)


def test_batches_are_prepared_ahead_in_pinned_memory(tiny_config, tmp_path):
    parts = dict.fromkeys(("model", "tokenizer", "train_rows", "validation_rows"))
    with restored_precision():
        arguments = make_arguments(Plan(config=tiny_config, output_dir=tmp_path, **parts))
    assert arguments.dataloader_pin_memory and arguments.dataloader_persistent_workers
    assert arguments.dataloader_num_workers >= 1 and arguments.accelerator_config.non_blocking
    assert arguments.optim == "adamw_torch_fused" and arguments.train_batch_size == tiny_config.batch_size


def test_a_checkpoint_trained_on_a_cpu_predicts_the_same_on_both(bundled_rows, tmp_path):
    """The committed checkpoint, float32, in this process on the GPU and in one that sees none."""
    checkpoint = REPOSITORY / "checkpoints" / "mini" / "checkpoint-300"
    texts = [text for _, text in bundled_rows["validation"]]
    script = (
        "import json, sys, numpy as np\n"
        "from lora_helpers.inference import Classifier\n"
        "classifier = Classifier.from_checkpoint(sys.argv[1])\n"
        "assert classifier.device.type == 'cpu'\n"
        "np.save(sys.argv[2], classifier.predict_probabilities(json.load(sys.stdin)))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(checkpoint), str(tmp_path / "cpu.npy")],
        input=json.dumps(texts), text=True, check=True, cwd=REPOSITORY, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    classifier = Classifier.from_checkpoint(checkpoint)
    assert classifier.device.type == "cuda"
    found, wanted = classifier.predict_probabilities(texts), np.load(tmp_path / "cpu.npy")
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-4
    assert wanted.std() > 0.1  # they differ from text to text, so agreement means something
