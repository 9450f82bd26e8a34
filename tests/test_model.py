import pytest
import torch

from lora_helpers.bases import compute_first_token_alone, load_base
from lora_helpers.config import get_profile
from lora_helpers.errors import InputError
from lora_helpers.files.hub import base_identity
from lora_helpers.files.places import portable_name
from lora_helpers.model import build_meta_model, build_model, count_parameters, parameter_table


def test_roberta_base_has_the_published_counts_without_any_weights():
    model = build_meta_model(get_profile("original"))
    assert count_parameters(model) == {
        "lora": 36_864, "head": 593_668, "frozen": 124_055_040, "trainable": 630_532,
        "total": 124_685_572, "peft_all": 125_279_240,
    }  # fmt: skip
    assert model.get_nb_trainable_parameters() == (630_532, 125_279_240)
    assert round(100 * 630_532 / 125_279_240, 4) == 0.5033
    assert 124_685_572 - 36_864 == 124_648_708  # the base with a 4-class head


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


def test_computing_the_first_token_alone_changes_no_logit_and_no_gradient(tiny_base):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=4).eval()
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
    assert fast_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, atol=1e-6, rtol=1e-4)
    behind = model.roberta.encoder.layer[-1].attention.output
    with behind.register_forward_pre_hook(lambda module, inputs: tuple(each[:, 1:2] for each in inputs)):
        assert not torch.allclose(compute()[0], logits, atol=1e-3)  # another token gives another answer


def test_every_loaded_base_computes_the_first_token_alone(tiny_config):
    model, tokenizer = build_model(tiny_config)
    hidden = model(**tokenizer(["coach quits"], return_tensors="pt"), output_hidden_states=True).hidden_states
    assert hidden[-1].shape[1] == 1 < hidden[0].shape[1]


def test_dropout_is_the_runs(tiny_config):
    model, _ = build_model(tiny_config.replace(base_dropout=0.3))
    assert {m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and "lora" not in n} == {0.3}


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
        shape = transformers.MPNetConfig(
            vocab_size=16384, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
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


def test_bad_bases_and_targets_are_one_line(tiny_config, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="lora_targets"):
        build_model(tiny_config.replace(lora_targets=("qery",)))
    with pytest.raises(InputError, match="could not be loaded"):
        build_model(tiny_config.replace(base_model=str(tmp_path)))
    monkeypatch.delenv("ROBERTA_BASE_DIR", raising=False)
    with pytest.raises(InputError, match="ROBERTA_BASE_DIR") as caught:
        load_base("FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b")
    assert "\n" not in str(caught.value)


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
