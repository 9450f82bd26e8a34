"""Checkpoints that stock PEFT wrote: all of it is loaded, or nothing."""

import copy
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_helpers import bases
from lora_helpers.checkpoints import ADAPTER_CONFIG, MANIFEST, WEIGHTS, verify_checkpoint
from lora_helpers.config import ROBERTA_BASE, ROBERTA_BASE_REVISION
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.export import export_checkpoint
from lora_helpers.files.places import REPOSITORY
from lora_helpers.inference import Classifier

TEXTS = ["Central bank raises rates", "Striker scores twice in the final", "New telescope finds a planet"]

STOCK = {
    "query": {"target_modules": ["query"]},
    "query and value": {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 16},
    "every linear layer": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r".*layer\.1\.attention\.self\.(key|value)"},
    "the head named too": {"target_modules": ["dense", "out_proj"]},  # PEFT of today leaves the head alone
    "embeddings": {"target_modules": ["query", "word_embeddings"]},
    "patterns": {
        "target_modules": ["query", "value"], "rank_pattern": {"layer.0.attention.self.query": 5},
        "alpha_pattern": {"value": 7},
    },
    "one layer": {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"},
    "all biases": {"target_modules": ["query"], "bias": "all"},
    "biases of the adapted layers": {"target_modules": ["query"], "bias": "lora_only"},
    "biases of the adapters": {"target_modules": ["query"], "lora_bias": True},
    "rank-stabilised": {"target_modules": ["query"], "use_rslora": True, "r": 4},
    "DoRA": {"target_modules": ["query", "value"], "use_dora": True},
    "norms saved too": {"target_modules": ["query"], "modules_to_save": ["classifier", "LayerNorm"]},
    "a base changed at the start": {"target_modules": ["query"], "init_lora_weights": "pissa"},
}  # fmt: skip


@dataclass
class Stock:
    """An adapter as stock PEFT left it: its folder, and logits <float32>[3, 4] in memory, trained and not."""

    folder: Path
    logits: torch.Tensor
    untrained: torch.Tensor


