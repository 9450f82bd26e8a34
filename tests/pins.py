"""constraints.txt: everything that the requirements bring, in the versions that are installed here.

`make constraints` writes it anew after a change of the requirements; test_pins.py says when that is due.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
CONSTRAINTS = REPOSITORY / "constraints.txt"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
SYSTEMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
)
PYTHONS = ("3.11", "3.12", "3.13")
ELSEWHERE = (
    "# Not in the environment that the rest was taken from: brought on other systems alone, or by PyTorch with CUDA."
)


def required(lines: list[str]) -> list[Requirement]:
    """The requirements of a file, without comments and references to other files."""
    kept = (line.partition("#")[0].strip() for line in lines)
    return [Requirement(line) for line in kept if line and not line.startswith("-")]


@functools.cache
def further(name: str) -> list[Requirement]:
    """What an installed package asks for itself."""
    try:
        return [Requirement(line) for line in importlib.metadata.requires(name) or []]
    except importlib.metadata.PackageNotFoundError:
        return []


def brought(requirements: list[Requirement], environment: dict[str, str]) -> set[str]:
    """Names of all packages that the requirements bring on a system; one that is not installed here brings nothing more."""
    todo, seen = [(r, extra) for r in requirements for extra in {"", *r.extras}], set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for each in further(name):
            if each.marker is None or each.marker.evaluate(environment | {"extra": extra}):
                todo += [(each, wanted) for wanted in {"", *each.extras}]
    return {name for name, _ in seen}


def brought_anywhere() -> set[str]:
    """The same, on every system and Python that the project supports."""
    lines = [line for name in REQUIREMENTS for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines()]
    found = set()
    for system in SYSTEMS:
        for python in PYTHONS:
            versions = {"python_version": python, "python_full_version": f"{python}.0"}
            found |= brought(required(lines), default_environment() | system | versions)
    return found


def installed(names: set[str]) -> dict[str, str]:
    """Versions of those that are installed, without the suffix of a build (`+cpu`)."""
    found = {canonicalize_name(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
    return {name: found[name].partition("+")[0] for name in names if name in found}


def read_constraints(text: str) -> dict[str, str]:
    """Versions by name."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", text, re.MULTILINE))


def write_constraints() -> None:
    """The installed versions first, then what only other systems bring, which stays as it was."""
    here = installed(brought_anywhere())
    text = CONSTRAINTS.read_text(encoding="utf-8") if CONSTRAINTS.exists() else ELSEWHERE
    elsewhere = {name: v for name, v in read_constraints(text.partition(ELSEWHERE)[2]).items() if name not in here}
    lines = ["# Everything that requirements.txt and requirements-dev.txt bring. Written by: make constraints"]
    lines += [f"{name}=={version}" for name, version in sorted(here.items())]
    lines += [ELSEWHERE] + [f"{name}=={version}" for name, version in sorted(elsewhere.items())]
    CONSTRAINTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_constraints()
