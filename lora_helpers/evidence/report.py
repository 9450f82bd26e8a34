"""The numbers in README and model cards: written there from the committed records, and checked against them.

A number stands between `<!--name-->` and `<!--/-->`; `report_values` has them by name.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckFailed, InputError, first_line
from ..files.manifests import write_atomically
from ..files.places import CHECKPOINTS, REPOSITORY
from .report_values import collect_values

MARK = re.compile(r"<!--(?P<name>[a-z][a-z0-9-]*)-->(?P<value>.*?)<!--/-->", re.DOTALL)


def update_documents(*, check: bool = False) -> list[Path]:
    """Write every number into its place; returns the documents that changed.

    Raises:
        CheckFailed: with `check`, if a number differs from the records; nothing is written then.
        InputError: a document asks for a number that no record has.
    """
    try:
        values = collect_values()
    except (KeyError, FileNotFoundError) as error:
        raise InputError(
            f"the records in checkpoints/ are not complete ({first_line(error)}); run: make evidence, make drill"
        ) from error
    changed, wrong = [], []
    for path in [REPOSITORY / "README.md", *sorted(CHECKPOINTS.glob("*/README.md"))]:
        old = path.read_text(encoding="utf-8")

        def fill(match, path=path):
            name = match["name"]
            if name not in values:
                raise InputError(f"{path}: no record has a number called {name!r}; known are {', '.join(values)}")
            if match["value"] != values[name]:
                wrong.append(
                    f"{path.parent.name}/{path.name}: {name} is {match['value']!r}, the records say {values[name]!r}"
                )
            return f"<!--{name}-->{values[name]}<!--/-->"

        new = MARK.sub(fill, old)
        if new != old:
            changed.append(path)
            if not check:
                write_atomically(path, new)
    if check and wrong:
        raise CheckFailed("; ".join(wrong) + "; run: python -m lora_helpers report")
    return changed
