"""`make evidence`: reruns everything that the repository claims, and is the only code that rewrites committed runs.

Each part writes a run folder under checkpoints/ or its own key of checkpoints/evidence.json. Most need AG News (the
Hub, or AG_NEWS_DIR). Choices are made on validation rows; test splits are only reported.
"""

import logging
import os
import shutil
import subprocess
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from ..checkpoints import WEIGHTS, list_checkpoints, step_of
from ..config import AG_NEWS, AG_NEWS_REVISION, BUNDLED, PROFILES, get_profile
from ..data import COMMITTED_ROWS, load_ag_news, load_split, row_marks
from ..environment import best_device, environment, has_fast_bfloat16, trains_on_gpu
from ..errors import InputError
from ..figures import draw_figures
from ..files.manifests import hash_file, read_manifest, seal
from ..files.places import CHECKPOINTS, REPOSITORY, RUNS
from ..inference import evaluate_classifier
from ..records import committed_runs, read_record, write_evidence
from . import study
from .plots import draw_all

logger = logging.getLogger(__name__)

FIGURES_FOLDER = REPOSITORY / "figures"
STATES = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")  # files of a checkpoint that only resuming reads
LARGE_STATES = 2**20  # bytes; where they are more, the last checkpoint but one alone keeps them
CARD = Path(__file__).parent / "card.md"  # of a profile's first run; `report` fills in the numbers


def rebuild(parts: list[str]) -> None:
    """Run the named parts; if none is named, the committed profiles and what is in `BY_DEFAULT`."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if (on_gpu := ON_GPU.keys() & parts) and not trains_on_gpu():
        raise InputError(f"{', '.join(sorted(on_gpu))}: measured on a GPU with CUDA, and there is none that works")
    if (elsewhere := ON_BFLOAT16.keys() & parts) and not (best_device().type == "cpu" and has_fast_bfloat16("cpu")):
        wanted = "measured on a processor with bfloat16 and without a GPU (CUDA_VISIBLE_DEVICES=-1 hides one)"
        raise InputError(f"{', '.join(sorted(elsewhere))}: {wanted}")
    for part in parts or [*(run.name for run in committed_runs()), *BY_DEFAULT]:
        logger.info("evidence: %s", part)
        facts = environment()  # of the code that is about to compute
        result = PARTS[part]()
        if isinstance(result, dict):  # the other parts write folders and figures
            write_evidence(part, {"environment": facts} | result)  # of a run that was made before, its own


def rerun_profile(profile: str) -> None:
    """The committed run of a profile: trained, or gone on with where it was stopped, tested, and put in its place."""
    config, fresh = get_profile(profile), RUNS / f"evidence-{profile}"
    record = study.train_and_test(config, fresh)
    if 2 * 4 * record["parameters"]["trainable"] > LARGE_STATES:  # AdamW's two moments
        *earlier, _, last = list_checkpoints(fresh)
        for folder in (*earlier, last):
            _leave_states_out(folder)
    resumable = ", ".join(folder.name for folder in list_checkpoints(fresh) if (folder / STATES[0]).is_file())
    values = {"profile": profile, "base": record["base"]["name"], "batch": config.batch_size, "steps": config.max_steps}
    values["resumable"] = resumable
    _replace(CHECKPOINTS / profile, fresh, CARD.read_text(encoding="utf-8").format(**values))
    draw_figures([CHECKPOINTS / profile], FIGURES_FOLDER)


def _leave_states_out(checkpoint: Path) -> None:
    about = {key: value for key, value in read_manifest(checkpoint).items() if key != "files"}
    for path in (path for pattern in STATES for path in checkpoint.glob(pattern)):
        path.unlink()
    seal(checkpoint, about)


def resume_again(profile: str) -> dict:
    """A committed run, gone on with from its last checkpoint but one: whether it ends in the same weights, bit by bit."""
    (*_, start, end), again = list_checkpoints(CHECKPOINTS / profile), RUNS / f"resumed-{profile}"
    facts = study.resume_into(again, get_profile(profile), start)["environment"]
    same = hash_file(end / WEIGHTS) == hash_file(list_checkpoints(again)[-1] / WEIGHTS)
    return {"profile": profile, "resumed_at": step_of(start), "same_bits": same, "environment": facts}


def rebuild_base() -> None:
    """The bundled base, pretrained anew; every committed run has to follow. Takes minutes of a GPU."""
    from ..pretraining.run import PretrainingConfig, pretrain

    pretrain(PretrainingConfig(), RUNS / "roberta-mini", resume=True)
    _replace(CHECKPOINTS / "roberta-mini", RUNS / "roberta-mini")


def list_rows() -> None:
    """checkpoints/ag_news_rows.bin: which of AG News' training rows the committed runs were made of, in their order."""
    here, there = load_ag_news(get_profile("mini-agnews")).fingerprints(), read_record(CHECKPOINTS / "mini-agnews")
    if here != there["data"]["sha256"]:
        raise InputError("these are not the rows of the committed runs; name their folder in AG_NEWS_DIR")
    COMMITTED_ROWS.write_bytes(b"".join(row_marks(load_split(AG_NEWS, "train", AG_NEWS_REVISION))))