@pytest.fixture(scope="module")
def rows(tiny_base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)(TEXTS, padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def train_stock(tiny_base, rows, tmp_path_factory):
    """A function that trains stock PEFT with the given fields of `LoraConfig` for three steps, or did so before, and
    saves a copy to spoil."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    base, trained = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=4), {}

    def train(fields: dict) -> Stock:
        torch.manual_seed(1)
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**{"task_type": "SEQ_CLS", "r": 2} | fields))
        with torch.no_grad():
            untrained = model.eval()(**rows).logits
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        for _ in range(3):
            model(**rows, labels=torch.tensor([2, 1, 3])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        folder = tmp_path_factory.mktemp("stock")
        model.save_pretrained(folder)
        with torch.no_grad():
            return Stock(folder, model(**rows).logits, untrained)

    def train_once(**fields) -> Stock:
        name = repr(fields)
        made = trained[name] = trained.get(name) or train(fields)
        return replace(made, folder=shutil.copytree(made.folder, tmp_path_factory.mktemp("copy") / "stock"))

    return train_once


@pytest.fixture(scope="module")
def stock(train_stock):
    """Rank 2 on the queries, written by stock PEFT, verified."""
    made = train_stock(**STOCK["query"])
    verify_checkpoint(made.folder)
    return made


@pytest.fixture
def foreign(stock, tmp_path):
    """A copy to spoil; what it is a copy of was verified."""
    return Path(shutil.copytree(stock.folder, tmp_path / "foreign"))


def logits(classifier, rows):
    with torch.no_grad():
        return classifier.model(**{name: t.to(classifier.device) for name, t in rows.items()}).logits.cpu()


def change_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def change_config(folder, **fields):
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", STOCK)
def test_what_stock_peft_saved_computes_the_same_here(train_stock, rows, name):
    made = train_stock(**STOCK[name])
    classifier = Classifier.from_checkpoint(made.folder)
    torch.testing.assert_close(logits(classifier, rows), made.logits, atol=1e-5, rtol=0)
    assert (made.logits - made.untrained).abs().max() > 1e-2  # not what any untrained adapter computes
    assert len(classifier.verification.notices) == 1 and "no manifest" in classifier.verification.notices[0]
    assert classifier.verification.tensors == len(load_file(made.folder / WEIGHTS))


OLD_FIELDS = {  # all that PEFT 0.3 wrote
    *("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha"),
    *("lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type"),
}


@pytest.mark.parametrize(
    "unknown",
    [
        {},  # PEFT 0.3
        {"enable_lora": None, "merge_weights": False},  # 0.2
        {"a_field_of_the_future": {"depth": 3}, "runtime_config": {"ephemeral_gpu_offload": False}},
    ],
)
def test_configurations_of_other_versions_are_read_and_what_is_ignored_is_named(stock, foreign, rows, unknown):
    path = foreign / ADAPTER_CONFIG
    old = {name: value for name, value in json.loads(path.read_text()).items() if name in OLD_FIELDS}
    assert set(old) == OLD_FIELDS
    path.write_text(json.dumps(old | {"modules_to_save": None} | unknown))  # PEFT adds the head of a SEQ_CLS itself
    classifier = Classifier.from_checkpoint(foreign)
    torch.testing.assert_close(logits(classifier, rows), stock.logits, atol=1e-5, rtol=0)
    assert all(f"{name} = " in " ".join(classifier.verification.notices) for name in unknown)
    assert len(classifier.verification.notices) == 1 + bool(unknown)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load_as_float32(stock, foreign, rows, dtype):
    change_weights(foreign, lambda weights: weights.update({name: t.to(dtype) for name, t in weights.items()}))
    classifier = Classifier.from_checkpoint(foreign)
    assert {p.dtype for p in classifier.model.parameters()} == {torch.float32}
    head = classifier.model.classifier.out_proj.weight.cpu()
    saved = load_file(stock.folder / WEIGHTS)["base_model.model.classifier.out_proj.weight"]
    assert torch.equal(head, saved.to(dtype).float())
    torch.testing.assert_close(logits(classifier, rows), stock.logits, atol=0.1, rtol=0)  # bf16 has 8 bits


def drop(*parts):
    def change(weights):
        for name in [name for name in weights if any(part in name for part in parts)]:
            del weights[name]

    return change


def put(part, **change):
    """Set the first tensor whose name contains `part` to `value`, or one number of it to `number`."""

    def set_it(weights):
        name = next(name for name in weights if part in name)
        if "value" in change:
            weights[name] = change["value"]
        else:
            weights[name].view(-1)[-1] = change["number"]

    return set_it


def nest_head(weights):
    """The head as LoRA on it, *and* saved in full, was written: PEFT reloads that at chance accuracy."""
    for part, width in (("dense", 32), ("out_proj", 4)):
        for kind in ("weight", "bias"):
            weights[f"{HEAD}.{part}.base_layer.{kind}"] = weights.pop(f"{HEAD}.{part}.{kind}")
        weights[f"{HEAD}.modules_to_save.{part}.lora_A.weight"] = torch.ones(2, 32)
        weights[f"{HEAD}.modules_to_save.{part}.lora_B.weight"] = torch.ones(width, 2)


def add(name, *shape):
    return lambda weights: weights.update({name: torch.ones(shape)})


HEAD = "base_model.model.classifier"
QUERY = "base_model.model.roberta.encoder.layer.1.attention.self.query"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (drop("classifier"), [f"missing {HEAD}.{p}.{k}" for p in ("dense", "out_proj") for k in ("bias", "weight")]),
        (drop("classifier.dense"), [f"missing {HEAD}.dense.bias", f"missing {HEAD}.dense.weight"]),
        (drop("layer.1."), [f"missing {QUERY}.lora_A.weight", f"missing {QUERY}.lora_B.weight"]),
        (drop("layer.1.attention.self.query.lora_A"), [f"missing {QUERY}.lora_A.weight"]),
        (nest_head, [f"missing {HEAD}.dense.bias", f"missing {HEAD}.out_proj.weight", "and 6 more"]),
        (add(f"{HEAD}.modules_to_save.dense.lora_A.weight", 2, 32), [f"unexpected {HEAD}.modules_to_save.dense.lora_A"]),
        (add("base_model.model.lm_head.weight", 9, 32), ["unexpected base_model.model.lm_head.weight"]),
        (put("lora_A", number=float("nan")), ["lora_A.weight holds NaN or infinity"]),
        (put("out_proj.bias", number=float("-inf")), [f"{HEAD}.out_proj.bias holds NaN or infinity"]),
        (put("lora_A", value=torch.ones(3, 32)), ["shape (3, 32), wanted (2, 32)"]),
        (put("lora_A", value=torch.ones(2, 48)), ["shape (2, 48), wanted (2, 32)"]),
        (put("out_proj.weight", value=torch.ones(2, 32)), ["shape (2, 32), wanted (4, 32)"]),  # a head of two classes
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_would_load_only_partly_is_refused_with_its_keys(foreign, change, messages):
    change_weights(foreign, change)
    with pytest.raises(CheckFailed) as caught:
        verify_checkpoint(foreign)
    assert all(message in str(caught.value) for message in messages) and "\n" not in str(caught.value)


def test_a_random_layer_that_stock_peft_did_not_save_is_refused(tiny_base, tmp_path):
    """DeBERTa's `pooler` is drawn anew at every load; stock PEFT saves the `classifier` alone unless told."""
    from peft import LoraConfig, get_peft_model
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Model

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base, ignore=lambda *_: ["config.json", "model.safetensors"])
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    shape = DebertaV2Config(vocab_size=16384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    DebertaV2Model(shape).save_pretrained(base)
    model = DebertaV2ForSequenceClassification.from_pretrained(base, num_labels=4)
    for name, modules in (("told", ["pooler"]), ("stock", None)):
        lora = LoraConfig(task_type="SEQ_CLS", target_modules=["query_proj"], modules_to_save=modules)
        get_peft_model(copy.deepcopy(model), lora).save_pretrained(tmp_path / name)
    verify_checkpoint(tmp_path / "told")
    with pytest.raises(CheckFailed, match="missing base_model.model.pooler.dense.bias; .*pooler.dense.weight"):
        verify_checkpoint(tmp_path / "stock")


def rename(pattern, replacement):
    def change(weights):
        for name in [name for name in weights if re.search(pattern, name)]:
            weights[re.sub(pattern, replacement, name)] = weights.pop(name)

    return change


SPELLINGS = {  # how get_peft_model_state_dict of another version calls what today's calls otherwise
    "0.3 to 0.15, all biases": ("all biases", rename(r"modules_to_save\.default\.", "modules_to_save.")),
    "without the copies": ("all biases", drop(".modules_to_save.", ".original_module.")),
    "0.3 and 0.5, biases of the linear layers": ("all biases", rename(r"\.base_layer\.bias$", ".bias")),
    "0.5, biases of the adapted layers": ("biases of the adapted layers", rename(r"\.base_layer\.bias$", ".bias")),
    "a head named by where it lies": ("query", rename(r"classifier\.", "classifier.modules_to_save.")),
    "and by the adapter's name": ("query", rename(r"classifier\.", "classifier.modules_to_save.default.")),
    "a vector of DoRA as a module": ("DoRA", rename(r"lora_magnitude_vector$", "lora_magnitude_vector.weight")),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_complete_file_of_another_peft_version_computes_the_same(train_stock, rows, name):
    stock, change = SPELLINGS[name]
    made = train_stock(**STOCK[stock])
    before = set(load_file(made.folder / WEIGHTS))
    change_weights(made.folder, change)
    assert set(load_file(made.folder / WEIGHTS)) != before
    classifier = Classifier.from_checkpoint(made.folder)
    torch.testing.assert_close(logits(classifier, rows), made.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "loss", "missing"),
    [
        ("all biases", drop("classifier.dense.bias", "modules_to_save.default.dense.bias"), f"{HEAD}.dense.bias"),
        ("all biases", drop("classifier.modules_to_save", "classifier.dense", "classifier.out_proj"), "weight; .*"),
        ("all biases", drop("query.base_layer.bias"), "query.base_layer.bias"),
        ("biases of the adapted layers", drop("base_layer.bias"), "query.base_layer.bias"),  # as PEFT 0.6 to 0.15 wrote
        ("DoRA", drop("lora_magnitude_vector"), "lora_magnitude_vector"),
    ],
)
def test_a_partial_file_is_refused_however_the_rest_is_spelt(train_stock, name, loss, missing):
    """A copy of the untrained head is none of the trained one."""
    made = train_stock(**STOCK[name])
    verify_checkpoint(made.folder)
    change_weights(made.folder, loss)
    with pytest.raises(CheckFailed, match=f"missing .*{missing}"):
        verify_checkpoint(made.folder)


def test_the_copies_beside_a_trained_head_count_for_nothing(train_stock, rows):
    made = train_stock(**STOCK["all biases"])
    change_weights(
        made.folder, lambda w: w.update({n: t + 1 for n, t in w.items() if "modules_to_save" in n or "original_" in n})
    )
    classifier = Classifier.from_checkpoint(made.folder)
    torch.testing.assert_close(logits(classifier, rows), made.logits, atol=1e-5, rtol=0)


def test_roberta_base_by_its_short_name_is_the_pinned_one_and_has_the_same_stand_in(foreign, tiny_base, monkeypatch):
    monkeypatch.setenv("ROBERTA_BASE_DIR", str(tiny_base))
    monkeypatch.setattr(bases, "PARAMETERS", {})
    wanted = verify_checkpoint(foreign)
    change_config(foreign, base_model_name_or_path="roberta-base")
    found = verify_checkpoint(foreign)
    assert (found.tensors, found.notices) == (wanted.tensors, wanted.notices)
    monkeypatch.delenv("ROBERTA_BASE_DIR")
    with pytest.raises(InputError, match=f"model {ROBERTA_BASE} at {ROBERTA_BASE_REVISION} .*set ROBERTA_BASE_DIR to"):
        verify_checkpoint(foreign)


def write_base(tiny_base, folder, **shape):
    """The tiny base with another shape, as a folder."""
    from transformers import AutoConfig, RobertaForMaskedLM

    shutil.copytree(tiny_base, folder)
    RobertaForMaskedLM(AutoConfig.from_pretrained(tiny_base, **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden_size": 48}, r"shape \(2, 32\), wanted \(2, 48\)"),
        ({"num_hidden_layers": 1}, r"unexpected .*layer\.1"), ({"num_hidden_layers": 3}, r"missing .*layer\.2"),
    ],
)  # fmt: skip
def test_a_base_of_another_shape_is_refused(foreign, tiny_base, tmp_path, shape, message):
    base = write_base(tiny_base, tmp_path / "base", **shape)
    change_config(foreign, base_model_name_or_path=str(base))
    with pytest.raises(CheckFailed, match=message):
        verify_checkpoint(foreign)


def test_a_base_of_another_vocabulary_is_refused(foreign, tiny_base, tmp_path):
    """All that tells is the tokenizer beside the adapter, which `Trainer` saves and PEFT alone does not."""
    shutil.copy(tiny_base / "tokenizer.json", foreign)
    verify_checkpoint(foreign)
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    content = json.loads((base / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["Ġthe"], words["Ġof"] = words["Ġof"], words["Ġthe"]
    (base / "tokenizer.json").write_text(json.dumps(content))
    change_config(foreign, base_model_name_or_path=str(base))
    with pytest.raises(CheckFailed, match="another vocabulary"):
        Classifier.from_checkpoint(foreign)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 4}, {"r": 0}, {"r": "two"}, {"lora_alpha": None}, {"lora_dropout": 2}, {"target_modules": "[("},
        {"target_modules": ["key"]}, {"target_modules": ["nothing"]}, {"target_modules": 3}, {"bias": "some"},
        {"rank_pattern": [1]}, {"modules_to_save": "classifier"}, {"use_dora": True}, {"bias": "lora_only"},
        {"megatron_config": {"a": 1}, "megatron_core": "this"}, {"init_lora_weights": "corda"},
        {"peft_type": "IA3"}, {"task_type": "CAUSAL_LM"}, {"task_type": None}, {"base_model_name_or_path": None},
    ],
    ids=str,
)  # fmt: skip
def test_another_configuration_than_the_weights_were_made_with_is_one_line(foreign, fields):
    change_config(foreign, **fields)
    with pytest.raises(CheckFailed) as caught:
        verify_checkpoint(foreign)
    assert str(foreign) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha"])
