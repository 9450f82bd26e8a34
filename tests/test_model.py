import hashlib
import json
import os
import shutil
import time
import tracemalloc
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lora_helpers.__main__ import main
from lora_helpers.bases import PARAMETERS, compute_first_token_alone, load_base, read_shape
from lora_helpers.config import MPNET_BASE, ROBERTA_BASE, get_profile
from lora_helpers.errors import InputError
from lora_helpers.files.hub import LOADED_FILES, base_identity
from lora_helpers.files.places import portable_name
from lora_helpers.inference import Classifier
from lora_helpers.model import (
    build_meta_model,
    build_model,
    count_parameters,
    longest_input,
    parameter_table,
    shape_of,
)
from lora_helpers.training.run import train


def test_roberta_base_has_the_published_counts_without_any_weights():
    model = build_meta_model(get_profile("original"))
    assert count_parameters(model) == {
        "lora": 36_864, "head": 593_668, "frozen": 124_055_040, "trainable": 630_532,
        "total": 124_685_572, "peft_all": 125_279_240,
    }  # fmt: skip
    assert model.get_nb_trainable_parameters() == (630_532, 125_279_240)
    assert round(100 * 630_532 / 125_279_240, 4) == 0.5033
    assert PARAMETERS[ROBERTA_BASE] == 124_685_572 - 36_864  # the base with a 4-class head


def test_mpnet_base_trains_as_many_numbers_as_roberta_base_counted_without_any_weights():
    """all-mpnet-base-v2 with a 4-class head: 12 layers x 7,087,872; embeddings 30,527 and 514 x 768 and a norm; 32
    relative positions x 12 heads; the head."""
    model = build_meta_model(get_profile("mpnet-base"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    base = 12 * 7_087_872 + (30_527 + 514 + 2) * 768 + 32 * 12 + 593_668
    assert base == PARAMETERS[MPNET_BASE]
    assert count_parameters(model) == {
        "lora": 36_864, "head": 593_668, "frozen": base - 593_668, "trainable": 630_532, "total": base + 36_864,
        "peft_all": base + 36_864 + 593_668,
    }  # fmt: skip
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0].split("layer.")[-1] for name in trainable if "lora" in name} == {
        f"{i}.attention.attn.q" for i in range(12)
    }


def test_counts_without_weights_are_those_of_the_model_itself(tiny_config):
    assert count_parameters(build_meta_model(tiny_config)) == count_parameters(build_model(tiny_config)[0])


def test_the_table_of_parameters_counts_each_once(tiny_config):
    model, _ = build_model(tiny_config)
    table, counts = parameter_table(model), count_parameters(model)
    assert (
        table["parameters"].to_dict()["all, each once"] == sum(p.numel() for p in model.parameters()) - counts["head"]
    )
    shares = table["% of all"].to_dict()
    assert shares["all, each once"] == 100 and shares["trainable"] + shares["frozen base"] == pytest.approx(
        100, abs=1e-3
    )
    assert shares["trainable"] == pytest.approx(100 * counts["trainable"] / counts["total"], abs=1e-4)


def test_a_checkpoint_is_saved_without_asking_the_hub_about_its_base(tiny_config, tmp_path, monkeypatch):
    def ask(*arguments, **named):
        raise AssertionError(f"asked about {arguments}")

    model, _ = build_model(tiny_config)
    model.peft_config["default"].base_model_name_or_path = "someone/model"
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", ask)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_real_mpnet_base_has_the_profiles_shape_and_bytes(monkeypatch):
    if not os.environ.get("MPNET_BASE_DIR"):
        pytest.skip("MPNET_BASE_DIR is not set: the weights of all-mpnet-base-v2 are not on this machine")
    config = get_profile("mpnet-base")
    identity = base_identity(config.base_model, config.base_revision)
    assert identity["weights_sha256"] == "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
    model, tokenizer = build_model(config)
    assert count_parameters(model) == count_parameters(build_meta_model(config)) and len(tokenizer) == 30_527