def transfer() -> dict:
    """The AG News checkpoint on the bundled test split, which it never saw."""
    return evaluate_classifier(study.load_committed(device="cpu"), load_split(BUNDLED, "test"))


def time_file(rows: int = 8000) -> dict:
    """Seconds to label a file of AG News' training rows with the bundled base, loading included, by precision."""
    seconds = {}
    with TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        load_split(AG_NEWS, "train", AG_NEWS_REVISION).select(range(rows)).select_columns("text").to_json(source)
        for precision in ("float32", "int8"):
            began = time.monotonic()
            classifier = study.load_committed(precision=precision, device="cpu")  # int8 runs there alone
            classifier.predict_file(source, Path(folder) / f"{precision}.csv", progress=False)
            seconds[precision] = time.monotonic() - began
    return {"rows": rows, "seconds": seconds}


def time_notebook() -> dict:
    """Wall time and peak memory of the notebook on its default profile, offline, as `make run` executes it."""
    import resource

    began, variables = time.monotonic(), os.environ | {"HF_HUB_OFFLINE": "1", "PROFILE": "mini"}
    subprocess.run(["make", "run"], check=True, cwd=REPOSITORY, env=variables)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # the largest of the child processes
    return {"seconds": time.monotonic() - began, "peak_memory_mib": peak}


def _replace(target: Path, fresh: Path, card: str = "") -> None:
    """Put a finished folder in the place of a committed one, which keeps its card; the first gets `card`."""
    before, old = target / "README.md", fresh.with_name(f"{fresh.name}-replaced")
    (fresh / "README.md").write_bytes(before.read_bytes() if before.is_file() else card.encode())
    (fresh / ".lock").unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)
    if target.is_dir():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _load_and_run(module: str, function: str, *arguments, **named):
    """Import `module` only when its part runs, since it loads the training stack or scikit-learn; call `function`."""
    return getattr(import_module(f".{module}", __package__), function)(*arguments, **named)


BY_DEFAULT = {
    "mini-seeds": partial(study.repeat_seeds, "mini", study.MORE_SEEDS),
    # A control: a permutation of the labels a seed.
    "shuffled-labels": partial(study.repeat_seeds, "mini", shuffled_labels=True),
    "baselines": partial(_load_and_run, "baselines", "measure_baselines"),
    "contradictions": partial(_load_and_run, "limits", "count_contradictions"),
    "temperature": partial(_load_and_run, "limits", "fit_temperature"),
    "transfer": transfer,
    "prediction-speed": time_file,
    "growth": partial(_load_and_run, "prediction_speed", "measure_growth"),
    "int8": partial(_load_and_run, "prediction_speed", "compare_precisions"),
    "bench": partial(_load_and_run, "training_speed", "run_benchmark"),
    "notebook": time_notebook,
    "figures": partial(draw_all, FIGURES_FOLDER),
}
NAMED_ALONE = {  # what committed runs rest on, and what takes hours
    "base": rebuild_base,
    "rows": list_rows,
    "mini-agnews-seeds": partial(study.repeat_seeds, "mini-agnews", study.MORE_SEEDS),
    "batch-sizes": partial(study.run_study, study.BATCH_SIZES),
    "ablations": partial(study.run_study, study.ABLATIONS),
    "arithmetic": study.compare_arithmetic,
    "places": partial(study.run_study, study.PLACES),
    "ranks": partial(study.run_study, study.RANKS),
    "learning-rates": partial(study.run_study, study.LEARNING_RATES),
    "random-base": partial(study.run_study, study.BASES),
    "losses": study.compare_losses,
    "label-counts": partial(_load_and_run, "rivals", "count_labels"),
    "rivals": partial(_load_and_run, "rivals", "measure_rivals"),
    "mpnet-rivals": partial(_load_and_run, "rivals", "measure_rivals", "mpnet-base", {"head alone": (42,)}),
    "mpnet-rates": study.choose_rate,
    "mpnet-resumed": partial(resume_again, "mpnet-base"),
    "mpnet-int8": partial(_load_and_run, "prediction_speed", "compare_precisions", "mpnet-base", 1),
}
ON_BFLOAT16 = {  # again on a processor with instructions for bfloat16 and int8
    "bench-bfloat16": partial(
        _load_and_run, "training_speed", "run_benchmark",
        rounds=3, batches=2, rows=64, left_out=("original", "pad-128"),
    ),
    "prediction-speed-bfloat16": time_file,
}  # fmt: skip
ON_GPU = {
    "gpu-devices": partial(_load_and_run, "gpu", "compare_devices"),
    "gpu-repeated": partial(_load_and_run, "gpu", "repeat_runs"),
    "gpu-headline": partial(_load_and_run, "gpu", "time_headline"),
    "gpu-course": partial(_load_and_run, "gpu", "time_course"),
    "gpu-batches": partial(_load_and_run, "gpu", "time_batch_sizes"),
    "mpnet-studies": partial(study.run_study, study.AT_FULL_SIZE, profile="mpnet-base", seeds=study.SEEDS, tested=True),
    "mpnet-rivals-seeds": partial(_load_and_run, "rivals", "measure_full_size"),
}
PARTS = (
    {profile: partial(rerun_profile, profile) for profile in PROFILES} | BY_DEFAULT | NAMED_ALONE | ON_BFLOAT16 | ON_GPU
)
