"""Figures of the evidence, from its records alone: each function in `FIGURES` takes all of it, by part."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..architecture import draw_roberta_base
from ..environment import code_mark
from ..figures import BLUE, GREEN, GREY, ORANGE, SMALL, draw_figures, make_axes, save
from ..records import committed_runs, read_evidence

QUESTIONS = {  # parts, if they were run, and what they ask
    "ablations": "itself without a shortcut",
    "batch-sizes": "smaller batches",
    "places": "adapters in another place",
    "ranks": "another rank",
    "rivals": "other weights trained",
}


def draw_all(output_dir: Path) -> list[Path]:
    """Every figure of the committed runs and of the evidence; returns the files."""
    runs, evidence, files = draw_figures(committed_runs(), output_dir), read_evidence(), []
    for name, (draw, *parts) in FIGURES.items():
        files.append(Path(output_dir) / f"{name}.png")
        save(draw(evidence), files[-1], f"evidence {', '.join(parts)}, {_mark_codes(evidence, parts)}")
    return [draw_roberta_base(output_dir), *(path for drawn in runs.values() for path in drawn.values()), *files]


def _mark_codes(evidence: dict, parts: list[str]) -> str:
    """Which code computed what a figure shows: of each part that of its runs, and its own."""
    marks = []
    for part in (evidence[name] for name in parts if name in evidence):
        arms = (arm for group in part.get("sizes", [part]) for arm in _arms_of(group).values())
        marks += [run["code"] for arm in arms for run in arm.get("runs", ()) if "code" in run]
        marks.append(code_mark(part["environment"]))
    return "; ".join(dict.fromkeys(marks))


def _arms_of(part: dict) -> dict[str, dict]:
    return part.get("variants") or part.get("arms", {})


def draw_throughput(evidence: dict) -> Figure:
    """Examples a second of a training step of roberta-base by pipeline."""
    rows, machine = evidence["bench"]["rows"], evidence["bench"]["environment"]
    rates = {row["pipeline"]: row["examples_per_second"] for row in rows if row["model"] == "roberta-base"}
    figure, axes = make_axes(size=(6.4, 2.6))
    bars = axes.barh(list(rates), rates.values(), color=[GREEN if n.startswith("ours") else GREY for n in rates])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(title="A step at roberta-base's shape", xlim=(0, 1.15 * max(rates.values())))
    axes.set_xlabel(f"examples a second ({machine['processor']}, {machine['cores']} cores)")
    axes.invert_yaxis()
    return figure


def draw_studies(evidence: dict) -> Figure:
    """How far `mini-agnews` is ahead of its variants on validation rows: means over paired seeds, 95 % intervals."""
    parts = {title: evidence[name] for name, title in QUESTIONS.items() if name in evidence}
    arms = {title: [pair for pair in _arms_of(part).items() if "interval" in pair[1]] for title, part in parts.items()}
    rows = [len(found) for found in arms.values()]
    looks = {"sharex": True, "squeeze": False, "height_ratios": rows}
    figure, panels = make_axes(size=(6.4, 1.2 + 0.36 * len(rows) + 0.3 * sum(rows)), rows=len(rows), **looks)
    for axes, (title, found) in zip(panels.flat, arms.items(), strict=True):
        axes.axvline(0, color=GREY, ls=":")
        for place, (_, arm) in enumerate(found):
            low, high = (100 * end for end in arm["interval"])
            color = BLUE if low > 0 or high < 0 else GREY
            axes.plot([low, high], [place, place], color=color, lw=2)
            axes.plot(100 * arm["difference"], place, color=color, marker="o")
        axes.set_yticks(range(len(found)), [f"{name} ({len(arm['validation_accuracy'])})" for name, arm in found])
        axes.set_title(title, loc="left", fontsize=SMALL)
        axes.set_ylim(len(found) - 0.5, -0.5)
    figure.suptitle("Validation accuracy: mini-agnews minus … (seeds)")
    axes.set_xlabel("points, 95 % interval over seeds")
    return figure


def draw_learning_rates(evidence: dict) -> Figure:
    """Validation accuracy of `mini-agnews` by learning rate."""
    arms = evidence["learning-rates"]["variants"]
    rates = {float(name): arms[name]["validation_accuracy"] for name in sorted(arms, key=float)}
    return _draw_ranges({"LoRA": rates}, "{:g}", "learning rate at its peak", "validation")


def draw_label_counts(evidence: dict) -> Figure:
    """Test accuracy by the number of labelled training rows, of `mini-agnews` and of a linear model on the same rows."""
    sizes = evidence["label-counts"]["sizes"]
    arms = {arm: {size["rows"]: size["arms"][arm]["test_accuracy"] for size in sizes} for arm in sizes[0]["arms"]}
    return _draw_ranges(arms, "{:,}", "labelled training rows", "test")


def _draw_ranges(arms: dict[str, dict[float, list[float]]], form: str, varied: str, split: str) -> Figure:
    """Accuracies of each arm by what is varied, on a logarithmic axis, where they are named in `form`."""
    figure, axes = make_axes()
    for (arm, values), color, marker in zip(arms.items(), (BLUE, ORANGE), "os", strict=False):
        axes.plot(values.keys(), [np.mean(each) for each in values.values()], color=color, marker=marker, label=arm)
        axes.vlines(values.keys(), *([end(each) for each in values.values()] for end in (min, max)), color=color)
    axes.set(xlabel=varied, ylabel=f"share of {split} rows right", title="Mean and range over seeds", xscale="log")
    axes.set_xticks(list(values), map(form.format, values))
    axes.minorticks_off()
    if len(arms) > 1:
        axes.legend(loc="lower right", fontsize=SMALL)
    return figure


FIGURES = {  # what draws it, and the parts that it shows
    "throughput": (draw_throughput, "bench"),
    "studies": (draw_studies, *QUESTIONS),
    "learning-rates": (draw_learning_rates, "learning-rates"),
    "label-counts": (draw_label_counts, "label-counts"),
}
