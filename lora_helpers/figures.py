"""Every figure, from run records alone: no model, no data set, nothing random.

Called by `python -m lora_helpers figures` and by the notebook. Each `draw_…` function returns a matplotlib Figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .config import LABELS
from .environment import code_mark
from .records import read_record, training_rows, validation_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008): distinguishable with every common colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
POLICIES = {
    "block": "blocks of 1,000,\nlongest of block",
    "fixed": "fixed 128",
    "random": "random batches,\nlongest of batch",
    "length-grouped": "length-grouped,\nlongest of batch",
}


def draw_figures(run_dirs: list[Path | str], output_dir: Path | str) -> list[Path]:
    """Draw every figure of every run as `output_dir/RUN-FIGURE.png`; returns the files."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for run_dir in run_dirs:
        record = read_record(run_dir)
        name = Path(run_dir).resolve().name
        for kind, draw in FIGURES.items():
            if kind in ("confusion", "reliability") and "test" not in record:
                continue  # the run has not been evaluated on its test split yet
            path = output_dir / f"{name}-{kind}.png"
            save(draw(record), path, f"run {name}, seed {record['config']['seed']}", record["environment"])
            written.append(path)
    return written


def draw_losses(record: dict) -> Figure:
    """Training loss (mean over the steps since the last point) and validation loss, by step."""
    figure, axes = make_axes()
    train, validation = training_rows(record), validation_rows(record)
    axes.plot(
        _column(train, "step"),
        _column(train, "loss"),
        color=ORANGE,
        ls="--",
        marker=".",
        label="training (running mean)",
    )
    axes.plot(
        _column(validation, "step"), _column(validation, "eval_loss"), color=BLUE, marker="o", ms=4, label="validation"
    )
    axes.set(xlabel="optimizer step", ylabel="cross-entropy (nats)", title="Loss")
    axes.legend()
    return figure


def draw_accuracy(record: dict) -> Figure:
    """Validation accuracy by step; saved checkpoints are marked."""
    figure, axes = make_axes()
    rows = validation_rows(record)
    steps, accuracy = _column(rows, "step"), _column(rows, "eval_accuracy")
    axes.plot(steps, accuracy, color=BLUE, marker=".", label="validation")
    saved = [(int(s), c["validation_accuracy"]) for s, c in record["checkpoints"].items() if c["validation_accuracy"]]
    axes.plot(*zip(*saved, strict=True), ls="", marker="s", ms=8, mfc="none", color=ORANGE, label="saved checkpoint")
    axes.set(xlabel="optimizer step", ylabel="share of validation rows right", title="Validation accuracy")
    axes.legend(loc="lower right")
    return figure


def draw_architecture(record: dict) -> Figure:
    """Where the rank-r update sits, with the true shapes of the run's model."""
    shape, config = record["shape"], record["config"]
    width, rank, counts = shape["hidden_size"], config["lora_rank"], record["parameters"]
    sizes = {name: f"{shape[name][0]} x {shape[name][1]}" for name in ("W", "A", "B")}
    head = ", ".join(f"{columns} x {rows}" for rows, columns in shape["head"])
    layers = f"{shape['num_hidden_layers']} encoder layers\nwidth {width}\nfeed-forward {shape['feed_forward_size']:,}"
    figure, axes = make_axes(size=(8, 4.6))
    axes.set(xlim=(0, 16), ylim=(0, 9.2), title=f"LoRA in {shape['model_type']}: what is frozen, what is trained")
    axes.axis("off")
    box = _make_box(axes)
    box(0.2, 0.3, 4.6, 1.2, f"token embeddings (frozen)\n{shape['vocab_size']:,} x {width}", GREY)
    box(0.2, 2.2, 4.6, 3.6, f"{layers}\n(frozen)", GREY)
    box(0.2, 6.6, 4.6, 1.8, f"classification head (trained)\n{head}\n{counts['head']:,} parameters", GREEN)
    for low, high in ((1.5, 2.2), (5.8, 6.6)):
        _arrow(axes, (2.5, low), (2.5, high))
    targets = ", ".join(config["lora_targets"])
    axes.text(11, 8.6, f"inside every layer, for: {targets}", ha="center", fontsize=11)
    box(6.4, 3.2, 3.6, 2.2, f"W (frozen)\n{sizes['W']}", GREY)
    box(11.4, 2.2, 4.2, 1.3, f"A (trained)\n{sizes['A']}", BLUE)
    box(11.4, 5.0, 4.2, 1.3, f"B (trained, starts at 0)\n{sizes['B']}", BLUE)
    axes.text(10.8, 0.7, f"x: {shape['W'][1]} numbers", ha="center", fontsize=11)
    for end in ((8.2, 3.2), (13.5, 2.2)):
        _arrow(axes, (10.8, 1.1), end)
    _arrow(axes, (13.5, 3.5), (13.5, 5.0))
    _arrow(axes, (8.2, 5.4), (10.5, 7.3))
    _arrow(axes, (13.5, 6.3), (11.1, 7.3))
    scale = f"{config['lora_alpha']:g}/{rank}"
    axes.text(10.8, 7.6, f"h = W x + ({scale}) B A x", ha="center", fontsize=12)
    axes.text(
        10.8, 0.0, f"LoRA {counts['lora']:,} + head {counts['head']:,} = {counts['trainable']:,} trained "
        f"of {counts['total']:,} ({100 * counts['trainable'] / counts['total']:.2f} %)", ha="center", fontsize=10,
    )  # fmt: skip
    return figure


