"""The picture of what is trained, drawn for every run and once for roberta-base.

`architecture.json` holds what is the same for all models; layers, matrices and counts are added here, from a record.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from .config import get_profile
from .errors import written_into


def draw_architecture(record: dict) -> Figure | None:
    """A model from text to class, one of its layers, and LoRA's A and B beside one of its matrices, to scale; None where
    anything but query, key and value is adapted, or these not in every layer.

    `record` needs `shape`, `config` and `parameters`; `lora_norms` say what was adapted. Places are in inches from the
    lower left.
    """
    shape, layers, rank = record["shape"], record["shape"]["num_hidden_layers"], record["config"]["lora_rank"]
    inch = 1.7 / max(shape["W"])  # of the drawing, a row or column
    tall, wide = inch * shape["W"][0], inch * shape["W"][1]
    thin = max(inch * rank, 0.95 / 72)  # a point, or it could not be seen
    thicker = f", but A and B drawn {thin / inch / rank:.0f} x as thick" if thin > inch * rank else ""
    adapted = [target.rpartition(".")[2][:1].upper() for target in record["config"]["lora_targets"]]
    plan = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    if {*adapted} - plan["marks"].keys() or len(record.get("lora_norms", ())) not in (0, layers * len(adapted)):
        return None
    facts = _count_parts(record) | {"name": adapted[0], "scale": f"to scale{thicker}"}
    figure = Figure(figsize=(7.2, 7.7), dpi=130)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 7.2), ylim=(-0.2, 7.5))
    axes.axis("off")
    boxes = plan["boxes"] + [plan["marks"][name] for name in adapted]
    boxes += [[4.75 - wide, 3.1 - tall, wide, tall, "frozen", "W$_{name}$\n{W[0]} x {W[1]}\n= {W_numbers:,}"]]
    boxes += [[5.38, 3.4, wide, thin, "trained", ""], [5.38, 3.1 - tall, thin, tall, "trained", ""]]
    high = 1.7 / layers  # of a layer; the rest of 2.1 inches is gaps
    for low in 5.16 - high - 2.1 / layers * np.arange(layers):
        boxes += [[0.1, low, 2.42, high, "frozen", ""], [2.52, low, 0.08, high, "trained", ""]]
    axes.add_patch(Polygon([(2.6, 5.16 - high), (2.6, 5.16), (2.95, 6.95), (2.95, 4.85)], **plan["looks"]["zoom"]))
    for x, y, width, height, look, text in boxes:
        axes.add_patch(Rectangle((x, y), width, height, **plan["looks"][look]))
        plan["words"].append([x + width / 2, y + height / 2, text, plan["ink"][look] if text else {}])
    for x, y, text, ink in plan["words"]:
        axes.text(x, y, text.format(**facts), **{"ha": "center", "va": "center", "size": 12} | ink)
    for *start, x, y in plan["arrows"]:
        axes.annotate("", (x, y), start, arrowprops=plan["arrow"])
    return figure


def draw_roberta_base(output_dir: Path | str) -> Path:
    """`roberta-base-architecture.png`: the course's recipe on roberta-base, from shapes alone, where no run is at hand."""
    from .model import build_meta_model, count_parameters, shape_of

    config, path = get_profile("original"), Path(output_dir) / "roberta-base-architecture.png"
    model = build_meta_model(config)
    facts = {"config": config.to_dict(), "shape": shape_of(model), "parameters": count_parameters(model)}
    with written_into(output_dir):
        draw_architecture(facts).savefig(path, metadata={"Software": None})
    return path


def _count_parts(record: dict) -> dict:
    """What the picture's words are filled in with. A layer is of BERT's kind: four projections, a feed-forward block
    there and back, two norms; what else is frozen are RoBERTa's embeddings, and of other bases a few weights more."""
    shape, counts = record["shape"], record["parameters"]
    width, layers, inner = shape["hidden_size"], shape["num_hidden_layers"], shape["feed_forward_size"]
    layer = 4 * (width + 1) * width + (width + 1) * inner + (inner + 1) * width + 4 * width
    facts = {
        "layer": layer,
        "lora_a_layer": counts["lora"] // layers,
        "rest": "embeddings" if shape["model_type"] == "roberta" else "embeddings and others",
        "rest_numbers": counts["frozen"] - layers * layer,
    }
    facts |= {f"{name}_numbers": shape[name][0] * shape[name][1] for name in "WAB"}
    return record["config"] | shape | counts | facts | {"share": counts["trainable"] / counts["total"]}
