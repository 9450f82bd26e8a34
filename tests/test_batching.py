from itertools import pairwise

import numpy as np
import pytest

from lora_helpers.batching import LengthGroupedSampler, batches_by_tokens, pad, padding_costs

LENGTHS = np.random.default_rng(0).integers(10, 120, size=1003)


@pytest.mark.parametrize("order", ["random", "length-grouped"])
def test_an_epoch_is_a_permutation_decided_by_seed_and_epoch_alone(order):
    def epoch(seed, number):
        sampler = LengthGroupedSampler(LENGTHS, 16, order=order, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert sorted(epoch(0, 0)) == list(range(len(LENGTHS)))
    np.random.random(3)  # the global generator has no say
    assert epoch(0, 1) == epoch(0, 1)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


@pytest.mark.parametrize(
    ("epoch", "first"),
    [
        (0, [71, 978, 226, 324, 102, 642, 401, 762, 809, 898, 83, 622, 202, 523, 109, 651]),
        (1, [569, 317, 449, 970, 184, 919, 513, 724, 349, 337, 244, 892, 75, 132, 760, 197]),
    ],
)
def test_the_order_of_training_is_the_one_of_the_committed_runs(epoch, first):
    sampler = LengthGroupedSampler(LENGTHS, 16, seed=0)
    sampler.set_epoch(epoch)
    assert list(sampler)[:16] == first


def test_length_grouping_saves_what_it_claims():
    costs = padding_costs(LENGTHS, 16)
    assert costs["length-grouped"] < 1.1 < 1.4 < costs["random"] < costs["block"]
    assert len({padding_costs(LENGTHS, 16, seed=seed)["random"] for seed in range(3)}) == 3
    costs = padding_costs([2] * 999 + [4] + [200], 16)  # a block of 1,000 rows, and one of one row
    assert costs["block"] == pytest.approx((1000 * 4 + 200) / (999 * 2 + 4 + 200))
    assert costs["fixed"] == pytest.approx(1001 * 128 / (999 * 2 + 4 + 128))


def test_batches_differ_from_epoch_to_epoch():
    sampler = LengthGroupedSampler(LENGTHS, 16)
    epochs = []
    for number in (0, 1):
        sampler.set_epoch(number)
        order = list(sampler)
        epochs.append({frozenset(order[i : i + 16]) for i in range(0, 992, 16)})
    assert len(epochs[0] & epochs[1]) < 5


@pytest.mark.parametrize("budget", [1, 200, 4096])
def test_token_batches_hold_every_row_once_within_the_budget(budget):
    batches = batches_by_tokens(LENGTHS, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(LENGTHS)))
    assert all(len(b) == 1 or len(b) * LENGTHS[b].max() <= budget for b in batches)
    assert all((len(a) + 1) * LENGTHS[b[0]] > budget for a, b in pairwise(batches))  # not one row more had room
    assert batches_by_tokens([], budget) == []


def test_rows_of_one_length_stay_in_the_order_given():
    short, long = list(range(1, 2000, 2)), list(range(0, 2000, 2))
    assert np.concatenate(batches_by_tokens([9, 3] * 1000, 64)).tolist() == short + long
    ties = np.random.default_rng(0).permutation(2000)
    assert np.concatenate(batches_by_tokens([5] * 2000, 64, ties=ties)).tolist() == ties.tolist()


def test_padding_adds_a_mask_only_where_there_is_padding():
    assert "attention_mask" not in pad([[1, 2], [3, 4]], 0)
    padded = pad([[1, 2, 3], [4]], 9)
    assert padded["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_text_without_any_token_has_one_of_padding():
    assert {name: each.tolist() for name, each in pad([[], []], 1).items()} == {
        "input_ids": [[1], [1]], "attention_mask": [[0], [0]],
    }  # fmt: skip
