"""How fast a training step is under four pipelines, side by side in one run on one machine.

The models have random weights, for speed depends on shapes alone; see `workload`. Nothing here says how good a model is.
`python -m lora_helpers bench` prints the tables, `make evidence PARTS=bench` records them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from ..config import ROBERTA_MINI, RunConfig, get_profile
from ..environment import best_device, watch_peak_memory
from ..files.places import REPOSITORY
from ..model import compute_first_token_alone
from ..training.arguments import restored_precision
from .prediction_speed import measure_prediction
from .workload import (
    BATCH,
    PIPELINES,
    SPECIAL,
    Batch,
    Plan,
    base_shapes,
    draw_lengths,
    make_inputs,
    make_model,
    plan_epoch,
    set_base_dropout,
)

DRAWN = 79_000  # rows; every pipeline batches the same ones
# Forward, a weight costs a real token one multiplication and one addition, and backward the same again: the gradient
# passes through it to the adapters below, and it has none of its own. Attention is left out: at 54 tokens it is 1 %.
FLOP_A_WEIGHT = 4


def make_step(model, config: RunConfig) -> Callable[[dict], float]:
    """Forward, backward and optimizer step on one batch, as a function that returns the seconds they took."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=0.0, fused=True)

    def step(inputs: dict) -> float:
        began = time.perf_counter()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        return time.perf_counter() - began

    return step


def measure_steps(shape, *, rounds: int, batches: int) -> dict[str, dict]:
    """The step of each pipeline, taking turns (A B C D, A B C D, …); the median of `rounds`, after one step each to warm up.

    Returns:
        By pipeline: seconds_per_step, examples_per_second, real_tokens_per_second, padding (processed tokens over real
        ones), useful_gflops (for real tokens alone), peak_memory_mib (None where the system cannot reset it).
    """
    config = get_profile("roberta-base")
    model = make_model(shape, config)
    step = make_step(model, config)
    lengths = draw_lengths(DRAWN, longest=min(512, shape.max_position_embeddings - 2))
    # The batches of `original` are all about as wide, and one takes as long as ten of ours: one is enough.
    plans = {name: plan_epoch(name, lengths, 1 if name == "original" else batches) for name in PIPELINES}
    seconds, peaks = {name: [] for name in plans}, {name: [] for name in plans}
    for turn in range(rounds + 1):
        for name, plan in plans.items():
            ours = name == "ours"
            set_base_dropout(model, config.base_dropout if ours else get_profile("original").base_dropout)
            peak = watch_peak_memory(gpu=True)
            with compute_first_token_alone(model.base_model.model) if ours else nullcontext():
                taken = [step(make_inputs(batch, model)) for batch in plan.batches[: None if turn else 1]]
            if turn:
                seconds[name].append(np.mean(taken))
                peaks[name].append(peak())
    return {
        name: _describe(plan, float(np.median(seconds[name])), _useful_weights(model))
        | {"peak_memory_mib": max(peaks[name]) if all(peaks[name]) else None}
        for name, plan in plans.items()
    }


def measure_trainer(shape, *, steps: int) -> dict[str, float]:
    """Our batches through the Trainer as `training` sets it up; after each of its steps a bare one on the same batch.

    Returns:
        steps (two more warm up), bare_seconds and trainer_seconds (medians of a step), and overhead: what the Trainer
        adds, the median over steps as a share of the bare step.
    """
    with restored_precision(), tempfile.TemporaryDirectory() as folder:
        trainer, timer = _make_timed_trainer(shape, Path(folder), steps + 2)
        trainer.train()
    inside, bare = np.array(timer.inside[2:]), np.array(timer.bare[2:])
    return {
        "steps": steps,
        "bare_seconds": float(np.median(bare)),
        "trainer_seconds": float(np.median(inside)),
        "overhead": float(np.median(inside / bare)) - 1,
    }


def measure_ceiling(seconds: float) -> float:
    """The best rate of a float32 matrix product on this device, in GFLOP/s, over shapes that an encoder has."""
    import torch

    rates = []
    for rows, columns, depth in ((864, 768, 768), (864, 3072, 768), (2048, 2048, 2048), (4096, 3072, 768)):
        x, weight = (torch.rand(size, depth, device=best_device()) for size in (rows, columns))
        torch.nn.functional.linear(x, weight)[0, 0].item()
        began, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds:
            torch.nn.functional.linear(x, weight)[0, 0].item()  # waits for a GPU
            count += 1
        rates.append(2 * rows * columns * depth * count / passed / 1e9)
    return max(rates)


