"""`roberta-base` on the true shape of its base with random weights: the machinery, and nothing about accuracy."""

import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from lora_helpers.checkpoints import list_checkpoints
from lora_helpers.config import get_profile
from lora_helpers.data import load_ag_news
from lora_helpers.files.places import REPOSITORY
from lora_helpers.inference import Classifier
from lora_helpers.records import read_record


@pytest.mark.slow
def test_20_steps_then_another_process_finds_the_loss_that_was_recorded(
    roberta_base_dir, ag_news_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROBERTA_BASE_DIR", str(roberta_base_dir))
    (tmp_path / "ag_news").mkdir()
    with (ag_news_dir / "train.csv").open(encoding="utf-8") as rows:  # a row a line in this file
        (tmp_path / "ag_news" / "train.csv").write_text("".join(islice(rows, 2000)), encoding="utf-8")
    monkeypatch.setenv("AG_NEWS_DIR", str(tmp_path / "ag_news"))
    run_dir = tmp_path / "run"
    fields = {"max_steps": 20, "batch_size": 2, "validation_size": 64, "eval_steps": 20, "save_steps": 20}
    fields["mixed_precision"] = False  # else a processor with bfloat16 rounds the loss
    flags = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value).lower())]
    command = [sys.executable, "-m", "lora_helpers", "train", "roberta-base", "--output-dir", str(run_dir), *flags]
    subprocess.run(command, cwd=REPOSITORY, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    record = read_record(run_dir)
    assert record["parameters"]["trainable"] == 630_532 and record["parameters"]["peft_all"] == 125_279_240
    assert record["adapter_config"]["base_model_name_or_path"] == "FacebookAI/roberta-base"
    assert record["adapter_config"]["revision"] == "e2da8e2f811d1448a5b465c236feacd80ffbac7b"

    validation = load_ag_news(get_profile("roberta-base", **fields)).validation
    classifier = Classifier.from_checkpoint(list_checkpoints(run_dir)[-1])
    probabilities = classifier.predict_probabilities(validation["text"][:])
    loss = -np.log(probabilities[range(64), validation["label"][:]]).mean()
    (recorded,) = (row["eval_loss"] for row in record["log"] if row["step"] == 20 and "eval_loss" in row)
    assert loss == pytest.approx(recorded, abs=1e-3) and np.ptp(probabilities) > 0.01
