"""How fast a training step is under several pipelines and in full fine-tuning, side by side on one machine.

`python -m lora_helpers bench` prints the tables, `make evidence PARTS=bench` records them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch

from ..bases import compute_first_token_alone, full_size_shape, read_shape
from ..config import ROBERTA_MINI, RunConfig, get_profile
from ..environment import best_device, has_fast_bfloat16, watch_peak_memory
from ..files.places import REPOSITORY, ROBERTA_BASE
from ..model import longest_input
from .prediction_speed import measure_prediction
from .study import compare_arms
from .workload import BATCH, PIPELINES, Plan, make_inputs, make_model, plan_epoch, sample_lengths

SAMPLED = 79_000  # rows; every pipeline batches the same ones
FULL = "full-fine-tuning"  # the batches of ours, but every weight of the base is trained and no adapter
BFLOAT16 = "-bfloat16"  # ends the name of a row that was computed in it
IN_BFLOAT16 = ("trainer-default", "ours")  # pipelines that are measured in it too, where it is fast


def run_benchmark(
    shapes: dict | None = None, *, rounds: int = 5, batches: int = 4, rows: int = 128, left_out: tuple[str, ...] = ()
) -> dict:
    """Every measurement of a step and of prediction, for roberta-base's shape and the bundled base's, as one record; without
    the pipelines `left_out`."""
    steps, ahead, prediction = [], {}, {}
    ours = {"roberta-base": full_size_shape(ROBERTA_BASE), "roberta-mini": read_shape(REPOSITORY / ROBERTA_MINI)}
    for model, shape in (shapes or ours).items():
        measured = measure_steps(shape, rounds=rounds, batches=batches, left_out=left_out)
        steps += [{"model": model, "pipeline": name} | row for name, row in measured.items()]
        ahead[model] = compare_rates({name: row["by_round"] for name, row in measured.items()})
        prediction[model] = measure_prediction(shape, rounds=rounds, rows=rows)
    return {"rounds": rounds, "batch_size": BATCH, "rows": steps, "ours_over": ahead, "prediction": prediction}


def measure_steps(shape, *, rounds: int, batches: int, left_out: tuple[str, ...] = ()) -> dict[str, dict]:
    """By pipeline, taking turns (A B C D, A B C D, …), after one step in each turn to warm up: examples_per_second
    `by_round` and their median, padding (processed tokens over real ones), peak_memory_mib (None where the system cannot
    reset it). Where bfloat16 is fast, two come under autocast too, as with the Trainer's `bf16=True`.
    """
    config, original = get_profile("roberta-base"), get_profile("original")
    model = make_model(shape, config)
    in_base = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and "lora" not in name]
    lengths = sample_lengths(SAMPLED, longest=longest_input(model))
    # The batches of `original` are all about as wide, and one takes as long as ten of ours: one is enough.
    names = [name for name in PIPELINES if name not in left_out]
    plans = {name: plan_epoch(name, lengths, 1 if name == "original" else batches) for name in names}
    plans |= {FULL: plans["ours"]} | {name + BFLOAT16: plans[name] for name in IN_BFLOAT16 if has_fast_bfloat16()}
    rates, peaks = {name: [] for name in plans}, {name: [] for name in plans}
    for _ in range(rounds):
        for name, plan in plans.items():
            ours = name == FULL or name.startswith("ours")
            for dropout in in_base:
                dropout.p = (config if ours else original).base_dropout
            peak = watch_peak_memory(gpu=True)
            first_token_alone = compute_first_token_alone(model.base_model.model) if ours else nullcontext()
            with first_token_alone, train_everything(model) if name == FULL else nullcontext():
                # Nothing holds the optimizer beyond its turn, whose memory would count as the next one's.
                taken = take_steps(make_step(model, config), plan, model, bfloat16=name.endswith(BFLOAT16))
            # Time follows the tokens, padding included; those of the few batches are not quite the epoch's mean.
            rates[name].append(BATCH * float(plan.widths.mean() / plan.width / np.mean(taken)))
            peaks[name].append(peak())
    return {
        name: {
            "examples_per_second": float(np.median(rates[name])),
            "by_round": rates[name],
            "padding": plan.width / plan.length,
            "peak_memory_mib": max(peaks[name]) if all(peaks[name]) else None,
        }
        for name, plan in plans.items()
    }


def compare_rates(by_round: dict[str, list[float]]) -> dict[str, dict]:
    """How many `times` as fast `ours` is as each other pipeline, with a 95 % interval: Student's t on the logarithms of the
    ratios by round; of one round nothing."""
    logs = {name: np.log(rates) for name, rates in ({"ours": by_round["ours"]} | by_round).items()}
    return {
        name: {"times": float(np.exp(found["difference"])), "interval": np.exp(found["interval"]).tolist()}
        for name, found in compare_arms(logs).items()
        if "interval" in found
    }


@contextmanager
def train_everything(model) -> Iterator[None]:
    """Adapters are out of the way, and every weight of the base has a gradient; afterwards all is as before."""
    before = {weight: weight.requires_grad for weight in model.parameters()}
    with model.disable_adapter():
        yield model.requires_grad_(True)
    for weight, trained in before.items():
        weight.requires_grad_(trained).grad = None


def take_steps(step: Callable[..., float], plan: Plan, model, *, bfloat16: bool = False) -> list[float]:
    """Seconds of a step on each batch of `plan`, after one on the first to warm up; `step` is what `make_step` gives."""
    shapes = list(zip(plan.lengths, plan.widths, strict=True))
    inputs = (make_inputs(*each, model) for each in [shapes[0], *shapes])
    _, *taken = map(partial(step, bfloat16=bfloat16), inputs)
    return taken


def make_step(model, config: RunConfig) -> Callable[..., float]:
    """Forward, backward and optimizer step on one batch, as a function that returns the seconds they took."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=0.0, fused=True)

    def step(inputs: dict, *, bfloat16: bool = False) -> float:
        began = time.perf_counter()
        with torch.autocast(best_device().type, torch.bfloat16, enabled=bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        return time.perf_counter() - began

    return step
