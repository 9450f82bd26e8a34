"""What people take away: each form loads in a fresh process, in another folder, by plain libraries and by its own card."""

import json
import os
import re
import shutil
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError

from lora_helpers import export
from lora_helpers.checkpoints import load_checkpoint
from lora_helpers.config import LABELS
from lora_helpers.errors import InputError
from lora_helpers.export import export_checkpoint
from lora_helpers.files.places import REPOSITORY
from lora_helpers.inference import Classifier
from lora_helpers.training.run import train

TEXTS = ["Oil prices rise", "The team won its last match", "goal " * 100]  # the last is over every limit
AGNEWS = REPOSITORY / "checkpoints" / "mini-agnews"
REVISION = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module")
def checkpoint(tiny_run):
    return tiny_run / "checkpoint-10"


@pytest.fixture(scope="module")
def wanted(checkpoint):
    """Logits <float32>[3, 4] of the checkpoint as we load it, with its adapter beside the base."""
    model, tokenizer, found = load_checkpoint(checkpoint)
    rows = tokenizer(TEXTS, truncation=True, max_length=found.max_length, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**rows).logits.numpy()


def run_card(folder, code, **environment):
    """The Python of the model card, then `code`, in a fresh process beside the folder; what it prints as JSON."""
    card = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ROBERTA_BASE_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", f"import json\nTEXTS = {TEXTS!r}\n{card}\n{code}"], cwd=folder.parent,
        env=variables | {"HF_HUB_OFFLINE": "1"} | environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "error", [SafetensorError("No space left"), Exception("File too large (os error 27)"), OSError(28, "No space", "a")]
)
def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint, tmp_path, monkeypatch, error):
    """Of safetensors, of `tokenizers`, of Python."""
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", Mock(side_effect=error))
    with pytest.raises(
        InputError, match=r"model: cannot be written \((No space( left|: a)|File too large .os error 27.)\)$"
    ):
        export_checkpoint(checkpoint, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_adapter_of_a_base_in_shards_takes_all_of_it(tiny_base, tiny_config, tmp_path):
    from transformers import AutoModel

    base = shutil.copytree(tiny_base, tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModel.from_pretrained(tiny_base).save_pretrained(base, max_shard_size="100KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    short = tiny_config.replace(base_model=str(base), max_steps=2, eval_steps=2, save_steps=2, warmup_steps=0)
    train(short, tmp_path / "run")
    export_checkpoint(tmp_path / "run" / "checkpoint-2", tmp_path / "adapter", form="adapter")
    assert len(Classifier.from_checkpoint(tmp_path / "adapter").predict(TEXTS)) == 3


LOGITS = """
rows = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
print(json.dumps({"logits": model(**rows).logits.tolist(), "names": list(model.config.id2label.values()),
                  "numbers": model.config.label2id}))
"""


@pytest.mark.slow
def test_the_merged_model_is_cut_and_named_by_plain_pipeline(checkpoint, wanted, tmp_path):
    assert export_checkpoint(checkpoint, tmp_path / "merged") == tmp_path / "merged"
    assert "../" not in (tmp_path / "merged" / "README.md").read_text()  # where the base lay here
    found = run_card(tmp_path / "merged", "print(json.dumps([classify(text, top_k=None) for text in TEXTS]))")
    probabilities = torch.tensor(wanted).softmax(dim=1).numpy()
    for scores, row in zip(found, probabilities, strict=True):
        by_name = {score["label"]: score["score"] for score in scores}
        np.testing.assert_allclose([by_name[name] for name in LABELS], row, atol=1e-5)


@pytest.mark.slow
def test_an_adapter_without_a_name_on_the_hub_brings_its_base(checkpoint, wanted, tmp_path):
    export_checkpoint(checkpoint, tmp_path / "adapter", form="adapter")
    found = run_card(tmp_path / "adapter", LOGITS)
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-5)
    assert found["names"] == list(LABELS) and found["numbers"] == {name: i for i, name in enumerate(LABELS)}


@pytest.mark.slow
def test_an_adapter_names_its_base_as_the_hub_does(checkpoint, tiny_base, wanted, tmp_path):
    """The Hub's cache holds the base as others know it, without our classes."""
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_base, cached / "snapshots" / REVISION)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(REVISION)
    folder = export_checkpoint(checkpoint, tmp_path / "adapter", form="adapter", base_name="someone/tiny")
    assert not (folder / "base").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/tiny"
    found = run_card(folder, LOGITS, HF_HUB_CACHE=str(tmp_path / "hub"))
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-5)
    assert found["names"] == list(LABELS) and found["numbers"] == {name: i for i, name in enumerate(LABELS)}


