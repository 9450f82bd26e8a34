import csv
import json
import subprocess
import sys

import pytest

from lora_helpers.__main__ import main
from lora_helpers.files.places import REPOSITORY

CHECKPOINT = str(REPOSITORY / "checkpoints" / "mini" / "checkpoint-300")


def run(*arguments):
    """Exit status of a command, in this process."""
    return main([str(argument) for argument in arguments])


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, lora_helpers, lora_helpers.__main__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_train_then_evaluate_verify_figures(tmp_path, tiny_base, capsys):
    run_dir = tmp_path / "run"
    fields = ("--base-model", tiny_base, "--max-length", 32, "--max-steps", 30, "--eval-steps", 10, "--save-steps", 20)
    assert run("train", "mini", "--output-dir", run_dir, *fields) == 0
    assert "step 30, validation accuracy" in capsys.readouterr().out
    assert run("train", "mini", "--output-dir", run_dir, *fields) == 2
    assert "holds files already" in capsys.readouterr().err
    last = run_dir / "checkpoint-30"
    assert run("evaluate", last, "--json", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"accuracy", "macro_f1", "per_class", "interval", "calibration"} <= set(scores)
    assert run("verify", last) == 0
    assert run("figures", run_dir, "--output-dir", tmp_path / "figures") == 0
    (last / "adapter_model.safetensors").write_bytes(b"damaged")
    assert run("verify", last) == 1
    assert "SHA-256 differs" in capsys.readouterr().err


def test_predict_prints_a_table_and_writes_a_file(tmp_path, capsys):
    assert run("predict", CHECKPOINT, "Shares of the bank fell after its quarterly profit halved") == 0
    assert "Business" in capsys.readouterr().out
    source = tmp_path / "in.txt"
    source.write_text("The striker scored twice\nThe probe reached Mars orbit\n")
    assert run("predict", CHECKPOINT, "--input", source, "--output", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open() as stream:
        assert list(csv.reader(stream)) == [["ID", "Label"], ["0", "1"], ["1", "3"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "minni"), "did you mean 'mini'"),
        (("train", "mini", "--resume"), "name it with --output-dir"),
        (("evaluate", "nowhere"), "no checkpoint at"),
        (("evaluate", CHECKPOINT, "--data", "./nowhere"), "nowhere"),
        (("predict", CHECKPOINT), "give either texts, or"),
        (("predict", CHECKPOINT, "--input", "x.csv"), "give either texts, or"),
        (("figures", "nowhere"), "no run.json"),
        (("pretrain", "--vocab-size", "big"), "vocab_size is 'big'"),
        (("evidence", "everything"), "unknown part"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and error.startswith("error: ")
