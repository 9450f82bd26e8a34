"""The pins: what is installed, what the requirements bring, and constraints.txt are one set of versions."""

import os

import pins
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.skipif(
    os.environ.get("NEWEST_VERSIONS") == "1", reason="NEWEST_VERSIONS is set: other versions than the pins are wanted"
)
TEXT = pins.CONSTRAINTS.read_text(encoding="utf-8")


def test_constraints_are_what_is_installed():
    """A package added, raised or dropped shows here; the remedy is `make constraints`, in a fresh environment."""
    pinned = pins.read_constraints(TEXT)
    brought = pins.brought_anywhere()
    assert brought - set(pinned) == set()
    here = pins.installed(brought)
    assert {name: pinned[name] for name in here} == here
    assert set(pins.read_constraints(TEXT.partition(pins.ELSEWHERE)[0])) - brought == set()


def test_requirements_and_constraints_agree():
    for name in pins.REQUIREMENTS:
        for requirement in pins.required((pins.REPOSITORY / name).read_text().splitlines()):
            assert str(requirement.specifier) == f"=={pins.read_constraints(TEXT)[canonicalize_name(requirement.name)]}"


def test_what_is_brought_is_followed_to_the_end():
    """Extras and markers count: python-dateutil stands two steps behind evaluate, pywinpty on Windows alone."""
    windows, linux = (pins.default_environment() | system for system in (pins.SYSTEMS[2], pins.SYSTEMS[0]))
    assert "pywinpty" in pins.brought([Requirement("jupyter")], windows)
    assert "pywinpty" not in pins.brought([Requirement("jupyter")], linux)
    assert {"pandas", "python-dateutil"} <= pins.brought([Requirement("evaluate")], linux)
    assert "pytest" not in pins.brought([Requirement("evaluate")], linux)
