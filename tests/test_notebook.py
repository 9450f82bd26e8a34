"""The notebook runs on its default profile, offline, and is committed as it ran."""

import json
import os
import subprocess

import nbformat
import pytest

from lora_helpers.files.places import REPOSITORY

NOTEBOOK = REPOSITORY / "roberta_lora_agnews.ipynb"


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_committed_as_executed_in_one_go(committed):
    cells = code_cells(committed)
    assert len(cells) <= 45 and len(cells) <= sum(cell.cell_type == "markdown" for cell in committed.cells)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert max(len(cell.source.splitlines()) for cell in cells) <= 15
    text = json.dumps(committed)
    assert "widget-view" not in text and "widgets" not in committed.metadata
    for path in ("/home/", "/root/", "/tmp/", str(REPOSITORY)):
        assert path not in text
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1


def test_it_runs_from_top_to_bottom_without_a_network(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    before = subprocess.run(["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("AG_NEWS_DIR", raising=False)
    monkeypatch.delenv("PROFILE", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(REPOSITORY)}})
    client.execute()
    printed = "".join(output.text for cell in code_cells(notebook) for output in cell.outputs if "text" in output)
    assert "by hand: LoRA 36,864 + head 593,668 = 630,532" in printed
    assert "same bits at the end: True" in printed
    accuracy = float(printed.split("macro F1")[0].rpartition("accuracy ")[2].split()[0])
    assert accuracy >= 0.75  # 0.85 is the aim; 240 rows allow 0.05 either way
    after = subprocess.run(["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    assert after == before
