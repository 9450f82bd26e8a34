"""What a record says about the code and the machine, and what is said where a package is missing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy
import pytest

from lora_helpers import environment
from lora_helpers.errors import InputError
from lora_helpers.files.places import REPOSITORY

SECOND = "lora_helpers/evidence/second.py"


@pytest.fixture
def repository(tmp_path):
    """A small repository of the project's shape, all of it committed."""
    folder = tmp_path / "project"
    (folder / "lora_helpers" / "evidence").mkdir(parents=True)
    contents = {"lora_helpers/first.py": "a = 1\nb = 2\n", SECOND: "c = 3\n", "requirements.txt": "torch==2\n"}
    for name, text in (contents | {"README.md": "words\n"}).items():
        (folder / name).write_bytes(text.encode())
    git(folder, "init", "-q")
    commit(folder)
    return folder


def git(folder, *arguments):
    subprocess.run(("git", "-c", "user.name=n", "-c", "user.email=e", *arguments), cwd=folder, check=True)


def commit(folder):
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")


def test_committed_code_is_told_from_other_code_and_documents_do_not_count(repository):
    first = environment.describe_code(repository)
    assert first["code_committed"] is True and len(first["commit"]) == 40 and len(first["code_sha256"]) == 64
    (repository / "README.md").write_text("other words\n")
    assert environment.describe_code(repository) == first
    commit(repository)
    second = environment.describe_code(repository)
    assert second["commit"] != first["commit"] and second["code_sha256"] == first["code_sha256"]
    for name in (SECOND, "requirements.txt", "lora_helpers/third.py", "lora_helpers/lengths.json"):
        (repository / name).write_text("d = 4\n")
        third = environment.describe_code(repository)
        assert third["code_committed"] is False and third["code_sha256"] != second["code_sha256"], name
        commit(repository)
        second = environment.describe_code(repository)
        assert second == third | {"commit": second["commit"], "code_committed": True}
    (repository / "lora_helpers" / ".DS_Store").write_text("of a file manager")
    assert environment.describe_code(repository) == second
    git(repository, "config", "status.showUntrackedFiles", "no")
    (repository / "lora_helpers" / "fourth.py").write_text("e = 5\n")
    assert environment.describe_code(repository)["code_committed"] is False


def test_line_endings_change_nothing_and_a_move_between_files_does(repository):
    before = environment.describe_code(repository)["code_sha256"]
    for path in (*repository.rglob("*.py"), repository / "requirements.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert environment.describe_code(repository)["code_sha256"] == before
    (repository / "lora_helpers" / ".ipynb_checkpoints").mkdir()
    (repository / "lora_helpers" / ".ipynb_checkpoints" / "first-checkpoint.py").write_text("a = 0\n")  # Jupyter's
    assert environment.describe_code(repository)["code_sha256"] == before
    (repository / "lora_helpers" / "first.py").write_bytes(b"a = 1\n")
    (repository / SECOND).write_bytes(b"b = 2\nc = 3\n")
    assert environment.describe_code(repository)["code_sha256"] != before


def test_a_copy_inside_another_repository_has_no_commit(repository):
    copy = repository / "unpacked"
    shutil.copytree(repository, copy, ignore=shutil.ignore_patterns(".git"))
    whole = environment.describe_code(repository)
    assert environment.describe_code(copy) == {**whole, "commit": None, "code_committed": None}


def test_the_mark_names_the_code_and_whether_it_was_committed():
    new = {"commit": "c" * 40, "code_sha256": "1a2b3c4d5e6f", "code_committed": True}
    assert environment.code_mark(new) == "code 1a2b3c4d5e"
    assert environment.code_mark(new | {"code_committed": False}) == "code 1a2b3c4d5e, not committed"
    assert environment.code_mark(new | {"commit": None, "code_committed": None}) == "code 1a2b3c4d5e"
    assert (
        environment.code_mark({"commit": "c" * 40, "uncommitted_changes": False}) == "code unknown"
    )  # an older record


def test_an_edit_while_a_process_runs_is_not_the_code_that_it_loaded(monkeypatch):
    before = environment.environment()
    edited = {"code_sha256": "of the files as they are now", "code_committed": True}
    monkeypatch.setattr(environment, "describe_code", lambda: edited)
    after = environment.environment()
    assert after["code_sha256"] == before["code_sha256"] and after["code_committed"] is False


def test_the_environment_is_that_of_this_project(monkeypatch):
    import torch

    can = {"cpu_name": "a processor", "avx2": True, "avx512_f": False, "sse2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    stock = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: None if name == "onnxruntime" else stock(name))
    found = environment.environment()
    assert {"scikit-learn", "tokenizers", "safetensors", "numpy"} <= found["libraries"].keys()
    assert "onnxruntime" not in found["libraries"] and found["libraries"]["numpy"] == numpy.__version__
    assert found["code_sha256"] == environment.describe_code()["code_sha256"]
    assert (found["processor"], found["instruction_sets"]) == ("a processor", ["avx2"])
    assert environment.code_mark(found).removesuffix(", not committed") in environment.stamp()


@pytest.mark.parametrize("kernel", [True, False])
def test_a_missing_package_ends_in_a_command_for_where_one_is(kernel, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    if not kernel:
        monkeypatch.delitem(sys.modules, "ipykernel")
    stock = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: None if name == "peft" else stock(name))
    with pytest.raises(InputError) as caught:
        environment.stamp()
    install = "%pip install" if kernel else f"{sys.executable} -m pip install"
    assert str(caught.value) == f"peft is not installed; run: {install} -r requirements.txt"


@pytest.mark.parametrize(("version", "old"), [("5.9.1", True), ("5.17.0", False), ("6.0", False), ("4.57", True)])
def test_a_package_older_than_any_that_was_tested_is_refused(version, old, monkeypatch):
    stock = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: version if name == "transformers" else stock(name))
    faults, differences = environment.compare_with_pins()
    wanted = [f"transformers is {version}, wanted {environment.OLDEST_TESTED['transformers']} or newer"]
    assert faults == wanted * old and any("transformers" in each for each in differences) == (not old)


def test_a_build_of_the_pinned_version_is_no_other_version(monkeypatch):
    stock, pins = environment._version, (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    pin = re.search(r"^torch==(\S+)", pins, re.MULTILINE)[1]
    monkeypatch.setattr(environment, "_version", lambda name: f"{pin}+cu130" if name == "torch" else stock(name))
    assert not any("torch" in line for lines in environment.compare_with_pins() for line in lines)


def test_watching_memory_begins_a_new_peak():
    numpy.ones(40_000_000)  # 305 MiB, freed at once
    before, peak = environment.peak_memory_mib().get("process"), environment.watch_peak_memory()
    if peak() is None:
        pytest.skip("needs a system where the peak of memory can begin anew")
    assert peak() < before - 200
    numpy.ones(20_000_000)  # 153 MiB
    highest = peak()
    environment.watch_peak_memory()
    assert 100 < highest - peak() < 250
    status = Path("/proc/self/status").read_text()
    its = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak() == pytest.approx(int(its) / 1024, rel=0.02)  # KiB there


def test_without_the_package_that_gathers_jupyters_parts_all_goes_on(monkeypatch):
    stock = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: None if name == "jupyter" else stock(name))
    assert "Other than the pins: jupyter is not installed" in environment.stamp()


def test_the_sentence_about_missing_packages_needs_none(tmp_path):
    """With the standard library alone; `-S` leaves out whatever pip has installed."""
    code = "from lora_helpers import environment; environment.require_packages()"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert "InputError: transformers is not installed; " in done.stderr and "torch is not installed" in done.stderr