def draw_confusion(record: dict) -> Figure:
    """Test rows by true and predicted class: counts, shaded by share of the true class."""
    counts = np.array(record["test"]["confusion"])
    share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure, axes = make_axes(size=(5.4, 4.8))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        axes.text(
            j,
            i,
            f"{count:,}\n{share[i, j]:.1%}",
            ha="center",
            va="center",
            color="white" if share[i, j] > 0.5 else "black",
        )
    axes.set_xticks(range(len(LABELS)), LABELS)
    axes.set_yticks(range(len(LABELS)), LABELS)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"Confusion on {counts.sum():,} test rows")
    figure.colorbar(image, ax=axes, label="share of the true class")
    return figure


def draw_reliability(record: dict) -> Figure:
    """Accuracy by confidence on the test split, with the number of rows behind each point."""
    calibration = record["test"]["calibration"]
    confidence, accuracy, count = (
        np.array(_column(calibration["bins"], k)) for k in ("confidence", "accuracy", "count")
    )
    enough = count >= 10  # fewer rows say nothing about a share; their bars stay
    figure, axes = make_axes(size=(5.4, 4.8))
    axes.plot([0.25, 1], [0.25, 1], color=GREY, ls=":", label="perfectly calibrated")
    axes.plot(
        confidence[enough], accuracy[enough], color=BLUE, marker="o", label="this model (bins of 10 rows and more)"
    )
    rows = axes.twinx()
    rows.bar(confidence, count, width=0.03, color=ORANGE, alpha=0.35)
    rows.set(ylabel="test rows (bars, log scale)", yscale="log")
    axes.set(xlabel="confidence (probability of the predicted class)", ylabel="share of rows right", ylim=(0, 1.02))
    axes.set_title(f"Reliability: expected calibration error {calibration['ece']:.3f}")
    axes.legend(loc="upper left", fontsize=9)
    return figure


def draw_lengths(record: dict) -> Figure:
    """Token lengths of the training rows, and what four padding policies cost."""
    tokens = np.array([int(length) for length in record["lengths"]])
    counts = np.array(list(record["lengths"].values()))
    figure, (left, right) = make_axes(columns=2, size=(9, 3.9))
    left.bar(tokens, counts, width=1.0, color=BLUE)
    mean = (tokens * counts).sum() / counts.sum()
    left.axvline(mean, color=ORANGE, ls="--", label=f"mean {mean:.0f} tokens")
    left.set(xlabel="tokens an example", ylabel="training rows", title="Length")
    left.legend()
    cost = [record["padding"][name] for name in POLICIES]
    bars = right.barh(list(POLICIES.values()), cost, color=[GREY, GREY, GREY, GREEN])
    right.bar_label(bars, fmt="%.2f x", padding=3)
    right.set(xlabel="processed tokens / real tokens", title="Cost of padding", xlim=(0, max(cost) * 1.2))
    right.invert_yaxis()
    return figure


def draw_norms(record: dict) -> Figure:
    """Frobenius norm of (alpha / r) B A in every adapted layer."""
    norms = record["lora_norms"]
    figure, axes = make_axes()
    names = [_short(name) for name in norms]
    axes.bar(names, list(norms.values()), color=BLUE)
    axes.tick_params(axis="x", rotation=45 if len(names) > 6 else 0)
    axes.set(xlabel="adapted layer", ylabel="||(alpha / r) B A||, Frobenius", title="How far each layer was moved")
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


def make_axes(columns: int = 1, size=(7, 3.9), *, rows: int = 1):
    """A figure of our style and its axes: large type, so that it can be read at half size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns)
    for each in np.ravel(axes):
        each.tick_params(labelsize=11)
        each.xaxis.label.set_size(12)
        each.yaxis.label.set_size(12)
    return figure, axes


def save(figure: Figure, path: Path, source: str, environment: dict) -> None:
    """Write a PNG with its source in a small caption, and nothing in it that changes from day to day."""
    figure.supxlabel(f"{source}, {code_mark(environment)}", x=0.995, ha="right", fontsize=7, color=GREY)
    figure.savefig(path, metadata={"Software": None})


def _column(rows: list[dict], key: str) -> list[float]:
    return [row[key] for row in rows]


def _short(name: str) -> str:
    """`roberta.encoder.layer.3.attention.self.query` as `3 query`."""
    number = next((part for part in name.split(".") if part.isdigit()), "")
    return f"{number} {name.rsplit('.', 1)[-1]}".strip()


def _make_box(axes):
    from matplotlib.patches import FancyBboxPatch

    def box(x, y, width, height, text, color):
        patch = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.08", fc=color + "33", ec=color, lw=2)
        axes.add_patch(patch)
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)

    return box


def _arrow(axes, start, end) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.2})
