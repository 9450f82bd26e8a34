"""`original` and `roberta-base` on roberta-base's true shape with random weights: the machinery, and nothing about accuracy."""

import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from lora_helpers.checkpoints import list_checkpoints, load_checkpoint
from lora_helpers.files.places import REPOSITORY
from lora_helpers.records import read_record

TEXTS = ["Central bank raises rates", "Striker scores twice in the final"]
RELOAD = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, torch
from lora_helpers.checkpoints import load_checkpoint
model, tokenizer, _ = load_checkpoint(sys.argv[2])
with torch.no_grad():
    np.save(sys.argv[3], model(**tokenizer(sys.argv[4:], padding=True, return_tensors="pt")).logits.numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["original", "roberta-base"])
def test_20_steps_then_a_new_process_computes_the_same_logits(
    profile, roberta_base_dir, ag_news_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROBERTA_BASE_DIR", str(roberta_base_dir))
    (tmp_path / "ag_news").mkdir()
    with (ag_news_dir / "train.csv").open(encoding="utf-8") as rows:  # a row a line in this file
        (tmp_path / "ag_news" / "train.csv").write_text("".join(islice(rows, 2000)), encoding="utf-8")
    monkeypatch.setenv("AG_NEWS_DIR", str(tmp_path / "ag_news"))
    run_dir = tmp_path / "run"
    fields = {"max-steps": 20, "batch-size": 2, "validation-size": 64, "eval-steps": 20, "save-steps": 20}
    flags = [str(part) for name, value in fields.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "lora_helpers", "train", profile, "--output-dir", str(run_dir), *flags]
    subprocess.run(command, cwd=REPOSITORY, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    record = read_record(run_dir)
    assert record["parameters"]["trainable"] == 630_532 and record["parameters"]["peft_all"] == 125_279_240
    assert record["adapter_config"]["base_model_name_or_path"] == "FacebookAI/roberta-base"
    assert record["adapter_config"]["revision"] == "e2da8e2f811d1448a5b465c236feacd80ffbac7b"

    checkpoint = list_checkpoints(run_dir)[-1]
    model, tokenizer, _ = load_checkpoint(checkpoint)
    here = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.detach().numpy()
    there = tmp_path / "logits.npy"
    subprocess.run([sys.executable, "-c", RELOAD, REPOSITORY, checkpoint, there, *TEXTS], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(there), here, atol=1e-5)
    assert np.ptp(here) > 0
