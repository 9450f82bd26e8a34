"""Folders that somebody else made: none of their code runs, nobody is asked, and they decide neither what is fetched
nor how much memory is taken."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_helpers import checkpoints
from lora_helpers.bases import load_base
from lora_helpers.checkpoints import ADAPTER_CONFIG, MANIFEST, WEIGHTS, verify_checkpoint
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.files import adapters
from lora_helpers.files.manifests import hash_file, read_manifest, seal
from lora_helpers.files.places import REPOSITORY

# Every way to open a base, in one process whose standard input says yes to whatever is asked.
OPEN_ALL = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lora_helpers.__main__ import main
from lora_helpers.inference import Classifier
base, checkpoint = sys.argv[2:]
import peft, transformers.trainer
from lora_helpers.bases import load_base
began = time.monotonic()
steps = ["--max-steps", "2", "--eval-steps", "2", "--save-steps", "2", "--warmup-steps", "1", "--max-length", "32"]
print("status", main(["train", "mini", "--base-model", base, "--output-dir", "run", *steps]))
print("status", main(["verify", checkpoint]))
for opened in (lambda: load_base(base, None), lambda: load_base(base, None, random=True),
               lambda: Classifier.from_checkpoint(checkpoint)):
    try:
        opened()
    except ValueError as error:
        print("error:", error, file=sys.stderr)
print("seconds", time.monotonic() - began)
print("unread", repr(sys.stdin.read()))
"""
YES = "y\n" * 20
PLANT = "from pathlib import Path\nPath({marker!r}).write_text('ran')\nclass Thing: pass\n"


@pytest.fixture
def checkpoint(tiny_run, tmp_path):
    """A copy of a checkpoint without its manifest, as somebody else's comes, to be spoilt."""
    folder = Path(shutil.copytree(tiny_run / "checkpoint-10", tmp_path / "sent"))
    (folder / MANIFEST).unlink()
    return folder