def test_exactly_the_adapters_and_the_head_are_trainable(tiny_config):
    model, _ = build_model(tiny_config)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    layer = "base_model.model.roberta.encoder.layer.{}.attention.self.query.lora_{}.default.weight"
    head = "base_model.model.classifier.modules_to_save.default.{}.{}"
    assert trainable == {layer.format(i, m) for i in (0, 1) for m in "AB"} | {
        head.format(part, kind) for part in ("dense", "out_proj") for kind in ("weight", "bias")
    }
    table = parameter_table(model)["parameters"]
    assert table["trainable"] == table["LoRA (A and B)"] + table["classification head"]


def test_at_the_start_the_adapter_changes_nothing_and_after_a_step_only_what_is_trained(tiny_config):
    model, tokenizer = build_model(tiny_config)
    batch = tokenizer(["oil prices rise", "coach quits"], return_tensors="pt", padding=True)
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        before = model(**batch).logits
    assert torch.equal(model(**batch).logits, before)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # B is zero, so A gets its first gradient in the second step
        model(**batch, labels=torch.tensor([2, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert not torch.equal(model(**batch).logits, before)
    assert all(p.any() for name, p in model.named_parameters() if "lora_B" in name)


def test_the_head_is_drawn_by_the_seed(tiny_config):
    def head(seed):
        return build_model(tiny_config.replace(seed=seed))[0].state_dict()[
            "base_model.model.classifier.modules_to_save.default.dense.weight"
        ]

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def tiny_mpnet():
    import transformers

    return transformers.MPNetConfig(
        vocab_size=16384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        initializer_range=0.2, hidden_dropout_prob=0.0, num_labels=4,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "behind"), [("roberta", "output"), ("mpnet", "LayerNorm")])
def test_computing_the_first_token_alone_changes_no_logit_and_no_gradient(kind, behind, tiny_base):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = (
        AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=4)
        if kind == "roberta"
        else AutoModelForSequenceClassification.from_config(tiny_mpnet())
    ).eval()
    batch = AutoTokenizer.from_pretrained(tiny_base)(["oil", "coach quits the club"], return_tensors="pt", padding=True)

    def compute():
        model.zero_grad()
        found = model(**batch, labels=torch.tensor([2, 1]), output_hidden_states=True)
        found.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return found.logits.detach(), gradients, found.hidden_states[-1].shape[1]

    logits, gradients, tokens = compute()
    with compute_first_token_alone(model):
        fast_logits, fast_gradients, fast_tokens = compute()
    assert tokens == batch["input_ids"].shape[1] > fast_tokens == 1
    torch.testing.assert_close(fast_logits, logits, atol=1e-6, rtol=1e-5)
    assert fast_gradients.keys() == gradients.keys() and len(gradients) > 30
    for name, gradient in gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, atol=1e-6, rtol=1e-4)
    place = getattr(model.base_model.encoder.layer[-1].attention, behind)
    with place.register_forward_pre_hook(lambda module, inputs: tuple(each[:, 1:2] for each in inputs)):
        assert not torch.allclose(compute()[0], logits, atol=1e-3)  # another token gives another answer


def test_every_loaded_base_computes_the_first_token_alone(tiny_config):
    model, tokenizer = build_model(tiny_config)
    hidden = model(**tokenizer(["coach quits"], return_tensors="pt"), output_hidden_states=True).hidden_states
    assert hidden[-1].shape[1] == 1 < hidden[0].shape[1]


def test_dropout_is_the_runs(tiny_config):
    model, _ = build_model(tiny_config.replace(base_dropout=0.3, lora_dropout=0.2))
    found = {("lora" in name, m.p) for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert found == {(False, 0.3), (True, 0.2)}


@pytest.mark.parametrize("dropout", [None, 0.0, 0.3])
def test_every_dropout_of_an_encoder_is_replaced_by_0_too_and_kept_if_none_is_given(dropout, tmp_path):
    from transformers import AlbertConfig, BertConfig, DistilBertConfig, GPT2Config, RobertaConfig

    for shape in (
        RobertaConfig(),
        DistilBertConfig(),
        BertConfig(classifier_dropout=0.2),
        AlbertConfig(),
        GPT2Config(),
    ):
        shape.save_pretrained(tmp_path)
        found = read_shape(tmp_path, dropout).to_dict()
        its = {name: value for name, value in found.items() if "drop" in name and value is not None}
        wanted = {name: value if dropout is None else dropout for name, value in shape.to_dict().items() if name in its}
        assert its == wanted and len(its) >= 2


def test_what_a_configuration_says_of_losses_and_outputs_is_dropped(tiny_base, tmp_path):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    said = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(said | {"problem_type": "regression", "return_dict": False}))
    model, tokenizer, _ = load_base(str(base), None)
    found = model(**tokenizer("oil", return_tensors="pt"), labels=torch.tensor([2]))
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, torch.tensor([2])))


