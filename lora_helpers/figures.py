"""Every figure of a run, from records alone: no model, no data set, nothing random.

Called by `python -m lora_helpers figures` and by the notebook. Each function in `FIGURES` returns a matplotlib
Figure that is readable at a width of 400 pixels, or None where the record has too little to show.
"""

import re
from base64 import b64encode
from collections import Counter
from html import escape
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from .architecture import draw_architecture
from .config import AG_NEWS, BUNDLED, LABELS, MAY_DIFFER, SOURCES
from .environment import code_mark
from .errors import InputError, written_into
from .evaluation import accuracy_interval
from .files.places import CHECKPOINTS
from .records import RECORD, find_rivals, read_evidence, read_record, training_rows, validation_rows

# Okabe and Ito (2008): distinguishable with every common colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
SIZES = {"axes.titlesize": 14, "axes.labelsize": 13, "xtick.labelsize": 12, "ytick.labelsize": 12}  # points
SMALL = 12  # points, of what stands inside a figure
POLICIES = {
    "block": "blocks of 1,000 rows",
    "fixed": "every row at 128",
    "random": "random batches",
    "length-grouped": "like lengths together",
}
ENOUGH_ROWS = 1000  # of a test split, for a reliability diagram to say anything


def draw_figures(run_dirs: list[Path | str], output_dir: Path | str) -> dict[str, dict[str, Path]]:
    """Draw every figure of every run as `output_dir/RUN-KIND.png`; returns the files by run and kind.

    Raises: InputError: two runs of one name, whose files would overwrite each other; a folder that cannot be written.
    """
    output_dir, drawn, names = Path(output_dir), {}, Counter(Path(run_dir).resolve().name for run_dir in run_dirs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(f"more than one run is called {twice[0]}; draw each into a folder of its own")
    for run_dir in run_dirs:
        record, run = read_record(run_dir), Path(run_dir).resolve().name
        figures = {kind: figure for kind, draw in FIGURES.items() if (figure := draw(record))}
        drawn[run] = {kind: output_dir / f"{run}-{kind}.png" for kind in figures}
        for kind, figure in figures.items():
            source = f"run {run}, seed {record['config']['seed']}, {code_mark(record['environment'])}"
            save(figure, drawn[run][kind], source)
    return drawn


def draw_losses(record: dict) -> Figure:
    """Training loss (its mean over the steps since the last point) and validation loss, by step."""
    figure, axes = make_axes()
    guess, train = np.log(len(LABELS)), _columns(training_rows(record), "step", "loss")
    validation = _columns(validation_rows(record), "step", "eval_loss")
    axes.axhline(guess, color=GREY, ls=":")
    place = record["config"]["max_steps"], guess - 0.02
    axes.text(*place, "guessing: ln 4", ha="right", va="top", size=SMALL, color=GREY)
    axes.plot(*train, color=ORANGE, ls="--", marker=".", label="training, mean since last point")
    axes.plot(*validation, color=BLUE, marker="o", ms=4, label="validation")
    smoothed = ", smoothed labels" if record["config"].get("label_smoothing_factor") else ""
    axes.set(xlabel="optimizer step", ylabel=f"cross-entropy (nats){smoothed}", title=f"Loss: {_name_data(record)}")
    axes.set_ylim(0, max(1.45, *train[1], *validation[1]))
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9), fontsize=SMALL)
    return figure


def draw_accuracy(record: dict) -> Figure:
    """Validation accuracy by step; on the very same rows, its range over seeds and what simpler models reach."""
    figure, axes = make_axes()
    steps, accuracy = _columns(validation_rows(record), "step", "eval_accuracy")
    evidence = _read_its_evidence(record)
    curves = [run["curve"] for run in evidence.get(f"{record['profile']}-seeds", {}).get("runs", []) if "curve" in run]
    if curves:  # of each seed, [[step, accuracy], …]
        at, values = np.array(curves)[0, :, 0], np.array(curves)[:, :, 1]
        look = {"color": BLUE, "alpha": 0.2, "lw": 0, "label": f"range of {len(curves)} seeds"}
        axes.fill_between(at, values.min(axis=0), values.max(axis=0), **look)
    axes.plot(steps, accuracy, color=BLUE, marker=".", label="LoRA and head")
    saved = [(int(s), c["validation_accuracy"]) for s, c in record["checkpoints"].items() if c["validation_accuracy"]]
    axes.plot(*zip(*saved, strict=True), ls="", marker="s", ms=8, mfc="none", color=ORANGE, label="saved checkpoint")
    linear = evidence.get("baselines", {}).get(record["profile"], {}).get("chosen", {})
    rivals = find_rivals(record["profile"], evidence)["arms"]
    means = {arm: (found["mean"], len(found["runs"])) for arm, found in rivals.items() if arm != "LoRA"}
    for (arm, (value, seeds)), style in zip(means.items(), (":", "-."), strict=False):
        axes.axhline(value, color=GREEN, ls=style, label=f"{arm}, {seeds} seed{'s' * (seeds > 1)}: {value:.3f}")
    if value := linear.get("validation_accuracy"):
        axes.axhline(value, color=GREY, ls="--", label=f"linear model, all rows: {value:.3f}")
    axes.set(xlabel="optimizer step", ylabel="share of rows right", title=f"Validation accuracy: {_name_data(record)}")
    axes.set_ylim(min(0.7, min(accuracy) - 0.02), 1)
    axes.legend(loc="lower right", fontsize=SMALL)
    return figure