@pytest.mark.slow
def test_onnxruntime_gives_the_same_logits(checkpoint, wanted, tmp_path):
    pytest.importorskip("onnxruntime")
    export_checkpoint(checkpoint, tmp_path / "onnx", form="onnx")
    found = run_card(
        tmp_path / "onnx",
        'rows = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="np")\n'
        'logits = session.run(["logits"], {name: rows[name] for name in ("input_ids", "attention_mask")})[0]\n'
        "print(json.dumps([logits.tolist(), list(id2label.values())]))",
    )
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)
    assert found[1] == list(LABELS)


def test_a_package_that_onnx_needs_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="it takes: pip install onnx onnxscript"):
        export_checkpoint(checkpoint, tmp_path / "onnx", form="onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_and_nothing_is_left(checkpoint, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for target, how, message in (
        ("full", {}, "exists already; name another folder"),
        ("file", {}, "exists already; name another folder"),
        ("no/folder", {}, "no: no such folder; make it first$"),
        (tmp_path.anchor, {}, "exists already; name another folder"),
        ("new", {"form": "tflite"}, "form is 'tflite', wanted one of merged, adapter, onnx"),
        ("new", {"base_name": "checkpoints/roberta-mini"}, "which is a folder; wanted the base's name on the Hub"),
    ):
        with pytest.raises(InputError, match=message):
            export_checkpoint(checkpoint, tmp_path / target, **how)
    with pytest.raises(InputError, match="no checkpoint at"):
        export_checkpoint(tmp_path / "nothing", tmp_path / "new")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "full" / "mine").unlink()
    assert export_checkpoint(checkpoint, tmp_path / "full").is_dir()  # an empty folder is as good as none


def test_nothing_written_names_this_machine(checkpoint, tmp_path):
    for form in ("merged", "adapter"):
        folder = export_checkpoint(checkpoint, tmp_path / form, form=form, base_name="someone/tiny")
        for path in folder.iterdir():
            assert str(tmp_path).encode() not in path.read_bytes(), path
            assert str(checkpoint.parent.parent).encode() not in path.read_bytes(), path


# The card


def card_of(folder):
    """As `huggingface_hub` reads it; a record in it that does not fit its schema is an error there."""
    card = ModelCard.load(folder / "README.md")
    assert card.data.language == "en" and card.data.pipeline_tag == "text-classification"
    if card.data.base_model:
        validate_repo_id(card.data.base_model)
    if card.data.license_link:
        assert (folder / card.data.license_link).is_file()
    return card


def test_a_card_has_the_numbers_of_the_record_and_the_terms_of_the_data(tmp_path):
    record = json.loads((AGNEWS / "run.json").read_text())
    last = card_of(export_checkpoint(AGNEWS / f"checkpoint-{record['config']['max_steps']}", tmp_path / "last"))
    assert {result.metric_type: result.metric_value for result in last.data.eval_results} == {
        name: record["test"][name] for name in ("accuracy", "macro_f1")
    }
    assert f"{record['test']['accuracy']:.4f} on {record['test']['examples']:,} rows" in last.text
    assert f"{record['data']['rows']['train']:,} training" in last.text
    assert last.data.license == "other" and last.data.datasets == "fancyzhx/ag_news" and not last.data.base_model

    first = min(record["checkpoints"], key=int)  # the record's test is of the last step
    early = card_of(export_checkpoint(AGNEWS / f"checkpoint-{first}", tmp_path / "early"))
    assert f"{record['checkpoints'][first]['validation_accuracy']:.4f}" in early.text
    assert not early.data.eval_results and f"{record['test']['accuracy']:.4f}" not in early.text


