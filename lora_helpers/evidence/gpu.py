"""On a CUDA device: whether it computes what a CPU does, and how long a whole run of roberta-base takes there (`make gpu`).

For speed roberta-base's shape and tokenizer are enough (ROBERTA_BASE_DIR): its weights are drawn at random.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
from safetensors.torch import load_file

from ..bases import compute_first_token_alone, full_size_shape
from ..checkpoints import WEIGHTS, list_checkpoints, step_of
from ..config import get_profile
from ..data import load_ag_news
from ..environment import code_mark, watch_peak_memory
from ..files.manifests import hash_file
from ..files.places import ROBERTA_BASE, RUNS
from ..training.run import train
from .study import load_committed, resume_into
from .training_speed import SAMPLED, make_step, take_steps
from .workload import BATCH, make_model, plan_epoch, sample_lengths

SIZES = (16, 32, 64, 128, 256, 512)  # rows of a batch
MEASURED = 12  # batches of each


def compare_devices(profile: str = "mini-agnews") -> dict:
    """The committed run of a CPU on its validation rows: the largest difference of a probability between CPU and GPU, both
    float32, and the share of labels that stay in the GPU's bfloat16."""
    texts = load_ag_news(get_profile(profile)).validation["text"][:]
    found = {}
    for name in ("cpu float32", "cuda float32", "cuda bfloat16"):
        device, precision = name.split()
        classifier = load_committed(profile, device=device, precision=precision)
        found[name] = classifier.predict_probabilities(texts)
    cpu, gpu, bfloat16 = found.values()
    same = float((cpu.argmax(axis=1) == bfloat16.argmax(axis=1)).mean())
    return {"rows": len(texts), "largest_difference": float(np.abs(cpu - gpu).max()), "bfloat16_agreement": same}


def repeat_runs(profile: str = "mini") -> dict:
    """A profile trained twice, and once more from its last checkpoint but one: whether all three end in the same bits, and
    if not, the largest difference of a trained weight."""
    config = get_profile(profile)
    first, repeated, resumed = (RUNS / f"gpu-{profile}-{name}" for name in ("first", "repeated", "resumed"))
    record = train(config, first, resume=True)
    train(config, repeated, resume=True)
    start, end = list_checkpoints(first)[-2:]
    resume_into(resumed, config, start)
    found = {"profile": profile, "arithmetic": record["arithmetic"], "resumed_at": step_of(start)}
    found["environment"] = record["environment"]
    for name, folder in (("repeated", repeated), ("resumed", resumed)):
        files = [each / WEIGHTS for each in (end, list_checkpoints(folder)[-1])]
        wanted, got = map(load_file, files)
        difference = max((wanted[key] - got[key]).abs().max().item() for key in wanted)
        found[name] = {"same_bits": len({*map(hash_file, files)}) == 1, "largest_difference": difference}
    return found


def time_headline(profiles: Sequence[str] = ("roberta-base", "original")) -> dict:
    """Whole runs, evaluations included: `seconds` from their start to their record, and peak memory."""
    rows = []
    for profile in profiles:
        record = train(get_profile(profile, random_base=True), RUNS / f"gpu-{profile}", resume=True)
        seconds, memory = record["timing"]["seconds"], record["timing"]["peak_memory_mib"]["gpu"]
        its = {"profile": profile, "arithmetic": record["arithmetic"], "code": code_mark(record["environment"])}
        rows.append(its | {"seconds": seconds, "peak_memory_mib": memory})
    return {"rows": rows}


def time_course(steps: int = 200) -> dict:
    """Steps of the course's pipeline, rows padded in blocks of 1,000 and float32, without loading or evaluation; and how
    long its 2,400 would take so."""
    config = get_profile("original")
    model = make_model(full_size_shape(ROBERTA_BASE), config)
    plan = plan_epoch("original", sample_lengths(SAMPLED, longest=config.max_length), steps)
    peak = watch_peak_memory(gpu=True)
    seconds = sum(take_steps(make_step(model, config), plan, model))
    speed = {"examples_per_second": steps * BATCH / seconds, "seconds_of_a_run": seconds / steps * config.max_steps}
    return {"steps": steps, **speed, "peak_memory_mib": peak()}


def time_batch_sizes(sizes: Sequence[int] = SIZES, batches: int = MEASURED) -> dict:
    """Examples a second and peak memory of a step with batches of like length, by their rows, in float32 (without TF32) and
    in bfloat16 autocast."""
    config, shape, rows = get_profile("roberta-base"), full_size_shape(ROBERTA_BASE), []
    shape.hidden_dropout_prob = shape.attention_probs_dropout_prob = config.base_dropout
    model = make_model(shape, config)
    lengths = sample_lengths(SAMPLED, longest=config.max_length)
    with compute_first_token_alone(model.base_model.model):
        step = make_step(model, config)
        for bfloat16, size in product((True, False), sizes):
            take = partial(take_steps, step, plan_epoch("ours", lengths, batches, size), model, bfloat16=bfloat16)
            take()  # to warm up: in bfloat16 the first step of every shape is many times as slow
            peak = watch_peak_memory(gpu=True)
            seconds = sum(take())
            speed = {"examples_per_second": size * batches / seconds, "peak_memory_mib": peak()}
            rows.append({"batch_size": size, "arithmetic": "bfloat16" if bfloat16 else "float32"} | speed)
    return {"rows": rows}
