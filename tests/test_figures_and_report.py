import shutil

import pytest

from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.evidence import report
from lora_helpers.figures import FIGURES, draw_figures
from lora_helpers.files.places import REPOSITORY
from lora_helpers.records import RECORD

COMMITTED = REPOSITORY / "checkpoints" / "mini-agnews"


def test_every_figure_is_drawn_from_the_record_alone(tmp_path, monkeypatch):
    """No weights, no data, no torch: only run.json is there."""
    (tmp_path / "run").mkdir()
    shutil.copy(COMMITTED / RECORD, tmp_path / "run")
    monkeypatch.delenv("AG_NEWS_DIR", raising=False)
    drawn = draw_figures([tmp_path / "run"], tmp_path / "figures")
    assert {path.name for path in drawn} == {f"run-{kind}.png" for kind in FIGURES}
    assert all(path.stat().st_size > 10_000 for path in drawn)
    again = draw_figures([tmp_path / "run"], tmp_path / "again")
    assert [p.read_bytes() for p in drawn] == [p.read_bytes() for p in again]


def test_figures_are_committed_for_both_runs():
    names = {f"{run}-{kind}.png" for run in ("mini", "mini-agnews") for kind in FIGURES}
    assert names | {"throughput.png", "growth.png"} <= {path.name for path in (REPOSITORY / "figures").iterdir()}


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        draw_figures([tmp_path], tmp_path)


def test_the_documents_say_what_the_records_say():
    assert report.update_documents(check=True) == []


def test_a_number_that_differs_is_found(tmp_path, monkeypatch):
    text = (REPOSITORY / "README.md").read_text()
    accuracy = report.collect_values()["mini-agnews-accuracy"]
    assert accuracy in text
    (tmp_path / "README.md").write_text(text.replace(accuracy, "0.9999"))
    monkeypatch.setattr(report, "REPOSITORY", tmp_path)
    with pytest.raises(CheckFailed, match="mini-agnews-accuracy"):
        report.update_documents(check=True)
    assert report.update_documents() == [tmp_path / "README.md"]
    assert (tmp_path / "README.md").read_text() == text
