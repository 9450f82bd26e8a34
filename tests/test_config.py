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


@pytest.mark.parametrize("profile", ["mini-agnews", "roberta-base"])
def test_our_headline_profiles_train_rank_2_on_query_for_2400_steps_of_16(profile):
    c = get_profile(profile)
    assert (c.lora_rank, c.lora_targets, c.max_steps, c.batch_size, c.save_steps) == (2, ("query",), 2400, 16, 500)


def test_an_unknown_profile_gets_the_nearest_known_one():
    with pytest.raises(InputError, match="did you mean 'mini'"):
        get_profile("minni")


def test_a_hub_name_with_a_commit_is_taken():
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
