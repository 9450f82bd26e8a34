"""The house: which module may import which, what the notebook loads, and how long modules and functions are.

Imports are read from the source, so that one inside a function counts, and from a fresh process, which shows what is loaded.
"""

import ast
import json
import subprocess
import sys

import pytest

from lora_helpers.files.places import REPOSITORY

PACKAGE = REPOSITORY / "lora_helpers"
WINGS = ("lora_helpers.evidence", "lora_helpers.pretraining")  # of the maintainers
STANDARD_LIBRARY_ALONE = ("environment", "config", "errors", "field_checks", "command_line", "files.places")


def name_of(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
FOLDERS = {name_of(path) for path in PACKAGE.rglob("__init__.py")}


def imports(name, tree, *, nested, names=frozenset(TREES), folders=frozenset(FOLDERS)):
    """The package's modules that module `name` imports: at its top, or with `nested` inside functions too."""
    found, todo = set(), [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if nested or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = name.split(".")[: len(name.split(".")) - node.level + (name in folders)] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            modules = {f"{source}.{alias.name}" for alias in node.names} & names
            found |= modules if len(modules) == len(node.names) else modules | {source}
    return found & names


def circles(graph):
    """Every module that reaches itself."""

    def reached(name):
        seen, todo = set(), [*graph[name]]
        while todo:
            if (module := todo.pop()) not in seen:
                seen.add(module)
                todo += graph[module]
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_what_the_notebook_imports_loads_no_wing_of_the_maintainers():
    cells = json.loads((REPOSITORY / "roberta_lora_agnews.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    lines = [ast.unparse(node) for node in ast.walk(ast.parse(code)) if "lora_helpers" in ast.unparse(node)[:40]
             and isinstance(node, ast.Import | ast.ImportFrom)]  # fmt: skip
    assert len(lines) > 10
    show = "import sys; print(*(name for name in sys.modules if name.startswith('lora_helpers')))"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, show])], cwd=REPOSITORY, capture_output=True, text=True
    )
    loaded = done.stdout.split()
    assert "lora_helpers.training.run" in loaded, done.stderr
    assert not [name for name in loaded if name.startswith(WINGS)]


def test_imports_run_one_way():
    assert circles({name: imports(name, tree, nested=False) for name, tree in TREES.items()}) == []


def test_a_circle_would_be_found():
    sources = {"p": "", "p.a": "from .b import x", "p.b": "from . import c", "p.c": "import p.a", "p.d": "import p.a"}
    graph = {
        name: imports(name, ast.parse(source), nested=False, names=set(sources), folders={"p"})
        for name, source in sources.items()
    }
    assert circles(graph) == ["p.a", "p.b", "p.c"]
    hidden = ast.parse("def f():\n    from .b import x")
    assert not imports("p.a", hidden, nested=False, names=set(sources), folders={"p"})
    assert imports("p.a", hidden, nested=True, names=set(sources), folders={"p"}) == {"p.b"}


@pytest.mark.parametrize("name", sorted(name for name in TREES if not name.startswith(WINGS)))
def test_outside_the_wings_only_the_commands_import_them_and_inside_functions(name):
    into = {
        module
        for module in imports(name, TREES[name], nested=name != "lora_helpers.__main__")
        if module.startswith(WINGS)
    }
    assert not into


def test_the_commands_do_import_the_wings():
    """Else the test above would look for nothing."""
    found = imports("lora_helpers.__main__", TREES["lora_helpers.__main__"], nested=True)
    assert {name.split(".")[1] for name in found if name.startswith(WINGS)} == {"evidence", "pretraining"}


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ALONE)
def test_it_imports_with_the_standard_library_alone(name):
    command = [sys.executable, "-S", "-E", "-c", f"import lora_helpers.{name}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_with_the_standard_library_alone_numpy_is_not_there():
    assert subprocess.run([sys.executable, "-S", "-E", "-c", "import numpy"], capture_output=True).returncode


def test_modules_stay_under_250_lines():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [name for name, lines in lengths.items() if lines >= 250] == []


def test_functions_have_at_most_50_lines():
    long = {
        f"{name}.{node.name}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 50
    }
    assert long == set()


def test_every_module_opens_with_what_it_is_for():
    for name, tree in TREES.items():
        assert ast.get_docstring(tree), name
