"""The figure of the benchmark, from the evidence alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..figures import GREEN, GREY, make_axes, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_throughput(record: dict) -> Figure:
    """Examples a second of a training step of roberta-base, by pipeline."""
    figure, axes = make_axes(size=(6.4, 2.6))
    rows = [row for row in record["rows"] if row["model"] == "roberta-base"]
    colors = [GREEN if row["pipeline"].startswith("ours") else GREY for row in rows]
    bars = axes.barh([row["pipeline"] for row in rows], [row["examples_per_second"] for row in rows], color=colors)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set(xlabel="examples a second", title="A training step of roberta-base")
    axes.set_xlim(0, 1.15 * max(row["examples_per_second"] for row in rows))
    axes.invert_yaxis()
    return figure


def save_throughput(record: dict, output_dir: Path | str) -> Path:
    """Write `throughput.png` from the part `bench` of the evidence; returns the file."""
    path, environment = Path(output_dir) / "throughput.png", record["environment"]
    source = f"evidence bench, {environment['processor']}, {environment['cores']} cores"
    save(draw_throughput(record), path, source, environment)
    return path
