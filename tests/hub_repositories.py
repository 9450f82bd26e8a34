"""The two repositories that `original` and `roberta-base` load, as a `HubServer` serves them: right in all but the weights."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import cycle, islice
from pathlib import Path

from hub_server import Repository

from lora_helpers.bases import full_size_shape
from lora_helpers.config import AG_NEWS, AG_NEWS_REVISION, MPNET_BASE, PINNED, ROBERTA_BASE, ROBERTA_BASE_REVISION
from lora_helpers.files.places import CHECKPOINTS, MINI_NEWS

# 50,265 tokens, 514 positions, a type and a norm (2) of width 32; 2 layers of 8,544; a 4-class head of 1,188.
SMALL_PARAMETERS = (50_265 + 514 + 1 + 2) * 32 + 2 * 8_544 + 1_188
# 16,384 tokens of the bundled tokenizer, 514 positions and a norm of width 32; relative positions: 32 for 2 heads.
SMALL_COUNTS = {ROBERTA_BASE: SMALL_PARAMETERS, MPNET_BASE: (16_384 + 514 + 2) * 32 + 32 * 2 + 2 * 8_544 + 1_188}
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def build_repositories(root: Path, roberta_base: Path, ag_news: Path, *, shape: dict, rows: dict) -> list[Repository]:
    """Both at their pinned commits, made under `root` from the folders with roberta-base's and AG News' files."""
    build_base(root / "base", roberta_base, **shape)
    build_data(root / "data", ag_news, **rows)
    return [
        Repository("models", ROBERTA_BASE, ROBERTA_BASE_REVISION, root / "base"),
        Repository("datasets", AG_NEWS, AG_NEWS_REVISION, root / "data"),
    ]


def write_sources(root: Path, rows: dict) -> tuple[Path, Path]:
    """In the place of roberta-base's folder and of AG News': the bundled words, with made-up ones to 50,265, and rows."""
    base, data = root / "words", root / "rows"
    full_size_shape(ROBERTA_BASE).save_pretrained(base)
    words = json.loads((CHECKPOINTS / "roberta-mini" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    made_up = {f"madeupword{i - 16_384:04}": i for i in range(16_384, 50_265)}
    (base / "vocab.json").write_text(json.dumps(words["vocab"] | made_up), encoding="utf-8")
    (base / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, words["merges"])]), encoding="utf-8")
    data.mkdir()
    for split, count in rows.items():
        lines = (MINI_NEWS / f"{split}.csv").read_text(encoding="utf-8").splitlines(keepends=True)  # a row a line
        (data / f"{split}.csv").write_text("".join(islice(cycle(lines), count)), encoding="utf-8")
    return base, data


def build_base(folder: Path, source: Path, **shape) -> None:
    """roberta-base's repository: `source`'s tokenizer and configuration (with `shape`), random weights of seed 0.

    The pickle that the Hub keeps beside the weights is there too; nobody should ask for it.
    """
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(0)
    config = RobertaConfig.from_pretrained(source, **shape)
    RobertaForMaskedLM(config).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(source / name, folder / name)
    (folder / "pytorch_model.bin").write_bytes(b"not to be asked for")


def build_mpnet(root: Path) -> Repository:
    """all-mpnet-base-v2's repository in small, random weights of seed 0, and a file beside them that nobody should need."""
    import torch
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(0)
    folder = root / "mpnet"
    MPNetModel(MPNetConfig(vocab_size=16_384, max_position_embeddings=514, **SMALL)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(CHECKPOINTS / "roberta-mini" / name, folder / name)
    (folder / "pytorch_model.bin").write_bytes(b"not to be asked for")
    return Repository("models", MPNET_BASE, PINNED[MPNET_BASE], folder)


def build_data(folder: Path, source: Path, **rows: int) -> None:
    """AG News' repository: the first `rows` of `source`'s train.csv and test.csv in the Hub's schema, and its card."""
    from datasets import ClassLabel, Dataset, Features, Value

    names = ["World", "Sports", "Business", "Sci/Tech"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    (folder / "data").mkdir(parents=True)
    splits = []
    for split, count in rows.items():
        with (source / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
            taken = list(islice(csv.reader(stream), count))
        columns = {"text": [f"{t} {d}".strip() for _, t, d in taken], "label": [int(c) - 1 for c, _, _ in taken]}
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        size = Dataset.from_dict(columns, features=features).to_parquet(file)
        splits.append({"name": split, "num_bytes": size, "num_examples": count})
    label = {"class_label": {"names": {str(i): name for i, name in enumerate(names)}}}
    columns = [{"name": "text", "dtype": "string"}, {"name": "label", "dtype": label}]
    files = [{"split": split, "path": f"data/{split}-*"} for split in rows]
    card = {
        "dataset_info": {"features": columns, "splits": splits},
        "configs": [{"config_name": "default", "data_files": files}],
    }
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n", encoding="utf-8")  # JSON is YAML
