"""The figures of the benchmarks, from the evidence alone: throughput of four pipelines, and growth with the work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..figures import BLUE, GREEN, GREY, ORANGE, make_axes, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = {  # what grows, and what was done at each size
    "training_rows": ("training rows", "an epoch, bundled base"),
    "tokens": ("tokens a row", "a step of 16 rows, roberta-base"),
    "rank": ("rank", "a step of 16 rows, roberta-base"),
    "predicted_rows": ("rows of a file", "labels for short texts, bundled base"),
}


def draw_benchmark_figures(evidence: dict, output_dir: Path | str) -> list[Path]:
    """Draw `throughput.png` and `growth.png`, as far as `evidence` has their parts; returns the files."""
    written = []
    for name, part, draw in (("throughput", "bench", draw_throughput), ("growth", "growth", draw_growth)):
        if part in evidence:
            path, environment = Path(output_dir) / f"{name}.png", evidence[part]["environment"]
            source = f"evidence {part}, {environment['processor']}, {environment['cores']} cores"
            save(draw(evidence[part]), path, source, environment)
            written.append(path)
    return written


def draw_throughput(record: dict) -> Figure:
    """Examples a second of the four pipelines, and how much of the machine's matrix-product rate is useful work."""
    figure, (left, right) = make_axes(columns=2, size=(9, 3.9))
    rows = [row for row in record["rows"] if row["model"] == "roberta-base"]
    names, colors = [row["pipeline"] for row in rows], [GREY] * (len(rows) - 1) + [GREEN]
    bars = left.barh(names, [row["examples_per_second"] for row in rows], color=colors)
    left.bar_label(bars, fmt="%.1f", padding=3)
    left.set(xlabel="examples a second", title="A training step of roberta-base")
    left.set_xlim(0, 1.15 * max(row["examples_per_second"] for row in rows))
    bars = right.barh(names, [row["useful_gflops"] for row in rows], color=colors)
    right.bar_label(bars, fmt="%.0f", padding=3)
    ceiling = record["ceiling_gflops"]
    right.axvline(ceiling, color=ORANGE, ls="--", label=f"matrix product alone: {ceiling:.0f}")
    right.set(xlabel="GFLOP/s of use to the answer", title="Useful work", xlim=(0, 1.15 * ceiling), yticks=[])
    right.legend(loc="upper right", bbox_to_anchor=(0.86, 1), fontsize=9)  # left of the line
    for axes in (left, right):
        axes.invert_yaxis()
    return figure


def draw_growth(record: dict) -> Figure:
    """Seconds and peak memory of each series, sizes on a logarithmic axis; the dotted line grows in proportion."""
    from matplotlib.ticker import EngFormatter, NullFormatter, StrMethodFormatter

    figure, axes = make_axes(columns=len(SERIES), size=(15, 6.4), rows=2)
    for column, (name, (label, work)) in enumerate(SERIES.items()):
        size = np.array([row["size"] for row in record[name]])
        seconds = np.array([row["seconds"] for row in record[name]])
        memory = np.array([row["peak_memory_mib"] or np.nan for row in record[name]])
        time_axes, memory_axes = axes[:, column]
        time_axes.plot(size, seconds, color=BLUE, marker="o", label="measured")
        if name == "rank":  # which is not what the work is made of
            time_axes.set_ylim(0, 1.6 * seconds.max())
        else:
            time_axes.plot(size, seconds[-1] * size / size[-1], color=GREY, ls=":", label="in proportion")
            time_axes.set_yscale("log")
        time_axes.set(ylabel="seconds", title=work)
        time_axes.legend(fontsize=9, loc="upper left")
        memory_axes.plot(size, memory, color=ORANGE, marker="o")
        memory_axes.set_ylim(0, None if np.isnan(memory).all() else 1.2 * np.nanmax(memory))
        memory_axes.set(xlabel=label, ylabel="peak memory (MiB)")
        for each in (time_axes, memory_axes):
            each.set_xlim(size[0] / 1.3, 1.3 * size[-1])
            each.set_xscale("log")
            each.set_xticks(size, minor=False)
            each.xaxis.set_major_formatter(EngFormatter(sep=""))
            each.xaxis.set_minor_formatter(NullFormatter())
        time_axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        time_axes.yaxis.set_minor_formatter(NullFormatter())
    return figure
