"""Figures of the evidence, from its records alone; `draw` in `rebuild` saves them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..figures import BLUE, GREEN, GREY, ORANGE, SMALL, make_axes

QUESTIONS = {  # parts, where they were run, and what they ask
    "batch-sizes": "smaller batches",
    "places": "adapters in another place",
    "ranks": "another rank",
    "rivals": "other weights trained",
}


def draw_throughput(record: dict) -> Figure:
    """Examples a second of a training step of roberta-base by pipeline, from the evidence `bench` alone."""
    rates = {row["pipeline"]: row["examples_per_second"] for row in record["rows"] if row["model"] == "roberta-base"}
    figure, axes = make_axes(size=(6.4, 2.6))
    bars = axes.barh(list(rates), rates.values(), color=[GREEN if n.startswith("ours") else GREY for n in rates])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel="examples a second", title="A step at roberta-base's shape", xlim=(0, 1.15 * max(rates.values())))
    axes.invert_yaxis()
    return figure


def draw_studies(evidence: dict) -> Figure:
    """How far `mini-agnews` is ahead of its variants on validation rows: means over paired seeds, 95 % intervals."""
    parts = {title: evidence[name] for name, title in QUESTIONS.items() if name in evidence}
    arms = {title: part.get("variants") or part["arms"] for title, part in parts.items()}
    arms = {title: [pair for pair in found.items() if "interval" in pair[1]] for title, found in arms.items()}
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
    """Validation accuracy of `mini-agnews` by learning rate: mean and range over seeds."""
    figure, axes = make_axes(size=(6.4, 3.4))
    arms = evidence["learning-rates"]["variants"]
    rates = {float(name): arms[name]["validation_accuracy"] for name in sorted(arms, key=float)}
    _plot_ranges(axes, rates, "{:g}", color=BLUE, marker="o")
    axes.set(
        xlabel="learning rate at its peak",
        ylabel="share of validation rows right",
        title="Mean and range by learning rate",
    )
    return figure


def draw_label_counts(evidence: dict) -> Figure:
    """Test accuracy by the number of labelled training rows, of `mini-agnews` and of a linear model on the same rows."""
    study, figure, axes = evidence["label-counts"], *make_axes()
    lora = {size["rows"]: [run["accuracy"] for run in size["runs"]] for size in study["sizes"]}
    linear = {size["rows"]: [run["linear"]["accuracy"] for run in size["runs"]] for size in study["sizes"]}
    _plot_ranges(axes, lora, "{:,}", color=BLUE, marker="o", label="LoRA")
    _plot_ranges(axes, linear, "{:,}", color=ORANGE, marker="s", label="linear model")
    axes.set(
        xlabel="labelled training rows", ylabel="share of test rows right", title="Mean and range by labelled rows"
    )
    axes.legend(loc="lower right", fontsize=SMALL)
    return figure


def _plot_ranges(axes, values: dict[float, list[float]], form: str, **look) -> None:
    """Mean and range of the values at each place of a logarithmic axis, which is named there in `form`."""
    axes.plot(list(values), [np.mean(each) for each in values.values()], **look)
    ends = ([end(each) for each in values.values()] for end in (min, max))
    axes.vlines(list(values), *ends, color=look["color"])
    axes.set_xscale("log")
    axes.set_xticks(list(values), map(form.format, values))
    axes.minorticks_off()
