"""What the package's source may not hold: a load from the Hub without a commit, or anything that runs what it loads."""

import ast

import pytest

from lora_helpers.files.places import REPOSITORY

LOADS = {
    "from_pretrained",
    "load_dataset",
    "load_dataset_builder",
    "snapshot_download",
    "hf_hub_download",
    "cached_file",
}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE = {"torch.load", "pd.read_pickle", "pandas.read_pickle", "trust_remote_code=True", "allow_pickle="}
HARMLESS = {"pickle.UnpicklingError"}  # an exception, caught where torch refuses a file


def find_unpinned_loads(tree: ast.AST) -> list[str]:
    """Calls that may reach the Hub without a commit: no `revision=`, no `local_files_only=True`, no folder of ours."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        pinned = given.get("revision", "None") != "None" or given.get("local_files_only") == "True"
        pinned |= bool(call.args) and ast.unparse(call.args[0]).startswith("REPOSITORY / ")  # a folder of ours
        if name in LOADS and not pinned:
            found.append(f"line {call.lineno}: {ast.unparse(call.func)}")
    return found


def find_undecided_loads(tree: ast.AST) -> list[str]:
    """Calls of `from_pretrained` that leave open whether a folder's own Python may run; transformers would then ask."""
    return [
        f"line {call.lineno}: {ast.unparse(call.func)}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "from_pretrained"
        if "False" not in [ast.unparse(k.value) for k in call.keywords if k.arg == "trust_remote_code"]
    ]


def find_unsafe(tree: ast.AST) -> list[str]:
    """Whatever runs code that a download may bring."""
    used = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            used += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            used.append(ast.unparse(node))
        elif isinstance(node, ast.keyword):
            said_no = node.arg == "trust_remote_code" and ast.unparse(node.value) == "False"
            used += [] if said_no else ["trust_remote_code=True" if node.arg == "trust_remote_code" else f"{node.arg}="]
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":  # as a key of options
            used.append("trust_remote_code=True")
    return [name for name in used if name in UNSAFE or (name.split(".")[0] in UNSAFE_MODULES and name not in HARMLESS)]


def parse(name: str) -> ast.AST:
    return ast.parse((REPOSITORY / "lora_helpers" / name).read_text(encoding="utf-8"))


def test_every_load_of_the_package_names_a_commit_or_stays_local_and_none_runs_code():
    package = REPOSITORY / "lora_helpers"
    names = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    assert {"model.py", "training/run.py", "evidence/workload.py"} <= set(names)  # the wings are read too
    for name in names:
        tree = parse(name)
        assert not find_unpinned_loads(tree), name
        assert not find_unsafe(tree), name
        assert not find_undecided_loads(tree), name


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(name)",
        "AutoConfig.from_pretrained(name, revision=None)",
        "PeftModel.from_pretrained(base, name, local_files_only=False)",
        "load_dataset(name, split='train')",
        "datasets.load_dataset(name)",
        "hf_hub_download(name, 'config.json')",
        "snapshot_download(name, allow_patterns=['*.json'])",
    ],
)
def test_an_unpinned_load_would_be_found(line):
    assert len(find_unpinned_loads(ast.parse(line))) == 1
    pinned = line.replace(", revision=None", "").replace(", local_files_only=False", "")[:-1] + ", revision=commit)"
    assert not find_unpinned_loads(ast.parse(pinned))


@pytest.mark.parametrize("said", ["", ", trust_remote_code=None", ", trust_remote_code=True"])
def test_a_load_that_does_not_refuse_foreign_code_would_be_found(said):
    assert len(find_undecided_loads(ast.parse(f"AutoConfig.from_pretrained(folder{said})"))) == 1
    assert not find_undecided_loads(ast.parse("AutoConfig.from_pretrained(folder, trust_remote_code=False)"))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads, UnpicklingError",
        "import torch; torch.load(path)",
        "from torch import load",
        "AutoModel.from_pretrained(name, revision=commit, trust_remote_code=True)",
        "options['trust_remote_code'] = True",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
    ],
)
def test_code_from_a_download_would_be_found(line):
    assert len(find_unsafe(ast.parse(line))) == 1
    assert not find_unsafe(ast.parse("from pickle import UnpicklingError; from torch import nn; torch.save(x, path)"))
