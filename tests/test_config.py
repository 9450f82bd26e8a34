import json

import pytest

from lora_helpers.config import (
    AG_NEWS_REVISION,
    PROFILES,
    ROBERTA_BASE_REVISION,
    InputError,
    RunConfig,
    get_profile,
    parse_field,
)


def test_the_original_profile_is_the_published_recipe():
    c = get_profile("original")
    assert (c.lora_rank, c.lora_alpha, c.lora_dropout, c.lora_targets) == (2, 4, 0.05, ("query",))
    assert (c.learning_rate, c.batch_size, c.max_steps, c.eval_steps, c.save_steps) == (5e-5, 16, 2400, 100, 500)
    assert (c.validation_size, c.split_seed, c.stratified, c.seed) == (640, 42, False, 42)
    assert (c.adam_beta1, c.adam_beta2, c.adam_epsilon, c.weight_decay, c.max_grad_norm) == (0.9, 0.999, 1e-8, 0, 1)
    assert (c.base_revision, c.dataset_revision) == (ROBERTA_BASE_REVISION, AG_NEWS_REVISION)
    assert (c.batch_order, c.warmup_steps, c.lr_scheduler_type) == ("random", 0, "linear")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_configuration_survives_json(profile):
    config = PROFILES[profile]
    assert RunConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("profile", ["mini-agnews", "full"])
def test_our_headline_profiles_train_rank_2_on_query_for_2400_steps_of_16(profile):
    c = get_profile(profile)
    assert (c.lora_rank, c.lora_targets, c.max_steps, c.batch_size, c.save_steps) == (2, ("query",), 2400, 16, 500)


def test_unknown_names_get_the_nearest_known_one():
    with pytest.raises(InputError, match="did you mean 'mini'"):
        get_profile("minni")
    with pytest.raises(InputError, match="unknown field 'lora_rnk' .did you mean 'lora_rank'"):
        get_profile("mini", lora_rnk=4)


def test_all_violations_come_at_once():
    with pytest.raises(InputError) as caught:
        get_profile("mini", learning_rate="fast", lora_rank=0, seed=-1, batch_order="sorted")
    message = str(caught.value)
    assert "\n" not in message
    for name in ("learning_rate is 'fast'", "lora_rank is 0", "seed is -1", "batch_order is 'sorted'"):
        assert name in message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_steps", 1.5), ("max_steps", True), ("learning_rate", float("nan")), ("learning_rate", float("inf")),
        ("learning_rate", 0), ("lora_dropout", 1.0), ("lora_targets", ()), ("lora_targets", "query"),
        ("max_length", 2), ("base_model", None), ("seed", 2**32), ("save_steps", 30), ("lr_scheduler_type", "steep"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(field, value):
    with pytest.raises(InputError, match=field):
        get_profile("mini", **{field: value})


def test_a_hub_name_needs_a_commit():
    with pytest.raises(InputError, match="needs base_revision"):
        get_profile("mini", base_model="someone/some-model")
    assert get_profile("mini", base_model="someone/some-model", base_revision="abc").base_revision == "abc"


def test_another_data_set_drops_the_old_commit(tmp_path):
    assert get_profile("original", dataset=str(tmp_path)).dataset_revision is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_steps", "60", 60), ("learning_rate", "1e-3", 1e-3), ("lora_targets", "query,value", ("query", "value")),
        ("stratified", "true", True), ("base_revision", "none", None), ("max_steps", "many", "many"),
    ],
)  # fmt: skip
def test_the_command_line_gives_fields_their_type(name, text, value):
    assert parse_field(RunConfig, name, text) == value