@pytest.fixture
def base(tiny_base, tmp_path):
    """A copy of the tiny base, to be spoilt."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def open_all(base, checkpoint, tmp_path):
    """`OPEN_ALL` with Python of its own in both folders: what it wrote, and the file that this Python would write."""
    marker = tmp_path / "marker"
    for folder in (base, checkpoint):
        (folder / "planted.py").write_text(PLANT.format(marker=str(marker)))
    change_json(checkpoint / ADAPTER_CONFIG, base_model_name_or_path=str(base))
    found = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, str(REPOSITORY), str(base), str(checkpoint)],
        input=YES, capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert f"unread {YES!r}" in found.stdout, found.stdout + found.stderr
    assert not marker.exists()
    assert subprocess.run([sys.executable, "planted.py"], cwd=base).returncode == 0 and marker.exists()  # it would
    return found


@pytest.mark.slow
def test_a_bases_own_python_is_refused_at_once_without_asking(base, checkpoint, tmp_path):
    planted = {"AutoConfig": "planted.Thing", "AutoModelForSequenceClassification": "planted.Thing"}
    change_json(base / "config.json", model_type="never-heard-of", auto_map=planted)
    found = open_all(base, checkpoint, tmp_path)
    assert found.stdout.count("status 2") == 2
    lines = found.stderr.splitlines()
    assert len(lines) == 5 and all("error: base model" in line and "which is never run" in line for line in lines)
    assert float(found.stdout.split("seconds ")[1].split()[0]) < 14  # transformers would wait 15 s for each answer
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_tokenizers_own_python_is_left_alone_and_so_is_that_of_a_known_model(base, checkpoint, tmp_path):
    """Where transformers has a class of its own for what the files say, it takes that."""
    planted = {"AutoConfig": "planted.Thing", "AutoModelForSequenceClassification": "planted.Thing"}
    change_json(base / "config.json", auto_map=planted)
    change_json(
        base / "tokenizer_config.json", tokenizer_class="Thing", auto_map={"AutoTokenizer": ["planted.Thing"] * 2}
    )
    found = open_all(base, checkpoint, tmp_path)
    assert found.stdout.count("status 0") == 2 and "error" not in found.stderr


def test_a_configuration_names_no_kernel_and_no_other_file_to_load(base, tmp_path):
    """transformers would fetch the kernel as a program; the file is none of those that identify the base."""
    (base / "weights.bin").write_bytes((base / "model.safetensors").read_bytes())
    wanted = load_base(str(base), None)[0].roberta.state_dict()
    change_json(base / "config.json", attn_implementation="somebody/kernel", transformers_weights="weights.bin")
    found = load_base(str(base), None)[0]
    assert found.config._attn_implementation == "sdpa"
    assert all((tensor == wanted[name]).all() for name, tensor in found.roberta.state_dict().items())


@pytest.fixture
def unopened(monkeypatch):
    """No base model may be looked for, let alone opened."""
    for name in ("base_folder", "base_identity", "load_base"):
        monkeypatch.setattr(checkpoints, name, lambda *_: pytest.fail("the base was opened"))


def refused(checkpoint, pattern):
    with pytest.raises((CheckFailed, InputError), match=pattern) as caught:
        verify_checkpoint(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"r": 10**7}, f"rank {10**7}, but no adapter in {WEIGHTS} has more than 2"),
        ({"rank_pattern": {"layer.1.attention.self.query": 10**7}}, f"rank {10**7}"),
        ({"layer_replication": [[0, 10**7]]}, "layer_replication"),
        ({"trainable_token_indices": list(range(10**4))}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_1000000000"}, "pissa_niter_1000000000"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),  # random, so another model at each loading
        ({"target_modules": ["query"] * 20_000}, "bytes"),
        ({"revision": 3}, "at 3"),
    ],
    ids=str,
)
def test_what_would_take_memory_or_time_is_refused_before_any_base_is_opened(checkpoint, unopened, fields, said):
    change_json(checkpoint / ADAPTER_CONFIG, **fields)
    refused(checkpoint, said)


HANGS = r"(\w+\.?)+!"


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": HANGS}, {"exclude_modules": HANGS}, {"modules_to_save": ["classifier", HANGS]},
        {"rank_pattern": {HANGS: 1}}, {"alpha_pattern": {HANGS: 1}},
        {"layers_pattern": [HANGS], "layers_to_transform": [1]},
        {"target_modules": "[(|" + HANGS}, {"target_modules": r"(a)?(?(1)b|" + HANGS + ")"},
    ],
    ids=str,
)  # fmt: skip
def test_a_regular_expression_without_end_is_refused(checkpoint, fields, monkeypatch):
    monkeypatch.setattr(adapters, "SECONDS", 1)
    change_json(checkpoint / ADAPTER_CONFIG, **fields)
    refused(checkpoint, "takes more than 1 s" if "[(" not in str(fields) else "PEFT cannot apply it")


@pytest.mark.slow
def test_the_expression_has_no_end_and_one_that_ends_is_matched(checkpoint):
    match = f"import re; re.fullmatch({HANGS!r}, 'roberta.encoder.layer.0.attention.self.query')"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", match], timeout=3)
    change_json(checkpoint / ADAPTER_CONFIG, target_modules=r".*\.(query)")
    assert verify_checkpoint(checkpoint).tensors == 8
    change_json(checkpoint / ADAPTER_CONFIG, target_modules=r".*\.(query|key)")
    refused(checkpoint, "missing .*key.lora_A")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/file", "..", "C:secret", "sub\\file", ""])
def test_a_manifest_lists_no_file_outside_its_folder(tiny_run, tmp_path, name):
    checkpoint = Path(shutil.copytree(tiny_run / "checkpoint-10", tmp_path / "sealed"))
    content = read_manifest(checkpoint)
    (tmp_path / "secret").write_text("")
    content["files"][name] = hash_file(tmp_path / "secret")
    content["sha256"] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    (checkpoint / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
    refused(checkpoint, "not a manifest .*wanted names of files in this folder")


@pytest.mark.parametrize(
    "change", [{"config": 3}, {"config": {}}, {"base": [1]}, {"config": {"max_length": "all"}}], ids=str
)
def test_a_manifest_that_was_made_up_is_one_line(tiny_run, tmp_path, change):
    checkpoint = Path(shutil.copytree(tiny_run / "checkpoint-10", tmp_path / "sealed"))
    seal(checkpoint, read_manifest(checkpoint) | change)
    refused(checkpoint, "not a manifest")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


def test_a_pointer_in_the_place_of_weights_is_named(checkpoint, base):
    (base / "model.safetensors").write_text(POINTER)
    with pytest.raises(InputError, match="model.safetensors is a Git LFS pointer.*`git lfs pull`"):
        load_base(str(base), None)
    (checkpoint / WEIGHTS).write_text(POINTER)
    refused(checkpoint, f"{WEIGHTS} is a Git LFS pointer")