def test_a_record_of_other_weights_gives_a_card_no_numbers(checkpoint, tiny_run, tmp_path):
    whole = card_of(export_checkpoint(checkpoint, tmp_path / "whole", base_name="someone/tiny"))
    assert "Validation accuracy" in whole.text and whole.data.base_model == "someone/tiny"
    shutil.copytree(tiny_run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["checkpoints"]["10"]["adapter_sha256"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    for number, run in enumerate(("run", "moved")):
        if run == "moved":
            (tmp_path / "moved").mkdir()
            shutil.move(tmp_path / "run" / "checkpoint-10", tmp_path / "moved")
        card = card_of(export_checkpoint(tmp_path / run / "checkpoint-10", tmp_path / f"{number}"))
        assert "no record of a run belongs to this checkpoint" in card.text and "accuracy:" not in card.text
        assert not card.data.license and not card.data.datasets and not card.data.base_model


def test_scores_on_the_bundled_rows_are_no_results_on_ag_news(tmp_path):
    """The base is computed from AG News all the same, and its terms go along."""
    run = AGNEWS.with_name("mini")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    card = card_of(export_checkpoint(run / f"checkpoint-{record['config']['max_steps']}", tmp_path / "mini"))
    assert f"{record['test']['accuracy']:.4f} on {record['test']['examples']:,} rows" in card.text
    assert not card.data.eval_results and not card.data.datasets and card.data.license == "other"


def test_an_export_of_a_link_finds_its_record_and_its_tokenizer_cuts_by_itself(checkpoint, tmp_path):
    (tmp_path / "link").symlink_to(checkpoint)
    folder = export_checkpoint(tmp_path / "link", tmp_path / "mine")
    assert "Validation accuracy" in card_of(folder).text
    longest = json.loads((checkpoint / "manifest.json").read_text())["config"]["max_length"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["truncation"]["max_length"] == longest
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_max_length"] == longest and not {"is_local", "local_files_only", "max_length"} & {*settings}


def test_an_adapter_for_a_base_of_another_name_names_no_commit_of_the_old_one(checkpoint, tmp_path):
    model = load_checkpoint(checkpoint)[0]
    model.peft_config["default"].revision = REVISION
    export._write_adapter(model, tmp_path, "someone/tiny")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("someone/tiny", None)


def test_an_export_into_an_empty_folder_fills_that_folder(checkpoint, tmp_path, monkeypatch):
    """Which may be somebody's working folder, or behind a link."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    export_checkpoint(checkpoint, ".", form="adapter")
    assert "adapter_config.json" in os.listdir() and sorted(os.listdir(tmp_path)) == ["here", "link"]
    for path in (tmp_path / "here").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    export_checkpoint(checkpoint, tmp_path / "link", form="adapter")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "here" / "README.md").is_file()


def test_what_is_exported_can_be_read_by_others_and_another_program_s_record_is_none(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "theirs" / "checkpoint-10")
    (tmp_path / "theirs" / "run.json").write_text('{"job": 1}')
    before = os.umask(0o022)
    try:
        export_checkpoint(copy, tmp_path / "new")
    finally:
        os.umask(before)
    assert {path.stat().st_mode for path in (tmp_path / "new").iterdir()} == {
        (tmp_path / "new" / "README.md").stat().st_mode
    }
    assert os.name == "nt" or (tmp_path / "new" / "README.md").stat().st_mode & 0o777 == 0o644
    assert "**Data and accuracy** are not known" in (tmp_path / "new" / "README.md").read_text()


def test_a_card_tells_nothing_of_where_a_foreign_base_lay(checkpoint, tiny_base, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "foreign")
    (copy / "manifest.json").unlink()
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tiny_base)}))
    export_checkpoint(copy, tmp_path / "new")
    card = (tmp_path / "new" / "README.md").read_text()
    assert tiny_base.name in card and str(tiny_base.parent) not in card
