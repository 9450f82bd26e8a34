"""The benchmarks measure what they say; how fast anything is, no test asks."""

from itertools import cycle

import numpy as np
import pytest

from lora_helpers.evidence import growth
from lora_helpers.evidence.speed_figures import SERIES, draw_benchmark_figures
from lora_helpers.evidence.study import compare
from lora_helpers.evidence.training_speed import run_benchmark
from lora_helpers.evidence.workload import PIPELINES, draw_lengths, draw_texts, make_inputs, make_model, plan_epoch


@pytest.fixture(scope="module")
def tiny_shape(tiny_base):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(tiny_base, num_labels=4)


def test_a_smoke_run_fills_the_record(tiny_shape):
    record = run_benchmark({"tiny": tiny_shape}, rounds=1, batches=2, rows=12, trainer_seconds=0, ceiling_seconds=0.05)
    assert [row["pipeline"] for row in record["rows"]] == list(PIPELINES)
    for row in record["rows"]:
        assert row["padding"] >= 1 and row["peak_memory_mib"] > 0 and 0 < row["ceiling_share"] < 1
        assert row["examples_per_second"] > 0 and row["seconds_per_step"] > 0
    trainer = record["trainer"]["tiny"]
    assert trainer["steps"] == 2 and min(trainer["bare_seconds"], trainer["trainer_seconds"]) > 0
    assert set(record["prediction"]["tiny"]) == {"pipeline-default", "pipeline-8", "pipeline-64", "ours"}


def test_ours_runs_without_base_dropout_and_the_others_with_it(tiny_shape, monkeypatch):
    import torch

    from lora_helpers.evidence import training_speed as benchmark

    seen = {name: set() for name in PIPELINES}

    def make_step(model, config):
        def step(inputs):
            seen[next(names)].update(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p != 0.05)
            return 1.0

        return step

    names = cycle(PIPELINES)  # one batch a turn
    monkeypatch.setattr(benchmark, "make_step", make_step)
    benchmark.measure_steps(tiny_shape, rounds=1, batches=1)
    assert seen == {name: {0.0} if name == "ours" else {0.1} for name in PIPELINES}


def test_growth_has_a_row_for_every_size(tiny_shape, monkeypatch):
    sizes = {"TRAINING_ROWS": (64,), "TOKENS": (8, 16), "RANKS": (1, 2), "PREDICTED_ROWS": (50,)}
    for name, value in sizes.items():
        monkeypatch.setattr(growth, name, value)
    monkeypatch.setattr(growth, "base_shapes", lambda: {"roberta-base": tiny_shape})
    found = growth.measure_growth()
    for wanted, series in zip(sizes.values(), ("training_rows", "tokens", "rank", "predicted_rows"), strict=True):
        assert [row["size"] for row in found[series]] == list(wanted)
        assert all(row["seconds"] > 0 and row["peak_memory_mib"] > 0 for row in found[series])


def test_the_lengths_are_those_of_ag_news(ag_news_dir):
    import os

    from transformers import AutoTokenizer

    from lora_helpers.data import load_split

    tokenizer = AutoTokenizer.from_pretrained(os.environ["ROBERTA_BASE_DIR"])
    texts = load_split(str(ag_news_dir), "train")["text"][:8000]
    real = np.array([len(row) for row in tokenizer(list(texts))["input_ids"]])
    drawn = draw_lengths(8000)
    assert drawn.mean() == pytest.approx(real.mean(), rel=0.05)
    assert np.quantile(drawn, 0.99) == pytest.approx(np.quantile(real, 0.99), rel=0.1)


def test_each_pipeline_pads_as_it_is_known_to():
    """329 tokens an example for the course notebook, 94 for random batches, both measured on the real rows."""
    lengths = draw_lengths(79_000)
    plans = {name: plan_epoch(name, lengths, 50) for name in PIPELINES}
    widths = {name: np.mean([batch.width for batch in plan.batches]) for name, plan in plans.items()}
    assert widths["original"] == pytest.approx(329, rel=0.05)
    assert widths["trainer-default"] == pytest.approx(94, rel=0.05)
    assert widths["pad-128"] == 128
    assert widths["ours"] < 1.05 * lengths.mean()
    for name, plan in plans.items():  # the few batches stand for the epoch
        assert widths[name] == pytest.approx(plan.width, rel=0.02)


def test_inputs_have_the_shape_of_their_batch(tiny_shape, tiny_config):
    model = make_model(tiny_shape, tiny_config)
    batch = plan_epoch("trainer-default", draw_lengths(160, longest=60), 1).batches[0]
    inputs = make_inputs(batch, model)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (16, batch.width)
    assert inputs["attention_mask"].sum(dim=1).tolist() == batch.lengths.tolist()


def test_texts_have_the_tokens_that_they_were_drawn_for(tiny_base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    lengths = draw_lengths(200)
    real = np.array([len(ids) for ids in tokenizer(draw_texts(lengths, tokenizer))["input_ids"]])
    assert np.abs(real - lengths).mean() < 0.02 * lengths.mean()


def test_differences_are_paired_by_seed():
    shared, better = np.array([0.90, 0.92, 0.88, 0.91, 0.89]), 0.01
    found = compare({"ours": list(shared + better), "random-order": list(shared)})
    assert found["random-order"]["difference"] == pytest.approx(better)
    low, high = found["random-order"]["interval"]
    assert low == pytest.approx(high)  # the spread over seeds is the same on both sides and cancels
    unpaired = compare({"ours": list(shared + better), "random-order": list(shared[::-1])})
    assert np.ptp(unpaired["random-order"]["interval"]) > 0.01


def test_a_figure_is_drawn_for_each_part_that_is_there(tmp_path):
    environment = {"processor": "a processor", "cores": 2, "commit": None}
    rows = [
        {"model": "roberta-base", "pipeline": name, "examples_per_second": 1.0, "useful_gflops": 10.0}
        for name in PIPELINES
    ]
    bench = {"rows": rows, "ceiling_gflops": 100.0, "environment": environment}
    assert [path.name for path in draw_benchmark_figures({"bench": bench}, tmp_path)] == ["throughput.png"]
    series = [{"size": size, "seconds": 0.1 * size, "peak_memory_mib": None} for size in (1, 10)]  # as on macOS
    growth = dict.fromkeys(SERIES, series) | {"environment": environment}
    assert [path.name for path in draw_benchmark_figures({"growth": growth}, tmp_path)] == ["growth.png"]
    assert draw_benchmark_figures({}, tmp_path) == []