def test_a_base_without_the_files_of_its_tokenizer_is_refused(tiny_base, tmp_path):
    """transformers makes a tokenizer up, to which all texts are alike."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text().replace('"1.0"', '"2.0"', 1))
    with pytest.raises(InputError, match="could not be loaded .Unknown tokenizer version '2.0'"):  # a bare Exception
        load_base(str(base), None)
    for path in (*base.glob("tokenizer*"), *base.glob("vocab*"), *base.glob("merges*")):
        path.unlink()
    with pytest.raises(InputError, match="base' brings no tokenizer; put its files there"):
        load_base(str(base), None)


def test_a_base_that_computes_its_positions_has_no_longest_input():
    for says in ({}, {"max_position_embeddings": None}, {"max_position_embeddings": -1}):  # Funnel, XLNet
        model = SimpleNamespace(named_modules=lambda: (), config=SimpleNamespace(**says))
        assert longest_input(model) == 2**31 - 1


def test_a_base_may_have_more_rows_of_embeddings_than_tokens(tiny_base, tmp_path):
    from transformers import AutoModelForMaskedLM

    shutil.copytree(tiny_base, tmp_path / "wide")
    model = AutoModelForMaskedLM.from_pretrained(tiny_base)
    model.resize_token_embeddings(model.config.vocab_size + 7, mean_resizing=False)
    model.save_pretrained(tmp_path / "wide")
    assert load_base(str(tmp_path / "wide"), None)[0].config.vocab_size == model.config.vocab_size


def test_everything_is_float32_whatever_the_file_holds(tiny_config):
    model, _ = build_model(get_profile("mini"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["DistilBert", "MPNet"])
def test_other_encoders_train_every_weight_that_they_did_not_bring(kind, tiny_base, tmp_path):
    import transformers
    from transformers import AutoTokenizer

    if kind == "DistilBert":
        shape = transformers.DistilBertConfig(vocab_size=16384, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
        target = "q_lin"
    else:
        shape = tiny_mpnet()
        target = "attn.q"
    getattr(transformers, f"{kind}Model")(shape).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    config = get_profile("mini", base_model=str(tmp_path), lora_targets=(target,))
    model, _ = build_model(config)
    _, _, missing = load_base(str(tmp_path), None)
    saved = set(model.peft_config["default"].modules_to_save) - {"score"}  # a name that PEFT adds to every SEQ_CLS
    assert {name.split(".")[0] for name in missing} == saved
    assert ("pre_classifier" in saved) == (kind == "DistilBert")


def test_a_new_weight_that_would_stay_frozen_is_refused(tiny_config, monkeypatch):
    from lora_helpers import model

    stock = model.make_lora_config

    def forgetful(config, heads):
        lora = stock(config, [])
        lora.modules_to_save, lora.task_type = None, None
        return lora

    monkeypatch.setattr(model, "make_lora_config", forgetful)
    with pytest.raises(InputError, match="would stay frozen"):
        model.build_model(tiny_config)


def test_a_base_that_names_no_feed_forward_size_has_a_shape_all_the_same():
    import transformers
    from peft import LoraConfig, get_peft_model

    shape = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(transformers.GPT2ForSequenceClassification(shape), lora)
    assert shape_of(model)["feed_forward_size"] == 128


def test_bad_bases_and_targets_are_one_line(tiny_config, tmp_path, monkeypatch):
    # A slip of the finger; a layer of the head alone, another encoder's query, what is not linear.
    there, others = "; there are dense, key, query, value$", ("out_proj", "q", "encoder", "word_embeddings")
    for idle, hint in (("valeu", r" \(did you mean 'value'\?\)"), *((name, "") for name in others)):
        for targets in ((idle,), ("query", idle)):
            with pytest.raises(InputError, match=f"the encoder has no linear layer called '{idle}'{hint}{there}"):
                build_model(tiny_config.replace(lora_targets=targets))
    whole = "roberta.encoder.layer.1.attention.self.query"
    model, _ = build_model(tiny_config.replace(lora_targets=(whole,)))
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert adapted == [f"base_model.model.{whole}"]
    with pytest.raises(InputError, match="could not be loaded"):
        build_model(tiny_config.replace(base_model=str(tmp_path)))
    monkeypatch.delenv("ROBERTA_BASE_DIR", raising=False)
    with pytest.raises(InputError, match="ROBERTA_BASE_DIR") as caught:
        load_base("FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b")
    assert "\n" not in str(caught.value)


def unsuitable(kind: str, folder, tiny_base):
    """A base of another kind in `folder`, with the tiny base's tokenizer; GPT-2's own has no padding token."""
    import transformers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    if kind.startswith("GPT2"):
        shape = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2)
        transformers.GPT2LMHeadModel(shape).save_pretrained(folder)
    elif kind == "BART":
        sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 32))}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        shape = transformers.BartConfig(vocab_size=len(tokenizer), d_model=32, **sizes, **heads)
        transformers.BartModel(shape).save_pretrained(folder)
    else:
        shape = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        transformers.ViTModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind == "GPT2":
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer", "pad_token": None}
        path.write_text(json.dumps(settings))
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("GPT2", "no padding token"), ("BART", "type bart, an encoder with a decoder"), ("ViT", "type vit, without such")],
)
def test_a_base_that_is_no_encoder_with_a_head_is_one_line(kind, said, tiny_base, tmp_path, capsys):
    base = unsuitable(kind, tmp_path / "base", tiny_base)
    command = ["train", "mini", "--base-model", base, "--output-dir", str(tmp_path / "run"), "--lora-targets", "c_attn"]
    capsys.readouterr()
    assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and "wanted an encoder for which" in lines[0]
    assert "restore" not in lines[0] and not (tmp_path / "run").exists()


def test_a_decoder_with_a_padding_token_finds_the_last_token_before_it(tiny_base, tmp_path):
    model, tokenizer, _ = load_base(unsuitable("GPT2 with padding", tmp_path / "base", tiny_base), None)
    model.eval()
    rows = tokenizer(["oil", "coach quits the club"], return_tensors="pt", padding=True)
    alone = tokenizer(["oil"], return_tensors="pt")
    torch.testing.assert_close(model(**rows).logits[:1], model(**alone).logits, atol=1e-5, rtol=1e-4)


def with_other_padding(tiny_base, folder):
    """The tiny base with its words in another order: <pad> is 0, where RoBERTa's is 1. BERT counts positions from 0."""
    import transformers
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    swap = {words["<s>"]: words["<pad>"], words["<pad>"]: words["<s>"]}
    words["<s>"], words["<pad>"] = words["<pad>"], words["<s>"]
    for token in content["added_tokens"]:
        token["id"] = swap.get(token["id"], token["id"])
    content["post_processor"]["cls"][1] = words["<s>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    shape = transformers.BertConfig(
        vocab_size=16384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=48, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertModel(shape).save_pretrained(folder)
    return str(folder)


def test_a_base_with_another_padding_id_and_texts_longer_than_its_positions(tiny_base, tmp_path):
    """Trained, saved, loaded and asked: a short text beside a long one gets what it gets alone, and nothing overruns."""
    base = with_other_padding(tiny_base, tmp_path / "base")
    _, tokenizer, _ = load_base(base, None)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, 1)
    config = get_profile(
        "mini", base_model=base, max_length=48, max_steps=2, eval_steps=2, save_steps=2, warmup_steps=0
    )
    with pytest.raises(InputError, match="has 48 positions"):
        train(config.replace(max_length=49), tmp_path / "too long")
    train(config, tmp_path / "run")
    classifier = Classifier.from_checkpoint(tmp_path / "run" / "checkpoint-2", max_length=500)
    assert classifier.max_length == 48
    long = "coach quits the club " * 100
    together = classifier.predict_probabilities(["oil", long, "", "bank"])
    alone = [classifier.predict_probabilities([text])[0] for text in ("oil", long, "", "bank")]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[3]).max() > 1e-4  # the text matters


