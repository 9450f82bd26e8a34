"""What a change has to pass: where `.ci/run` finds its data, what may be skipped there, and what the workflow runs."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pins
import pytest
import yaml

from lora_helpers.files.places import REPOSITORY

SHOWN = ("AG_NEWS_DIR", "ROBERTA_BASE_DIR", "FAIL_ON_SKIP")


@pytest.fixture
def checkout(tmp_path):
    """A folder with `.ci/run` and a `make` that shows what it was called with."""
    (tmp_path / "checkout" / ".ci").mkdir(parents=True)
    shutil.copy(REPOSITORY / ".ci" / "run", tmp_path / "checkout" / ".ci")
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text("#!/bin/sh\necho make $1 " + " ".join(f"$(basename ${{{name}:-none}})" for name in SHOWN) + "\n")
    make.chmod(0o755)
    return tmp_path / "checkout"


def run_ci(checkout: Path, **variables) -> list[str]:
    bare = {name: value for name, value in os.environ.items() if name not in SHOWN}
    path = f"{checkout.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [checkout / ".ci" / "run"], env=bare | {"PATH": path} | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(os.name == "nt", reason="a script of bash")
def test_outside_data_are_found_by_variable_or_beside_the_checkout(checkout):
    assert run_ci(checkout) == ["make lint none none none", "make test none none none"]
    for name in ("ag_news", "roberta-base"):
        (checkout.parent / "shared" / name).mkdir(parents=True)
    assert run_ci(checkout)[1] == "make test ag_news roberta-base 1"
    assert run_ci(checkout, AG_NEWS_DIR="/data/elsewhere")[1] == "make test elsewhere roberta-base 1"
    shutil.rmtree(checkout.parent / "shared")
    assert run_ci(checkout, AG_NEWS_DIR="/data/elsewhere")[1] == "make test elsewhere none none"


def test_where_data_are_promised_a_skip_fails_but_for_weights_that_may_be_missing(tmp_path):
    (tmp_path / "test_skips.py").write_text(
        "import pytest\n"
        "def test_data(): pytest.skip('AG_NEWS_DIR is not set')\n"
        "def test_weights(): pytest.skip('MPNET_BASE_DIR is not set')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-q", str(tmp_path)]
    paths = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    environment = os.environ | {"PYTHONPATH": paths, "FAIL_ON_SKIP": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "1 failed, 1 skipped" in done.stdout, done.stdout


def test_the_workflow_runs_what_is_promised():
    jobs = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    pythons = jobs["linux"]["strategy"]["matrix"]["python"]
    assert jobs["linux"]["steps"][-1] == {"run": ".ci/run"} and pythons == list(pins.PYTHONS)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={pythons[0]}"
    assert jobs["other-systems"]["strategy"]["matrix"]["system"] == ["macos-latest", "windows-latest"]
    assert jobs["other-systems"]["steps"][-1]["run"] == 'python -m pytest -m "not slow"'
    assert "constraints.txt" in str(jobs["other-systems"]) and "-c constraints" not in str(jobs["newest-versions"])


def test_an_installed_package_has_all_its_files():
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = REPOSITORY / "lora_helpers"
    patterns = tools["package-data"]["lora_helpers"]
    there = {path for pattern in patterns for path in package.glob(pattern)}
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data and data <= there, data - there
    assert {path.parent for path in package.rglob("*.py")} <= {path.parent for path in package.rglob("__init__.py")}
