"""The committed base, runs and records are real, whole and reproducible from here on."""

import functools
import json
import math
import os

import numpy as np
import pytest

from lora_helpers import data
from lora_helpers.checkpoints import hash_file, list_checkpoints, step_of
from lora_helpers.config import RunConfig, get_profile
from lora_helpers.errors import InputError
from lora_helpers.evaluation import from_digits, to_digits
from lora_helpers.files.places import MINI_NEWS, REPOSITORY
from lora_helpers.inference import Classifier
from lora_helpers.model import build_meta_model
from lora_helpers.pretraining.config import PretrainingConfig
from lora_helpers.pretraining.run import PRETRAINING_RECORD
from lora_helpers.records import committed_runs, read_evidence, read_record, validation_rows, write_record
from lora_helpers.training import run as training
from lora_helpers.training import trainer

CHECKPOINTS = REPOSITORY / "checkpoints"
HEADLINES = {
    "Central bank raises interest rates as inflation climbs": 2,
    "Striker scores twice to send the hosts into the cup final": 1,
    "Scientists launch telescope to search for distant planets": 3,
    "Rebels and government sign ceasefire after talks in the capital": 0,
}


def test_the_base_is_small_fp16_on_disk_and_float32_in_memory():
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForMaskedLM

    folder = CHECKPOINTS / "roberta-mini"
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 20_000_000
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    model = AutoModelForMaskedLM.from_pretrained(folder)  # no dtype given: the configuration decides
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_base_knows_its_language():
    """It fills a blank with a word that fits, which random weights do not."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = CHECKPOINTS / "roberta-mini"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    text = f"The president of the United{tokenizer.mask_token} met the prime minister of Iraq."
    ids = tokenizer(text, return_tensors="pt")
    place = (ids["input_ids"] == tokenizer.mask_token_id).nonzero()[0, 1]
    with torch.no_grad():
        logits = model(**ids).logits[0, place]
    assert tokenizer.convert_ids_to_tokens(int(logits.argmax())) in {"ĠStates", "ĠNations"}


def test_the_base_was_pretrained_on_the_training_rows_of_mini_agnews_alone():
    record = json.loads((CHECKPOINTS / "roberta-mini" / PRETRAINING_RECORD).read_text())
    assert record["data"]["sha256"] == read_record(CHECKPOINTS / "mini-agnews")["data"]["sha256"]["train"]
    assert record["config"] == vars(PretrainingConfig())
    losses = [row["eval_masked_loss"] for row in record["log"] if "eval_masked_loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("profile", ["mini", "mini-agnews", "mpnet-base"])
def test_the_committed_run_is_the_profile(profile):
    record = read_record(CHECKPOINTS / profile)
    assert RunConfig(**record["config"]) == get_profile(profile)
    fields = record["config"].keys() | {"committed_rows", "validation_share"}  # which are younger than some runs
    assert fields == get_profile(profile).to_dict().keys()
    hashes = {step_of(c): hash_file(c / "adapter_model.safetensors") for c in list_checkpoints(CHECKPOINTS / profile)}
    assert hashes == {int(step): c["adapter_sha256"] for step, c in record["checkpoints"].items()}
    steps = [int(c.name.rpartition("-")[2]) for c in list_checkpoints(CHECKPOINTS / profile)]
    assert steps == sorted(map(int, record["checkpoints"]))
    if profile == "mini-agnews":  # every labelled row once, and few of them twice
        assert 1 <= 2400 * record["config"]["batch_size"] / record["data"]["rows"]["train"] < 1.1
    if profile != "mini":
        assert steps == [500, 1000, 1500, 2000, 2400]
    assert len(record["test"]["predictions"]) == record["test"]["examples"] == (240 if profile == "mini" else 7600)


def test_the_repository_stays_light():
    """A tokenizer is a megabyte; loading takes the base's, so one stands beside a run's last checkpoint alone."""
    for run in committed_runs():
        *earlier, last = list_checkpoints(run)
        assert (last / "tokenizer.json").is_file() and not [f for f in earlier if (f / "tokenizer.json").exists()]
    folders = [path for path in CHECKPOINTS.iterdir() if path.name != "runs"] + [REPOSITORY / "figures"]
    size = sum(path.stat().st_size for folder in folders for path in [folder, *folder.rglob("*")] if path.is_file())
    assert size <= 45 * 2**20  # of the 50 MiB that everything may take


def test_a_record_shows_itself_in_three_lines():
    from IPython.lib.pretty import pretty  # what a notebook shows

    record = read_record(CHECKPOINTS / "mini")
    lines, last, best = repr(record).split("\n"), validation_rows(record)[-1], record["best_saved_step"]
    assert pretty(record) == repr(record) and len(lines) == 3
    assert repr(read_record(CHECKPOINTS / "mini-agnews")).startswith("mini-agnews: 2,400 steps in ")
    assert last["step"] != best  # or the next line would say one number twice
    its = f"{record['checkpoints'][str(best)]['validation_accuracy']:.4f}"
    told = f"accuracy {last['eval_accuracy']:.4f}; of the saved checkpoints step {best} is best, {its}"
    assert lines[1] == f"validation {told}" and f"{record['test']['accuracy']:.4f}" in lines[2]
    assert json.loads(json.dumps(record)) == record and isinstance(record, dict)
    del record["test"]
    assert "not measured" in repr(record).split("\n")[2]


def test_what_is_no_record_of_this_schema_is_refused(tmp_path):
    write_record(tmp_path, read_record(CHECKPOINTS / "mini") | {"schema": 2})
    other = (tmp_path / "run.json").read_bytes()
    refused = {b"{": "not JSON", b"\xff": "not JSON", b"3": "schema 1 .missing: schema, profile"}
    for content, said in (refused | {other: "missing: nothing"}).items():
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_record(tmp_path)


def test_a_record_without_what_figures_and_documents_show_is_refused(tmp_path):
    record = read_record(CHECKPOINTS / "mini")
    may_lack = {"test", "arithmetic", "resumed_from", "best_evaluated_step", "world_size"}  # older records do
    for key in record.keys() - may_lack:
        write_record(tmp_path, {name: value for name, value in record.items() if name != key})
        with pytest.raises(InputError, match=rf"not a run record of schema 1 \(missing: {key}\)"):
            read_record(tmp_path)


@pytest.mark.parametrize(("profile", "rows"), [("mini", 240), ("mini-agnews", 64)])
def test_a_small_checkpoint_predicts_what_its_record_says(profile, rows, request):
    """But for a row on the edge, where another processor may round to the other side."""
    folder = MINI_NEWS if profile == "mini" else request.getfixturevalue("ag_news_dir")
    texts = data.load_split(str(folder), "test")["text"][:rows]
    wanted = from_digits(read_record(CHECKPOINTS / profile)["test"]["predictions"][:rows])
    classifier = Classifier.from_checkpoint(list_checkpoints(CHECKPOINTS / profile)[-1])
    assert (classifier.predict_probabilities(texts).argmax(axis=1) != wanted).sum() <= 1


@pytest.mark.parametrize("step", [500, 1000, 1500, 2000, 2400])
def test_every_committed_checkpoint_predicts(step):
    classifier = Classifier.from_checkpoint(CHECKPOINTS / "mini-agnews" / f"checkpoint-{step}")
    assert list(classifier.predict(list(HEADLINES))["label"]) == list(HEADLINES.values())


@pytest.mark.parametrize("step", [500, 1000, 1500, 2000, 2400])
def test_the_full_size_adapter_has_the_names_and_shapes_that_peft_gives_it_on_its_base_without_any_weights(step):
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    model = build_meta_model(get_profile("mpnet-base"))
    wanted = {name: list(p.shape) for name, p in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    with safe_open(CHECKPOINTS / "mpnet-base" / f"checkpoint-{step}" / "adapter_model.safetensors", "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert found == wanted and sum(map(math.prod, found.values())) == 630_532


@pytest.mark.slow
def test_the_full_size_checkpoint_predicts_what_its_record_says(ag_news_dir):
    if not os.environ.get("MPNET_BASE_DIR"):
        pytest.skip("MPNET_BASE_DIR is not set: the weights of all-mpnet-base-v2 are not on this machine")
    rows, record = data.load_split(str(ag_news_dir), "test").select(range(64)), read_record(CHECKPOINTS / "mpnet-base")
    classifier = Classifier.from_checkpoint(CHECKPOINTS / "mpnet-base" / "checkpoint-2400")
    found = classifier.predict_probabilities(rows["text"][:]).argmax(axis=1)
    assert to_digits(found) == record["test"]["predictions"][:64]


@pytest.mark.slow
def test_merging_the_adapter_changes_no_prediction(ag_news_dir):
    """On 2,000 validation rows, beside the model with its adapter unmerged, as training left it."""
    import torch

    from lora_helpers.batching import batches_by_tokens, pad
    from lora_helpers.checkpoints import load_checkpoint

    folder = CHECKPOINTS / "mini-agnews" / "checkpoint-2400"
    merged, (adapted, tokenizer, _) = Classifier.from_checkpoint(folder), load_checkpoint(folder)
    rows = data.tokenize(
        load_once(get_profile("mini-agnews")).validation.select(range(2000)), tokenizer, merged.max_length
    )["input_ids"]
    with torch.inference_mode():
        for batch in batches_by_tokens([len(row) for row in rows], 1024):
            inputs = pad([rows[i] for i in batch], tokenizer.pad_token_id)
            found, wanted = merged.model(**inputs).logits, adapted(**inputs).logits
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
            assert torch.equal(found.argmax(dim=1), wanted.argmax(dim=1))


@pytest.fixture
def cached_data(monkeypatch, ag_news_dir):
    monkeypatch.setattr(training, "load_ag_news", load_once)
    monkeypatch.setattr(training, "tokenize", tokenize_once)


load_once = functools.cache(training.load_ag_news)
encoded = {}


def tokenize_once(rows, tokenizer, max_length):
    """`training.tokenize`, which takes seconds for all of AG News; the rows are those of `load_once`."""
    if id(rows) not in encoded:
        encoded[id(rows)] = data.tokenize(rows, tokenizer, max_length)
    return encoded[id(rows)]


@pytest.mark.slow
@pytest.mark.parametrize("step", [500, 1000, 1500])
def test_a_committed_checkpoint_resumes(step, cached_data, monkeypatch, tmp_path):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == step + 5

    stock, seen = trainer.make_trainer, {}

    def short(*arguments):
        seen["trainer"] = made = stock(*arguments)
        made.add_callback(Stop())
        return made

    def no_record(*arguments):
        raise InterruptedError("cut short")

    monkeypatch.setattr(trainer, "make_trainer", short)
    monkeypatch.setattr(training, "_make_record", no_record)
    start = CHECKPOINTS / "mini-agnews" / f"checkpoint-{step}"
    with pytest.raises(InputError, match="cut short"):
        training.train(get_profile("mini-agnews"), tmp_path / "run", resume_from=start)
    made, log = seen["trainer"], read_record(CHECKPOINTS / "mini-agnews")["log"]
    before = [[row for row in rows if row["step"] <= step] for rows in (made.state.log_history, log)]
    assert before[0] == before[1] and made.state.global_step == step + 5
    assert {int(each["step"]) for each in made.optimizer.state.values()} == {step + 5}


@pytest.mark.slow
def test_resuming_at_2000_ends_where_the_committed_run_ends(cached_data, monkeypatch, tmp_path):
    from safetensors.torch import load_file

    start = CHECKPOINTS / "mini-agnews" / "checkpoint-2000"
    record = training.train(get_profile("mini-agnews"), tmp_path / "run", resume_from=start)
    losses = [[row["eval_loss"] for row in validation_rows(each)] for each in (record, read_record(start.parent))]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    wanted, found, began = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (CHECKPOINTS / "mini-agnews" / "checkpoint-2400", tmp_path / "run" / "checkpoint-2400", start)
    )
    for name in wanted:  # bit-equal on the same processor; another one may round otherwise
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-3)
    assert max((wanted[name] - began[name]).abs().max() for name in wanted) > 1e-2  # the steps did move something


def test_the_evidence_supports_the_claims():
    evidence = read_evidence()
    agnews = read_record(CHECKPOINTS / "mini-agnews")
    assert agnews["test"]["accuracy"] >= 0.90 and agnews["test"]["examples"] == 7600
    assert evidence["mini-seeds"]["test_mean"] >= 0.85
    assert all(run["test_accuracy"] < 0.40 for run in evidence["shuffled-labels"]["runs"])
    assert evidence["random-base"]["variants"]["random"]["interval"][0] >= 0.10
    assert evidence["transfer"]["accuracy"] >= 0.75
    assert evidence["mpnet-resumed"]["same_bits"]  # its card says so
