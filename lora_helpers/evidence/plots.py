"""Figures of the evidence, from its records alone; `draw` in `rebuild` saves them."""

from __future__ import annotations

from matplotlib.figure import Figure

from ..figures import BLUE, GREEN, GREY, make_axes

STUDIES = "ablations", "places", "ranks", "learning-rates", "rivals"  # parts, where they were run


def draw_throughput(record: dict) -> Figure:
    """Examples a second of a training step of roberta-base by pipeline, from the evidence `bench` alone."""
    rates = {row["pipeline"]: row["examples_per_second"] for row in record["rows"] if row["model"] == "roberta-base"}
    figure, axes = make_axes(size=(6.4, 2.6))
    bars = axes.barh(list(rates), rates.values(), color=[GREEN if n.startswith("ours") else GREY for n in rates])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set(xlabel="examples a second", title="A training step of roberta-base", xlim=(0, 1.15 * max(rates.values())))
    axes.invert_yaxis()
    return figure


def draw_studies(evidence: dict) -> Figure:
    """How far `mini-agnews` is ahead of its variants on validation rows: means over paired seeds, 95 % intervals."""
    parts = [evidence[name] for name in STUDIES if name in evidence]
    arms = {arm: found for part in parts for arm, found in (part.get("variants") or part["arms"]).items()}
    arms = {f"{arm} ({len(found['validation_accuracy'])})": found for arm, found in arms.items() if "interval" in found}
    figure, axes = make_axes(size=(6.4, 1.3 + 0.36 * len(arms)))
    axes.axvline(0, color=GREY, ls=":")
    for place, found in enumerate(arms.values()):
        low, high = (100 * end for end in found["interval"])
        color = BLUE if low > 0 or high < 0 else GREY
        axes.plot([low, high], [place, place], color=color, lw=2)
        axes.plot(100 * found["difference"], place, color=color, marker="o")
    axes.set_yticks(range(len(arms)), arms)
    axes.set(xlabel="points of accuracy, 95 % interval", title="mini-agnews is ahead of … by (seeds)")
    axes.invert_yaxis()
    return figure
