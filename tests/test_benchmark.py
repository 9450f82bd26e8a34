"""The benchmarks measure what they say; how fast anything is, no test asks."""

import sys
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from types import SimpleNamespace

import numpy as np
import pytest

from lora_helpers.config import get_profile
from lora_helpers.data import load_split
from lora_helpers.evidence import plots, prediction_speed, training_speed
from lora_helpers.evidence.study import compare_arms
from lora_helpers.evidence.training_speed import FULL
from lora_helpers.evidence.workload import (
    PIPELINES,
    Plan,
    make_inputs,
    make_model,
    plan_epoch,
    sample_lengths,
    sample_texts,
)

HAS_PEAK = sys.platform == "linux"  # elsewhere the peak of memory cannot begin anew and is None


@pytest.fixture(scope="module")
def tiny_shape(tiny_base):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny_base, num_labels=4)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(training_speed, "SAMPLED", 2_000)


@pytest.mark.slow
def test_a_smoke_run_fills_the_record(tiny_shape, monkeypatch):
    for module in (training_speed, prediction_speed):
        monkeypatch.setattr(module, "has_fast_bfloat16", lambda: True)  # emulated where it is not
    record = training_speed.run_benchmark({"tiny": tiny_shape}, rounds=1, batches=2, rows=12)
    assert [row["pipeline"] for row in record["rows"]] == [
        *PIPELINES,
        FULL,
        "trainer-default-bfloat16",
        "ours-bfloat16",
    ]
    for row in record["rows"]:
        assert row["padding"] >= 1 and bool(row["peak_memory_mib"]) == HAS_PEAK
        assert row["examples_per_second"] > 0 and row["by_round"] == [row["examples_per_second"]]
    assert record["ours_over"] == {"tiny": {}}  # one round has no interval
    peers = record["prediction"]["tiny"]
    onnx = all(map(find_spec, ("onnxruntime", "onnx", "onnxscript")))
    ours = {"ours", "ours-bfloat16", "ours-int8"}
    assert set(peers) == {"pipeline", "pipeline-bfloat16", *ours} | ({"onnxruntime-int8"} if onnx else set())
    assert all(peer["rows"] == 12 and peer["rows_per_second"] > 0 for peer in peers.values())
    assert peers["pipeline"]["batch_size"] in (1, 8, 32) and {peers[name]["batch_size"] for name in ours} == {None}


def test_bfloat16_is_measured_where_it_is_fast_and_nowhere_else(tiny_shape, monkeypatch):
    import torch

    dtypes = []

    def make_step(model, config):
        def step(inputs, *, bfloat16):
            dtypes.append(torch.bfloat16 if bfloat16 else torch.float32)
            return 1.0

        return step

    monkeypatch.setattr(training_speed, "watch_peak_memory", lambda **_: lambda: 1.0)
    monkeypatch.setattr(training_speed, "make_step", make_step)
    for fast, wanted in ((False, {torch.float32}), (True, {torch.float32, torch.bfloat16})):
        dtypes.clear()
        monkeypatch.setattr(training_speed, "has_fast_bfloat16", lambda fast=fast: fast)
        found = training_speed.measure_steps(tiny_shape, rounds=1, batches=1)
        assert set(dtypes) == wanted and ("ours-bfloat16" in found) is fast