def draw_confusion(record: dict) -> Figure | None:
    """Test rows by true and predicted class: counts, shaded by share of the true class."""
    if "test" not in record:
        return None
    counts = np.array(record["test"]["confusion"])
    share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure, axes = make_axes(size=(6.4, 5.6))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        color = "white" if share[i, j] > 0.5 else "black"
        axes.text(j, i, f"{count:,}\n{share[i, j]:.1%}", ha="center", va="center", color=color, size=13)
    axes.set_xticks(range(len(LABELS)), LABELS)
    axes.set_yticks(range(len(LABELS)), LABELS)
    axes.set(
        xlabel="predicted class; % of the true class's rows",
        ylabel="true class",
        title=f"{counts.sum():,} test rows: {_name_data(record)}",
    )
    return figure


def draw_reliability(record: dict) -> Figure | None:
    """Accuracy by confidence on the test split, with Wilson's 95 % intervals, and below it the rows behind each point."""
    if record.get("test", {}).get("examples", 0) < ENOUGH_ROWS:
        return None
    confidence, p, n = _columns(record["test"]["calibration"]["bins"], "confidence", "accuracy", "count")
    hits = (round(right * rows) for right, rows in zip(p, n, strict=True))
    ends = zip(*map(accuracy_interval, hits, n), strict=True)
    figure, (axes, strip) = make_axes(size=(6.4, 5.6), rows=2, height_ratios=(3, 1), sharex=True)
    axes.plot([0.25, 1], [0.25, 1], color=GREY, ls=":", label="perfectly calibrated")
    axes.plot(confidence, p, color=BLUE, ls="", marker="o", label="this model, 95 % intervals")
    axes.vlines(confidence, *ends, color=BLUE)
    title = f"Expected calibration error {record['test']['calibration']['ece']:.3f}: {_name_data(record)}"
    axes.set(ylabel="share of rows right", ylim=(-0.03, 1.03), title=title)
    axes.legend(loc="lower right", fontsize=SMALL)
    strip.bar(confidence, n, width=0.03, color=GREY)
    strip.set(xlabel="confidence in the predicted class", ylabel="rows", yscale="log")
    return figure


def draw_lengths(record: dict) -> Figure:
    """Token lengths of the training rows, and what four policies of padding cost."""
    tokens, counts = np.array([(int(length), count) for length, count in record["lengths"].items()]).T
    mean, cut = np.average(tokens, weights=counts), record["config"]["max_length"]
    figure, (top, bottom) = make_axes(size=(6.4, 6.6), rows=2)
    top.bar(tokens, counts, width=1.0, color=BLUE)
    top.axvline(mean, color=ORANGE, ls="--", label=f"mean: {mean:.0f} tokens")
    top.set(xlabel="tokens a row", ylabel="training rows", title=f"Lengths: {_name_data(record)}")
    top.legend(loc="upper right", fontsize=SMALL)
    title = "Cost of padding"
    if tokens[-1] == cut:
        title += f", rows cut at {cut} first"
        note, place = f"{cut} tokens, cut or not:\n{counts[-1]:,} rows", (cut, 0.4 * counts.max())
        top.annotate(note, (cut, counts[-1]), place, ha="right", size=SMALL, arrowprops={"arrowstyle": "->"})
    cost = [record["padding"][name] for name in POLICIES]
    bars = bottom.barh(list(POLICIES.values()), cost, color=[GREY, GREY, GREY, GREEN])
    bottom.bar_label(bars, fmt="%.2f x", padding=3, size=SMALL)
    bottom.set(xlabel="processed tokens / real tokens", title=title, xlim=(0, max(cost) * 1.2))
    bottom.invert_yaxis()
    return figure