def test_a_base_is_hashed_once_a_process_in_blocks_and_again_when_a_byte_changes(tmp_path, monkeypatch):
    size = 32 << 20  # bytes
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.truncate(size)
    (tmp_path / "config.json").write_text("{}")
    opened = []
    stock = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *rest, **more: opened.append(path.name) or stock(path, *rest, **more)
    )
    tracemalloc.start()
    try:
        first = base_identity(str(tmp_path), None)
        assert tracemalloc.get_traced_memory()[1] < size / 8
    finally:
        tracemalloc.stop()
    reads = len(opened)
    assert base_identity(str(tmp_path), None) == first and len(opened) - reads < 2  # the look for a pointer alone
    everything = b"config.json\0{}model.safetensors\0" + bytes(size)
    assert first["sha256"] == hashlib.sha256(everything).hexdigest()
    assert first["weights_sha256"] == hashlib.sha256(bytes(size)).hexdigest()
    time.sleep(0.05)  # file systems stamp with the clock's tick
    before = (tmp_path / "model.safetensors").stat()
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.write(b"1")
    os.utime(tmp_path / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))  # as an unpacked archive may
    changed = base_identity(str(tmp_path), None)
    assert changed["sha256"] != first["sha256"] and changed["weights_sha256"] != first["weights_sha256"]


