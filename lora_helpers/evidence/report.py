"""Numbers in documents: written there from the committed records, and checked against them (`report`, `report --check`).

A document asks for a number between `<!--RECORD.KEY.KEY-->` and `<!--/-->`, with `:FORM` behind the last key where the
usual form does not do; for a table it asks by a name of `TABLES`. What has no record says so by itself.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckFailed
from ..files.manifests import write_atomically
from ..files.places import CHECKPOINTS, REPOSITORY
from ..records import committed_runs, read_evidence, read_record, validation_rows
from .tables import BASE, TABLES, find_value

DOCUMENTS = ("README.md", "*.ipynb", "checkpoints/README.md", "checkpoints/*/README.md")
MARK = re.compile(r"<!--(?P<name>[a-z][\w. -]*)(?::(?P<form>[\w.,%+]+))?-->(?P<value>.*?)<!--/-->", re.DOTALL)


def update_documents(*, check: bool = False) -> list[Path]:
    """Write every number and table into its place; returns the documents that changed.

    Raises:
        CheckFailed: with `check`, if something differs from the records; nothing is written then.
    """
    records, changed, wrong = read_records(), [], []
    for path in (path for pattern in DOCUMENTS for path in sorted(REPOSITORY.glob(pattern))):
        old = path.read_bytes().decode("utf-8")

        def fill(match: re.Match, path: Path = path) -> str:
            begin, text = match[0].partition("-->")[0], make_text(records, match["name"], match["form"])
            if match["value"] != text:
                wrong.append(f"{path.relative_to(REPOSITORY)}: {begin[4:]} is {match['value']!r}, wanted {text!r}")
            return f"{begin}-->{text}<!--/-->"

        new = MARK.sub(fill, old)
        if new != old:
            changed.append(path)
            if not check:
                write_atomically(path, new)
    if check and wrong:
        raise CheckFailed("; ".join(wrong) + "; run: python -m lora_helpers report")
    return changed


def read_records() -> dict[str, dict]:
    """Every committed record by name: runs by profile, parts of the evidence, `roberta-mini` (the base), `reliability`.

    Added to a run: `last`, its last validation row; to the base: the same, `bytes`, `epochs`.
    """
    records, runs = read_evidence(), {run.name: read_record(run) for run in committed_runs()}
    files = {BASE: CHECKPOINTS / BASE / "pretraining.json", "reliability": CHECKPOINTS / "reliability.json"}
    records |= {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}
    records |= {name: run | {"last": validation_rows(run)[-1]} for name, run in runs.items()}
    if base := records.get(BASE):
        base["last"] = [row for row in base["log"] if "eval_masked_loss" in row][-1]
        base["bytes"] = sum(f.stat().st_size for f in files[BASE].parent.iterdir() if f.suffix != ".md")
        base["epochs"] = base["tokens"]["seen"] / base["tokens"]["an_epoch"]
    return records


def make_text(records: dict, name: str, form: str | None = None) -> str:
    """What stands in a document for a table, or for the number at `name` in the records."""
    return f"\n{_markdown(TABLES[name](records))}\n" if name in TABLES else find_value(records, name, form)


def _markdown(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as a table; the first one is its head, and others may be shorter."""
    head, *rest = (re.sub(" +", " ", f"| {' | '.join(row)} |") for row in rows)
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rest])