def test_a_step_in_bfloat16_computes_in_it_and_trains_in_float32(tiny_shape, tiny_config):
    import torch

    model = make_model(tiny_shape, tiny_config)
    plan = plan_epoch("ours", sample_lengths(160, longest=60), 1)
    inputs = make_inputs(plan.lengths[0], plan.widths[0], model)
    seen = []
    layer = model.base_model.model.roberta.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    step = training_speed.make_step(model, tiny_config)
    step(inputs)
    step(inputs, bfloat16=True)
    assert seen == [torch.float32, torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_step_is_timed_from_before_the_forward_pass(tiny_shape, monkeypatch):
    import torch

    seconds, model = [0.0], make_model(tiny_shape, get_profile("original"))
    model.register_forward_hook(lambda *_: seconds.append(seconds[-1] + 5.0))
    monkeypatch.setattr("time.perf_counter", lambda: seconds[-1])
    step = training_speed.make_step(model, get_profile("original"))
    ids = torch.ones(2, 8, dtype=torch.long)
    assert step({"input_ids": ids, "attention_mask": ids, "labels": ids[:, 0]}) == 5.0


def test_ours_runs_without_base_dropout_and_the_others_with_it(tiny_shape, monkeypatch):
    import torch

    seen, first_token_alone = {name: set() for name in (*PIPELINES, FULL)}, {}

    def make_step(model, config):
        name = next(names)

        def step(inputs, **named):
            seen[name].update(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p != 0.05)
            last = [m for name, m in model.named_modules() if name.endswith("attention.output")][-1]
            first_token_alone[name] = bool(last._forward_pre_hooks)
            return 1.0

        return step

    names = cycle(seen)
    monkeypatch.setattr(training_speed, "watch_peak_memory", lambda **_: lambda: 1.0)
    monkeypatch.setattr(training_speed, "make_step", make_step)
    monkeypatch.setattr(training_speed, "has_fast_bfloat16", lambda: False)
    training_speed.measure_steps(tiny_shape, rounds=1, batches=1)
    assert seen == {name: {0.0} if name in ("ours", FULL) else {0.1} for name in seen}
    assert first_token_alone == {name: name in ("ours", FULL) for name in seen}


def test_full_fine_tuning_moves_every_weight_of_the_base_and_leaves_the_adapters_as_they_were(tiny_shape, tiny_config):
    model = make_model(tiny_shape, tiny_config)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    plan = plan_epoch("ours", sample_lengths(160, longest=60), 1)
    with training_speed.train_everything(model):
        step = training_speed.make_step(model, tiny_config)
        step(make_inputs(plan.lengths[0], plan.widths[0], model))
    moved = {name for name, weight in model.named_parameters() if (weight != before[name]).any()}
    adapters = {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert trained == adapters and before.keys() - moved - adapters == set()
    assert not moved & adapters
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trained
    assert all(weight.grad is None for weight in model.parameters())


def test_rates_are_compared_by_round_so_that_a_slow_minute_counts_for_both():
    rounds = {"original": [2.0, 1.0, 1.8], "ours": [6.0, 3.0, 5.5], "other": [2.0, 3.0, 4.0]}
    found = training_speed.compare_rates(rounds)
    assert found["original"]["times"] == pytest.approx(3.02, abs=0.01) and np.ptp(found["original"]["interval"]) < 0.3
    low, high = found["other"]["interval"]
    assert low < found["other"]["times"] < high and set(found) == {"original", "other"}


def test_each_peer_is_shown_at_its_best_batch_size(tiny_shape, monkeypatch):
    seconds = {("slow", 1): 3.0, ("slow", 8): 1.0, ("slow", 32): 2.0, ("fast", 0): 0.5}
    peers = {
        "slow": prediction_speed.Peer(lambda texts, size: seconds["slow", size]),
        "fast": prediction_speed.Peer(lambda texts, size: seconds["fast", size], (0,)),
    }
    monkeypatch.setattr(prediction_speed, "make_peers", lambda *_: peers)
    monkeypatch.setattr(prediction_speed.Peer, "measure", lambda peer, texts, size: peer.predict(texts, size))
    found = prediction_speed.measure_prediction(tiny_shape, rounds=2, rows=4)
    assert found["slow"] == {"rows": 4, "rows_per_second": 4.0, "batch_size": 8}
    assert found["fast"] == {"rows": 4, "rows_per_second": 8.0, "batch_size": None}


def test_a_stream_has_a_row_for_every_size(classifier, monkeypatch):
    monkeypatch.setattr(prediction_speed, "load_committed", lambda profile, device: classifier)
    rows = prediction_speed.measure_growth(sizes=(50, 100))["predicted_rows"]
    assert [row["size"] for row in rows] == [50, 100]  # as many as got a label
    assert all(bool(row["peak_memory_mib"]) == HAS_PEAK for row in rows)


def test_the_lengths_are_those_of_ag_news(ag_news_dir, roberta_base_files):
    from transformers import AutoTokenizer

    from lora_helpers.data import load_split

    tokenizer = AutoTokenizer.from_pretrained(roberta_base_files)
    texts = load_split(str(ag_news_dir), "train")["text"][:8000]
    real = np.array([len(row) for row in tokenizer(list(texts))["input_ids"]])
    drawn = sample_lengths(8000)
    assert drawn.mean() == pytest.approx(real.mean(), rel=0.05)
    assert np.quantile(drawn, 0.99) == pytest.approx(np.quantile(real, 0.99), rel=0.1)


def test_each_pipeline_pads_as_it_is_known_to():
    """329 tokens an example for the course notebook, 94 for random batches, both measured on the real rows."""
    lengths = sample_lengths(79_000)
    plans = {name: plan_epoch(name, lengths, 50) for name in PIPELINES}
    widths = {name: plan.widths.mean() for name, plan in plans.items()}
    assert widths["original"] == pytest.approx(329, rel=0.05)
    assert widths["trainer-default"] == pytest.approx(94, rel=0.05)
    assert widths["pad-128"] == 128
    assert widths["ours"] < 1.05 * lengths.mean()
    for name, plan in plans.items():  # the few batches stand for the epoch
        assert widths[name] == pytest.approx(plan.width, rel=0.02)


def test_inputs_have_the_shape_of_their_batch(tiny_shape, tiny_config):
    model = make_model(tiny_shape, tiny_config)
    plan = plan_epoch("trainer-default", sample_lengths(160, longest=60), 1)
    inputs = make_inputs(plan.lengths[0], plan.widths[0], model)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (16, plan.widths[0])
    assert inputs["attention_mask"].sum(dim=1).tolist() == plan.lengths[0].tolist()


def test_texts_have_the_tokens_that_they_were_drawn_for(tiny_base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    lengths = sample_lengths(200)
    real = np.array([len(ids) for ids in tokenizer(sample_texts(lengths, tokenizer))["input_ids"]])
    assert np.abs(real - lengths).mean() < 0.02 * lengths.mean()


def test_differences_are_paired_by_seed():
    shared, better = np.array([0.90, 0.92, 0.88, 0.91, 0.89]), 0.01
    found = compare_arms({"ours": list(shared + better), "random-order": list(shared)})
    assert found["random-order"]["difference"] == pytest.approx(better)
    low, high = found["random-order"]["interval"]
    assert low == pytest.approx(high)  # the spread over seeds is the same on both sides and cancels
    unpaired = compare_arms({"ours": list(shared + better), "random-order": list(shared[::-1])})
    assert np.ptp(unpaired["random-order"]["interval"]) > 0.01
    dearer = compare_arms({"ours": list(shared + better), "full fine-tuning": list(shared[:3])})
    assert dearer["full fine-tuning"]["difference"] == pytest.approx(better)


def test_the_figure_shows_every_pipeline_of_roberta_base():
    rows = [{"model": "roberta-base", "pipeline": name, "examples_per_second": 1.0} for name in PIPELINES]
    other = [{"model": "roberta-mini", "pipeline": "ours", "examples_per_second": 99.0}]
    machine = {"processor": "Zen 4", "cores": 2}
    axes = plots.draw_throughput({"bench": {"rows": rows + other, "environment": machine}}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(PIPELINES)
    assert axes.get_xlim()[1] < 2 and axes.get_xlabel() == "examples a second (Zen 4, 2 cores)"


def test_the_figure_of_the_studies_has_a_panel_a_question_and_shows_which_intervals_exclude_nothing():
    alike, apart = {"difference": -0.001, "interval": [-0.004, 0.001]}, {"difference": 0.01, "interval": [0.002, 0.02]}
    first, seeds = {"validation_accuracy": [0.9, 0.91]}, {"validation_accuracy": [0.89, 0.9]}
    evidence = {
        "places": {"variants": {"on query": first, "on key": seeds | alike}},
        "rivals": {"arms": {"LoRA": first, "head alone": seeds | apart, "one seed": first}},
    }
    panels = plots.draw_studies(evidence).axes
    assert [panel.get_title(loc="left") for panel in panels] == [plots.QUESTIONS["places"], plots.QUESTIONS["rivals"]]
    named = [[label.get_text() for label in panel.get_yticklabels()] for panel in panels]
    assert named == [["on key (2)"], ["head alone (2)"]]
    drawn = [{tuple(line.get_xdata()): line.get_color() for line in panel.lines} for panel in panels]
    nothing = {(0, 0): plots.GREY}
    assert [{ends: color for ends, color in lines.items() if len(ends) == 2} for lines in drawn] == [
        nothing | {(-0.4, 0.1): plots.GREY}, nothing | {(0.2, 2.0): plots.BLUE},
    ]  # fmt: skip


def test_the_figure_of_labels_shows_every_seed():
    def make_size(rows, *accuracies):
        arms = {"LoRA": accuracies, "linear model": [value - 0.1 for value in accuracies]}
        return {"rows": rows, "arms": {arm: {"test_accuracy": values} for arm, values in arms.items()}}

    sizes = [make_size(500, 0.7, 0.8), make_size(2000, 0.8, 0.9)]
    axes = plots.draw_label_counts({"label-counts": {"sizes": sizes}}).axes[0]
    lines = {line.get_label(): [*zip(*line.get_data(), strict=True)] for line in axes.lines}
    points = [[(rows, pytest.approx(y)) for rows, y in line] for line in (
        [(500, 0.75), (2000, 0.85)], [(500, 0.65), (2000, 0.75)],
    )]  # fmt: skip
    assert [lines["LoRA"], lines["linear model"]] == points


def test_the_figure_of_learning_rates_goes_from_the_lowest_to_the_highest():
    arms = {name: {"validation_accuracy": [float(name), 0.9]} for name in ("2e-3", "5e-4", "1e-2")}
    axes = plots.draw_learning_rates({"learning-rates": {"variants": arms}}).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0005", "0.002", "0.01"]
    assert axes.lines[0].get_ydata() == pytest.approx([0.45025, 0.451, 0.455])


def test_the_difference_of_int8_is_its_accuracy_minus_that_of_float32(monkeypatch):
    """A made-up classifier that has every row right in float32, and one in ten wrong in int8."""
    rows = load_split("bundled", "validation")
    right = np.eye(4, dtype=np.float32)[np.array(rows["label"][:])]

    def predict_probabilities(texts, precision):
        answers = right[: len(texts)].copy()
        if precision == "int8":
            answers[::10] = np.roll(answers[::10], 1, axis=1)
        return answers

    def load(path, *, precision, device):
        assert device == "cpu"
        return SimpleNamespace(predict_probabilities=partial(predict_probabilities, precision=precision))

    monkeypatch.setattr(prediction_speed, "load_committed", load)
    found = prediction_speed.compare_precisions("mini", rounds=2)
    assert found["agreement"] == pytest.approx(0.9) and found["difference"] == pytest.approx(-0.1)
    assert found["verdict"] == "behind" and found["rows"] == len(rows) and found["speedup"] > 0


def test_the_step_that_warms_up_is_not_timed(tiny_shape):
    plan = plan_epoch("ours", sample_lengths(200), 3)
    model, seconds = make_model(tiny_shape, get_profile("original")), iter([100.0, 1.0, 2.0, 3.0])
    seen = []

    def step(inputs, *, bfloat16):
        seen.append(inputs["input_ids"].shape[1])
        return next(seconds)

    assert training_speed.take_steps(step, plan, model) == [1.0, 2.0, 3.0]
    assert seen == [plan.widths[0], *plan.widths]


def test_rates_are_scaled_from_the_measured_batches_to_the_mean_width_of_an_epoch(tiny_shape, monkeypatch):
    narrow = Plan(np.full((2, 16), 8), np.array([10, 10]), length=16.0, width=20.0)
    monkeypatch.setattr(training_speed, "plan_epoch", lambda *_: narrow)
    monkeypatch.setattr(training_speed, "take_steps", lambda *_, **__: [1.0, 3.0])
    found = training_speed.measure_steps(tiny_shape, rounds=1, batches=2)["ours"]
    assert found["examples_per_second"] == 16 / 2 * 10 / 20 and found["padding"] == 20 / 16


def test_one_slow_round_does_not_count(tiny_shape, monkeypatch):
    seconds = iter([4.0, 2.0, 3.0, 1.0, 100.0, 1.0])  # three batch sizes, then three rounds of the best
    peer = SimpleNamespace(predict=lambda *_: None, batch_sizes=(1, 8, 32), measure=lambda *_: next(seconds))
    monkeypatch.setattr(prediction_speed, "make_peers", lambda *_: {"pipeline": peer})
    found = prediction_speed.measure_prediction(tiny_shape, rounds=3, rows=20)
    assert found == {"pipeline": {"rows": 20, "rows_per_second": 20.0, "batch_size": 8}}