def test_names_are_portable_and_identities_follow_the_bytes(tiny_base):
    assert portable_name("checkpoints/roberta-mini") == "checkpoints/roberta-mini"
    assert portable_name("FacebookAI/roberta-base") == "FacebookAI/roberta-base"
    before = base_identity(str(tiny_base), None)["sha256"]
    config = tiny_base / "config.json"
    text = config.read_text()
    config.write_text(text + " ")
    assert base_identity(str(tiny_base), None)["sha256"] != before
    config.write_text(text)
    assert base_identity(str(tiny_base), None)["sha256"] == before
    assert base_identity(str(tiny_base), "0a" * 20)["revision"] is None  # a folder has none, whatever was asked for


def test_all_that_tokenises_is_fetched_and_identifies_a_base(tiny_base, tmp_path):
    base, names = shutil.copytree(tiny_base, tmp_path / "base"), ("vocab.txt", "vocab.json", "merges.txt", "spm.model")
    seen = [base_identity(str(base), None)["sha256"]]
    for name in (*names, "tokenizer_config.json"):
        (base / name).write_text("other")
        seen.append(base_identity(str(base), None)["sha256"])
        assert any(fnmatch(name, pattern) for pattern in LOADED_FILES)
    assert len({*seen}) == len(seen)


def test_several_targets_are_written_in_one_order(tiny_config, tmp_path):
    """PEFT keeps them as a set, whose order changes from process to process."""
    names = ("value", "attention.output.dense", "query", "key")
    model, _ = build_model(tiny_config.replace(lora_targets=names))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == sorted(names)


def test_special_tokens_of_which_two_files_differ_are_refused(tiny_base, tmp_path):
    """transformers would take them from the file that no checkpoint's base is identified by."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    path = base / "special_tokens_map.json"
    path.write_text(json.dumps({"mask_token": {"content": "<mask>", "lstrip": True}, "sep_token": "</s>"}))
    load_base(str(base), None)
    said = json.loads((base / "tokenizer_config.json").read_text())  # as other versions write it
    said["sep_token"] = {"__type": "AddedToken", "content": "</s>"}
    said["added_tokens_decoder"] = {"2": {"content": "</s>", "special": True}}
    (base / "tokenizer_config.json").write_text(json.dumps(said))
    load_base(str(base), None)
    del said["added_tokens_decoder"]  # beside which transformers reads no other file
    (base / "tokenizer_config.json").write_text(json.dumps(said))
    path.write_text(json.dumps({"sep_token": "the"}))
    with pytest.raises(InputError, match="loads 'the' as its sep_token, where its tokenizer_config.json says '</s>'"):
        load_base(str(base), None)
