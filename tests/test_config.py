import json
from dataclasses import fields, make_dataclass

import pytest

from lora_helpers.config import (
    AG_NEWS_REVISION,
    PROFILES,
    ROBERTA_BASE_REVISION,
    InputError,
    RunConfig,
    describe_fields,
    get_profile,
)
from lora_helpers.field_checks import RANGES, parse_field, require_valid, setting
from lora_helpers.pretraining.config import PretrainingConfig


def test_the_original_profile_is_the_published_recipe():
    c = get_profile("original")
    assert (c.lora_rank, c.lora_alpha, c.lora_dropout, c.lora_targets) == (2, 4, 0.05, ("query",))
    assert (c.learning_rate, c.batch_size, c.max_steps, c.eval_steps, c.save_steps) == (5e-5, 16, 2400, 100, 500)
    assert (c.validation_size, c.split_seed, c.stratified, c.seed) == (640, 42, False, 42)
    assert (c.adam_beta1, c.adam_beta2, c.adam_epsilon, c.weight_decay, c.max_grad_norm) == (0.9, 0.999, 1e-8, 0, 1)
    assert (c.base_revision, c.dataset_revision) == (ROBERTA_BASE_REVISION, AG_NEWS_REVISION)
    assert (c.batch_order, c.warmup_steps, c.lr_scheduler_type) == ("random", 0, "linear")
    assert (c.mixed_precision, c.max_length, c.base_dropout, c.eval_batch_size) == (False, 512, 0.1, 64)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_configuration_survives_json(profile):
    config = PROFILES[profile]
    assert RunConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("profile", ["mini-agnews", "roberta-base"])
def test_the_recipe_of_our_headline_profiles(profile):
    c = get_profile(profile)
    assert (c.lora_rank, c.lora_targets, c.max_steps, c.save_steps) == (2, ("query",), 2400, 500)
    its = {"mini-agnews": (32, 2e-3, 0.08), "roberta-base": (16, 5e-4, 0.0)}[profile]
    assert (c.batch_size, c.learning_rate, c.validation_share, c.warmup_steps) == (*its, 100)
    assert (c.base_dropout, c.batch_order, c.mixed_precision, c.stratified) == (0.0, "length-grouped", True, True)


def test_who_asks_for_a_number_of_validation_rows_gets_it():
    assert get_profile("mini-agnews", validation_size=100).validation_share == 0
    assert get_profile("mini-agnews", seed=7).validation_share == 0.08


@pytest.mark.parametrize(
    "fields", [{"validation_size": 100, "validation_share": 0.2}, {"split_seed": 7}, {"stratified": False}]
)
def test_what_a_hash_makes_idle_is_refused(fields):
    with pytest.raises(InputError, match=f"^{next(iter(fields))}: without effect beside validation_share"):
        get_profile("mini-agnews", **fields)
    assert get_profile("mini-agnews", **fields | {"validation_share": 0.0})


def test_what_changes_no_number_is_no_difference():
    config = get_profile("mini", report_to="tensorboard", eval_batch_size=7, committed_rows=True)
    younger = ("committed_rows", "validation_share")
    older = {name: value for name, value in get_profile("mini").to_dict().items() if name not in younger}
    shared = {"validation_share": (0.1, 0.0)}  # what an older run had, though its record does not say so
    assert get_profile("mini", validation_share=0.1).differences(older) == shared
    assert config.differences(older) == {}
    assert config.replace(seed=7).differences(older) == {"seed": (7, 42)}
    assert config.differences({name: value for name, value in older.items() if name != "seed"}) == {"seed": (42, None)}


def test_full_is_called_roberta_base_now():
    """In this field "full" is full fine-tuning; who types the old name is told the new one."""
    with pytest.raises(InputError, match="unknown profile 'full' .it is called 'roberta-base' now.; there are mini, "):
        get_profile("full")


def test_an_unknown_profile_gets_the_nearest_known_one():
    with pytest.raises(InputError, match="did you mean 'mini'"):
        get_profile("minni")


def test_a_hub_name_with_a_commit_is_taken():
    named = get_profile("mini", base_model="someone/some-model", base_revision="0a" * 20)
    assert named.base_revision == "0a" * 20
    assert named.replace(base_model="someone/some-model", seed=1).base_revision == "0a" * 20  # the same base


def test_another_data_set_drops_the_old_commit(tmp_path):
    assert get_profile("original", dataset=str(tmp_path)).dataset_revision is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_steps", "60", 60), ("learning_rate", "1e-3", 1e-3), ("lora_targets", "query,value", ("query", "value")),
        ("stratified", "true", True), ("base_revision", "none", None), ("max_steps", "many", "many"),
        ("lora_targets", "query, value", ("query", "value")), ("stratified", "False", False),
    ],
)  # fmt: skip
def test_the_command_line_gives_fields_their_type(name, text, value):
    assert parse_field(RunConfig, name, text) == value


# A field is said once


@pytest.mark.parametrize("config", [RunConfig, PretrainingConfig])
def test_every_field_says_group_range_and_meaning(config):
    for field in fields(config):
        assert field.metadata["range"] in RANGES.values(), field.name
        assert field.metadata["group"] and field.metadata["help"], field.name
        assert field.metadata["help"] == field.metadata["help"].strip(".") and "|" not in field.metadata["help"]


def test_a_field_without_a_range_cannot_be_made_or_checked():
    """Never silently unchecked: no setting without the name of a range, no check of a field that is no setting."""
    with pytest.raises(KeyError, match="steep"):
        setting("data", 1, "steep", "how steep")
    with pytest.raises(KeyError, match="range"):
        require_valid(make_dataclass("Bare", [("steps", "int", 3)])(), "bare", lambda config: [])


@pytest.mark.parametrize("profile", PROFILES)
def test_a_described_value_is_what_the_command_line_takes(profile):
    rows = describe_fields(PROFILES[profile])
    assert [row["field"] for row in rows] == list(PROFILES[profile].to_dict())
    assert (
        RunConfig(**{row["field"]: parse_field(RunConfig, row["field"], row["value"]) for row in rows})
        == PROFILES[profile]
    )


def test_a_described_field_stands_in_its_group_with_unit_and_help():
    rows = {row["field"]: row for row in describe_fields(PROFILES["mini"])}
    assert rows["max_length"] == {
        "group": "data", "field": "max_length", "value": "128", "unit": "tokens",
        "help": "longest example, special tokens included; the rest is cut off",
    }  # fmt: skip
    assert list(dict.fromkeys(row["group"] for row in rows.values())) == [
        "profile", "data", "model", "LoRA", "optimisation", "batches and evaluation",
    ]  # fmt: skip
    assert (rows["base_revision"]["value"], rows["stratified"]["value"]) == ("none", "true")
    assert "validation loss is smoothed too" in rows["label_smoothing_factor"]["help"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"vocab_size": 260}, "vocab_size is 260, wanted at least 261"),
        ({"mask_share": 0.0}, "mask_share is 0.0, wanted above 0, below 1"),
        ({"mask_share": 1.0}, "mask_share is 1.0, wanted above 0, below 1"),
        ({"seed": -1, "hidden_size": "wide"}, "hidden_size is 'wide', wanted int; seed is -1, wanted 0 or more"),
        ({"hidden_size": 250}, r"hidden_size is 250, wanted a multiple of num_attention_heads \(4\)"),
    ],
)
def test_a_pretraining_field_out_of_range_is_named(changes, wanted):
    with pytest.raises(InputError, match=f"^pretraining: {wanted}"):
        PretrainingConfig(**changes)