def draw_norms(record: dict) -> Figure | None:
    """The update (alpha / r) B A by layer: its singular values beside the largest of W, and its norm as a share of W's."""
    names, norms = list(record["lora_norms"]), list(record["lora_norms"].values())
    if not isinstance(norms[0], dict):  # as version 1.0.0 recorded them
        return None
    places, targets = np.arange(len(names)), [name.rpartition(".")[2] for name in names]
    layers, several = [re.search(r"\b\d+\b|$", name)[0] for name in names], len(set(targets)) > 1
    values, largest, relative = _columns(norms, "singular_values", "largest_of_W", "relative")
    figure, axes = make_axes()
    for i, (color, name) in enumerate(((ORANGE, "1st"), ("#F0B48C", "2nd"))[: len(values[0])]):
        axes.bar(places + 0.4 * i - 0.2, [v[i] for v in values], 0.4, color=color, label=f"update, {name}")
    axes.plot(places, largest, ls="", marker="_", ms=22, mew=3, color=GREY, label="W, 1st")
    axes.margins(y=0.4)  # room for the legend
    axes.legend(loc="upper left", ncols=2, fontsize=SMALL)
    axes.set(ylabel="singular value", title="Singular values; %: norm of the update / of W")
    axes.set_xlabel(f"layer ({', '.join(sorted(set(targets)))})")
    names = map(" ".join, zip(layers, targets, strict=True)) if several else layers
    labels = [f"{name}\n{share:.0%}" for name, share in zip(names, relative, strict=True)]
    axes.set_xticks(places, labels, rotation=90 * several)
    return figure


FIGURES = {
    "loss": draw_losses,
    "accuracy": draw_accuracy,
    "architecture": draw_architecture,
    "confusion": draw_confusion,
    "reliability": draw_reliability,
    "lengths": draw_lengths,
    "norms": draw_norms,
}


def to_html(files: dict[str, Path], *kinds: str) -> str:
    """HTML, for a notebook, of those `kinds` that are in `files`; a `draw_…` docstring's first line is the alt text."""
    return "".join(
        f'<img width="480" alt="{escape(FIGURES[kind].__doc__.splitlines()[0])}"'
        f' src="data:image/png;base64,{b64encode(files[kind].read_bytes()).decode()}">'
        for kind in kinds
        if kind in files
    )


def make_axes(size=(6.4, 4.2), *, rows: int = 1, **named):
    """A figure of our style and its axes; `named` goes to `Figure.subplots`."""
    with rc_context(SIZES | {"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=size, dpi=130, layout="constrained")
        return figure, figure.subplots(rows, **named)


def save(figure: Figure, path: Path, source: str) -> None:
    """Write a PNG with its source in a small caption, and nothing in it that changes from day to day."""
    figure.supxlabel(fill(source, 85, break_on_hyphens=False), x=0.995, ha="right", fontsize=9, color=GREY)
    with written_into(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})


def _columns(rows: list[dict], *keys: str) -> list[list]:
    return [[row[key] for row in rows] for key in keys]


def _name_data(record: dict) -> str:
    dataset = record["config"]["dataset"]
    return {AG_NEWS: "AG News", BUNDLED: "bundled corpus"}.get(dataset, Path(dataset).name)


def _read_its_evidence(record: dict) -> dict:
    """The evidence that may stand beside a run: none if its rows are not those of its profile's committed run, of another
    base only the linear models, and the seeds only of the same recipe."""
    profile = record["profile"]
    committed = CHECKPOINTS / profile
    if not (committed / RECORD).is_file():
        return {}
    its = read_record(committed)
    if its["data"]["sha256"] != record["data"]["sha256"]:
        return {}
    evidence = read_evidence()
    if its["base"]["weights_sha256"] != record["base"].get("weights_sha256") or record["config"].get("random_base"):
        return {part: found for part, found in evidence.items() if part == "baselines"}
    changed = {name for name in its["config"] if its["config"][name] != record["config"].get(name)}
    changed -= MAY_DIFFER | {*SOURCES, *SOURCES.values(), "seed"}  # of base and data the contents were just compared
    return {part: found for part, found in evidence.items() if not (changed and part == f"{profile}-seeds")}