def run_benchmark(
    shapes: dict | None = None,
    *,
    rounds: int = 3,
    batches: int = 4,
    rows: int = 128,
    trainer_seconds: float = 60.0,
    ceiling_seconds: float = 1.0,
) -> dict:
    """Every measurement of a step and of prediction, for roberta-base's shape and the bundled base's, as one record."""
    ceilings, steps, overheads, prediction = [measure_ceiling(ceiling_seconds)], [], {}, {}
    for model, shape in (shapes or base_shapes()).items():
        measured = measure_steps(shape, rounds=rounds, batches=batches)
        steps += [{"model": model, "pipeline": name} | row for name, row in measured.items()]
        pair = 2 * measured["ours"]["seconds_per_step"]
        overheads[model] = measure_trainer(shape, steps=max(batches, round(trainer_seconds / pair)))
        prediction[model] = measure_prediction(shape, rounds=rounds, rows=rows)
        ceilings.append(measure_ceiling(ceiling_seconds))
    for row in steps:
        row["ceiling_share"] = row["useful_gflops"] / max(ceilings)
    return {
        "rounds": rounds,
        "batch_size": BATCH,
        "ceiling_gflops": max(ceilings),
        "rows": steps,
        "trainer": overheads,
        "prediction": prediction,
    }


def _make_timed_trainer(shape, folder: Path, steps: int):
    """The Trainer on random rows, and its callback that takes the time of its steps and of bare ones between them."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    from ..records import Clock
    from ..training.run import make_trainer

    config = get_profile("roberta-base", max_steps=steps + 1, eval_steps=steps + 2, save_steps=steps + 2)
    model = make_model(shape, config)
    compute_first_token_alone(model.base_model.model)
    lengths = draw_lengths((steps + 1) * BATCH, longest=min(512, shape.max_position_embeddings - 2))
    ids = [np.random.default_rng(n).integers(SPECIAL, shape.vocab_size, n).tolist() for n in lengths]
    rows = Dataset.from_dict({"input_ids": ids, "length": lengths, "labels": [0] * len(ids)})
    tokenizer = AutoTokenizer.from_pretrained(
        REPOSITORY / ROBERTA_MINI, trust_remote_code=False
    )  # for the id of the padding token
    trainer = make_trainer(config, folder, model, tokenizer, rows, rows, {}, Clock(0.0, 0.0))
    batches, bare_step = list(trainer.batches), make_step(model, config)

    class Timer(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.inside, self.bare, self.began = [], [], time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self.inside.append(time.perf_counter() - self.began)
            control.should_training_stop = state.global_step == steps  # before the last step's evaluation
            of_batch = lengths[batches[state.global_step - 1]]
            self.bare.append(bare_step(make_inputs(Batch(of_batch, int(of_batch.max())), model)))
            self.began = time.perf_counter()

    timer = Timer()
    trainer.add_callback(timer)
    return trainer, timer


def _describe(plan: Plan, seconds: float, weights: int) -> dict:
    processed = np.mean([len(batch.lengths) * batch.width for batch in plan.batches])
    examples = float(processed) / plan.width / seconds  # time follows the tokens processed, padding included
    return {
        "seconds_per_step": seconds,
        "examples_per_second": examples,
        "real_tokens_per_second": examples * plan.length,
        "padding": plan.width / plan.length,
        "useful_gflops": FLOP_A_WEIGHT * weights * examples * plan.length / 1e9,
    }


def _useful_weights(model) -> int:
    """Numbers in the frozen matrices that every token has to pass for the head's answer.

    All of the encoder's but the last layer's behind its attention, where `<s>` alone counts: 79.6 of roberta-base's
    84.9 million. The same for all pipelines, whether they compute more or not.
    """
    frozen = {
        n: p.numel() for n, p in model.named_parameters() if ".layer." in n and p.ndim == 2 and not p.requires_grad
    }
    last = f".layer.{model.config.num_hidden_layers - 1}."
    behind = [name for name in frozen if last in name and not any(part in name for part in ("query", "key", "value"))]
    return sum(frozen.values()) - sum(frozen[name] for name in behind)