def test_a_configuration_without_what_every_version_writes_is_refused(foreign, name):
    content = json.loads((foreign / ADAPTER_CONFIG).read_text())
    del content[name]
    (foreign / ADAPTER_CONFIG).write_text(json.dumps(content))
    with pytest.raises(CheckFailed, match=f"{name} missing"):
        verify_checkpoint(foreign)


def test_what_stock_peft_saves_but_cannot_load_is_one_line(train_stock):
    made = train_stock(target_modules=["query"], modules_to_save=["classifier.dense", "classifier.out_proj"])
    with pytest.raises(CheckFailed, match="PEFT cannot apply it") as caught:
        Classifier.from_checkpoint(made.folder)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_was_never_trained_gets_a_notice(stock, foreign):
    assert not any("never trained" in notice for notice in verify_checkpoint(stock.folder).notices)
    change_weights(foreign, lambda w: w.update({n: torch.zeros_like(t) for n, t in w.items() if "lora_B" in n}))
    assert "lora_B is all zero in 2 layers" in " ".join(verify_checkpoint(foreign).notices)


def test_foreign_weights_that_are_cut_short_are_refused(foreign):
    data = (foreign / WEIGHTS).read_bytes()
    for length in (0, 4, 100, len(data) // 2, len(data) - 1):
        (foreign / WEIGHTS).write_bytes(data[:length])
        with pytest.raises(CheckFailed, match="not a safetensors file"):
            verify_checkpoint(foreign)


def test_a_base_that_is_not_here_is_named_as_it_is_written(foreign):
    for name in ("/home/someone/roberta", "../roberta", "C:\\models\\roberta"):
        change_config(foreign, base_model_name_or_path=name)
        with pytest.raises(InputError) as caught:
            verify_checkpoint(foreign)
        assert name in str(caught.value).replace("\\\\", "\\") and "\n" not in str(caught.value)
        assert str(caught.value).endswith("a folder that is not here; write where it is, or its name on the Hub")


def test_committed_and_foreign_checkpoints_load_from_any_folder_without_asking_the_hub(tmp_path, monkeypatch):
    import peft.utils.save_and_load

    committed = REPOSITORY / "checkpoints" / "mini" / "checkpoint-300"
    foreign = Path(shutil.copytree(committed, tmp_path / "foreign"))
    (foreign / MANIFEST).unlink()
    assert json.loads((foreign / ADAPTER_CONFIG).read_text())["base_model_name_or_path"] == "checkpoints/roberta-mini"
    monkeypatch.chdir(REPOSITORY)
    wanted = Classifier.from_checkpoint("checkpoints/mini/checkpoint-300").predict_probabilities(TEXTS)
    asked = []
    monkeypatch.setattr(peft.utils.save_and_load, "check_file_exists_on_hf_hub", lambda *name, **_: asked.append(name))
    monkeypatch.chdir(tmp_path)
    for checkpoint in (committed, "foreign"):
        found = Classifier.from_checkpoint(checkpoint).predict_probabilities(TEXTS)
        assert (found == wanted).all()
    assert not asked


@pytest.mark.parametrize("place", ["base", "adapter"])
def test_classes_of_ours_in_another_order_are_refused(foreign, tiny_base, tmp_path, place):
    """Stock PEFT would call the first class by the name that this configuration gives it."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base")) if place == "base" else foreign
    change_config(foreign, base_model_name_or_path=str(tmp_path / "base" if place == "base" else tiny_base))
    path = folder / "config.json"
    shape = json.loads(path.read_text()) if path.exists() else {}
    for names, fits in (
        (["world", "Sports", "business", "sci tech"], True),
        (["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"], True),
        (["Business", "World", "Sports", "Sci/Tech"], False),
    ):
        path.write_text(json.dumps(shape | {"id2label": {str(i): name for i, name in enumerate(names)}}))
        if fits:
            verify_checkpoint(foreign)
        else:
            with pytest.raises(CheckFailed, match="its classes are Business, World, Sports, Sci/Tech; wanted World"):
                verify_checkpoint(foreign)


def test_a_rank_that_patterns_replace_everywhere_may_be_larger_than_any_adapter(train_stock, rows):
    made = train_stock(target_modules=["query"], r=16, rank_pattern={"query": 4})
    torch.testing.assert_close(logits(Classifier.from_checkpoint(made.folder), rows), made.logits, atol=1e-5, rtol=0)


def test_a_base_that_lies_beside_a_moved_adapter_is_found(foreign, tiny_base, tmp_path):
    """As `export --adapter` leaves it, whose absolute path ends with the move."""
    wanted = Classifier.from_checkpoint(foreign).predict_probabilities(TEXTS)
    change_config(foreign, base_model_name_or_path="/home/someone/exported/base")
    shutil.copytree(tiny_base, foreign / "base")
    assert (Classifier.from_checkpoint(foreign).predict_probabilities(TEXTS) == wanted).all()
    again = export_checkpoint(foreign, tmp_path / "again", form="adapter")
    assert (Classifier.from_checkpoint(again).predict_probabilities(TEXTS) == wanted).all()
