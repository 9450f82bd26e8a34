"""README, cards and the other documents: short, true to the records, and every command and snippet in them works."""

import ast
import csv
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter

import pytest
import yaml

import lora_helpers
from lora_helpers.__main__ import main
from lora_helpers.config import LABELS, PROFILES
from lora_helpers.errors import CheckFailed
from lora_helpers.evidence import report, tables
from lora_helpers.files.places import MINI_NEWS, REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGE = (REPOSITORY / "checkpoints" / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [path for pattern in report.DOCUMENTS for path in sorted(REPOSITORY.glob(pattern))]
CARDS = [path for path in DOCUMENTS if path.parent.parent.name == "checkpoints"] + [MINI_NEWS / "README.md"]


def without_marks(text: str) -> str:
    return re.sub(r"<!--.*?-->", "", text)


def code_blocks(text: str, language: str = "") -> list[str]:
    return [
        code for name, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if name == language
    ]


def commands(text: str, program: str) -> list[list[str]]:
    """Arguments of every line of a block that begins with `program`."""
    lines = [
        shlex.split(line, comments=True) for code in code_blocks(text) for line in code.splitlines() if "\\" not in line
    ]
    wanted = program.split()
    return [line[len(wanted) :] for line in lines if line[: len(wanted)] == wanted]


# --- form


def test_readme_is_at_most_a_thousand_words():
    words = [word for word in without_marks(README).split() if re.search(r"\w", word)]
    assert 500 < len(words) <= 1000, len(words)


PAGES = [path for path in DOCUMENTS if path.suffix != ".ipynb"]


@pytest.mark.parametrize("path", [*PAGES, MINI_NEWS / "README.md", REPOSITORY / "CHANGELOG.md"], ids=str)
def test_lines_are_short_and_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    long = [line for line in without_marks(text).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert long == []
    links = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)
    for target in (a or b for a, b in links):
        if not target.startswith("http"):
            assert (path.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", [*DOCUMENTS, REPOSITORY / "lora_helpers" / "evidence" / "card.md"], ids=str)
def test_no_line_begins_with_a_mark(path):
    """To Markdown it would be HTML, and break the paragraph; a table's mark stands on a line of its own."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    assert re.findall(r"^ *(?:- )?<!--[a-z{].*<!--/-->", text, re.MULTILINE) == []


def test_readme_comes_in_the_order_in_which_a_reader_asks():
    places = [README.index(part) for part in (
        "-architecture.png", "make run", "results-table", "-accuracy.png", "-loss.png", "from_checkpoint",
        "## Profiles", "## Your own rows", "## Limits", "CITATION.cff",
    )]  # fmt: skip
    assert places == sorted(places)


# --- numbers


def test_the_documents_say_what_the_records_say():
    assert report.update_documents(check=True) == []
    assert {REPOSITORY / "README.md", REPOSITORY / "roberta_lora_agnews.ipynb"} <= set(DOCUMENTS)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """README in a folder of its own, which `report` takes for the repository."""
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    monkeypatch.setattr(report, "REPOSITORY", tmp_path)
    return tmp_path / "README.md"


def test_a_number_that_differs_is_found_and_mended(copied):
    accuracy = report.make_text(report.read_records(), "mini-agnews.test.accuracy")
    rows = report.make_text(report.read_records(), "mini-agnews.data.rows.train")
    assert accuracy in README and rows in README
    copied.write_text(README.replace(accuracy, "0.9999").replace(rows, "1"), encoding="utf-8")
    with pytest.raises(
        CheckFailed, match=r"README.md: results-table is .*; README.md: mini-agnews.data.rows.train is '1'"
    ):
        report.update_documents(check=True)
    assert report.update_documents() == [copied]
    assert copied.read_text(encoding="utf-8") == README
    assert report.update_documents() == []


def test_every_mark_names_a_table_or_a_place_in_a_record():
    """A record that is not there yet must be one that there can be; in one that is there the place must be."""
    from lora_helpers.evidence.rebuild import PARTS

    records = report.read_records()
    for path in DOCUMENTS:
        for mark in report.MARK.finditer(path.read_text(encoding="utf-8")):
            name = mark["name"]
            if name not in tables.TABLES:
                assert name.partition(".")[0] in {*PARTS, *PROFILES, *records}, f"{path}: {name}"
                assert report.make_text(records, name, mark["form"]) != tables.NO_VALUE, f"{path}: {name}"
    assert sum(len(report.MARK.findall(path.read_text(encoding="utf-8"))) for path in DOCUMENTS) > 50


@pytest.mark.parametrize(
    ("name", "form", "text"),
    [
        ("run.accuracy", None, "0.1235"),
        ("run.rows", None, "76,878"),
        ("run.ends", ".3f", "0.100 to 0.200"),
        ("run.ends", None, "0.1000 to 0.2000"),
        ("run.seconds", "minutes", "1.5"),
        ("run.list.-1.size", None, "1,000"),
        ("run.name with blanks", None, "Zen 4"),
        ("run.memory", "GiB", "not measured"),
        ("run.typo", None, "not measured"),
        ("other.accuracy", None, "not run yet"),
    ],
)
def test_how_a_value_of_a_record_is_shown(name, form, text):
    run = {
        "accuracy": 0.12345,
        "rows": 76878,
        "ends": [0.1, 0.2],
        "seconds": 90.0,
        "list": [{"size": 1}, {"size": 1000}],
    }
    assert report.make_text({"run": run | {"name with blanks": "Zen 4", "memory": None}}, name, form) == text


# --- the results table


def results(records) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in tables.make_results(records)}


def made_up(right: int, linear_right: int, rows: int = 1000) -> dict:
    """A run that has its first `right` rows right; a linear model that has its first `linear_right`, of few rows 100 less."""

    def score(n: int) -> dict:
        return {
            "accuracy": n / rows,
            "interval": [0.8, 0.9],
            "examples": rows,
            "predictions": "1" * n + "0" * (rows - n),
        }

    config = {"max_steps": 100, "batch_size": 16}
    run = {"test": score(right), "data": {"rows": {"train": 5000}}, "config": config}
    run["parameters"] = {"trainable": 70916}
    fit = score(linear_right) | {"train_rows": 5000}
    chosen = {"features": "words", "model": "linear SVM"}
    linear = {"chosen": chosen, "labels": "1" * rows, "all_rows": fit}
    linear["rows_seen"] = score(linear_right - 100) | {"train_rows": 1600}
    return {"mini-agnews": run, "baselines": {"mini-agnews": linear}}


@pytest.mark.parametrize(
    ("right", "verdict"), [(950, "ahead: +5.0"), (901, "not told apart: +0.1"), (850, "behind: -5.0")]
)
def test_one_standard_decides_who_is_ahead(right, verdict):
    found = results(made_up(right, 900))
    everything, same = found["`mini-agnews`"][-2:]
    assert everything.startswith(verdict)
    assert same.startswith(f"ahead: +{right / 10 - 80:.1f}")
    assert found["`mini-agnews`"][3:5] == ("70,916", "1,600")
    assert found["TF-IDF of words, linear SVM"][-1] == "5,000"
    assert found["the same, on the rows of `mini-agnews`"][-1] == "1,600"


def test_seeds_are_counted_where_they_disagree_with_the_first():
    records = made_up(950, 900)
    for rights, counted in (((950, 940), ""), ((950, 901, 940), "; 2/3 seeds ahead")):
        runs = [made_up(right, 0)["mini-agnews"]["test"] for right in rights]
        runs = [{"test_accuracy": run["accuracy"], "test_predictions": run["predictions"]} for run in runs]
        records["mini-agnews-seeds"] = {"runs": runs}
        verdict = results(records)["`mini-agnews`"][-2]
        assert verdict.startswith("ahead: +5.00 (") and verdict.partition(")")[2] == counted


def test_profiles_with_other_rows_have_a_linear_model_each():
    records = made_up(950, 900)
    linear = records["baselines"]["mini-agnews"]
    other = linear | {"all_rows": linear["all_rows"] | {"train_rows": 5100}}
    records["baselines"]["mpnet-base"] = other
    for all_rows, wanted in ((other["all_rows"], ["5,000", "5,100"]), (linear["all_rows"], ["5,000"])):
        other["all_rows"] = all_rows
        rows = [row for row in tables.make_results(records) if row[0] == "TF-IDF of words, linear SVM"]
        assert [row[-1] for row in rows] == wanted


def test_what_is_not_there_says_so_by_itself():
    records = made_up(950, 900)
    del records["mini-agnews"]["test"]["predictions"]
    found = results(records)
    assert found["`mini-agnews`"][-2:] == ("no paired test yet",) * 2
    assert found["`roberta-base`"] == ("not run yet",)
    del records["mini-agnews"]["test"]
    assert results(records)["`mini-agnews`"][0] == "not measured"
    assert {"0.9337", "0.9403", "0.9055"} <= {row[0] for row in results({}).values() if row}
    for make in tables.TABLES.values():
        assert len(list(make({}))) >= 1  # a head at least
    assert {f"`{name}`" for name in PROFILES} <= set(found)


def test_of_two_comparisons_the_one_with_more_seeds_is_shown():
    def compared(*accuracies, profile="mpnet-base"):
        rows = [{"test_accuracy": each, "validation_accuracy": each, "test_predictions": "11"} for each in accuracies]
        rows = [row | {"learning_rate": 1e-3, "trained_parameters": 10} for row in rows]
        return {"profile": profile, "labels": {"test": "11"}, "arms": {"LoRA": {"runs": rows}}}

    records = {"mpnet-rivals": compared(0.9), "seeds": compared(0.8, 0.82), "rivals": compared(*[0.7] * 3, profile="x")}
    assert [row[2] for row in tables.make_rivals("mpnet-base", records)][1:] == ["0.8100 ± 0.0141 (2)"]
    records["mpnet-base"] = made_up(950, 900)["mini-agnews"]
    assert results(records)["`mpnet-base`"][2] == "0.8100 ± 0.0141 (2)"


def test_the_table_of_labels_has_a_row_a_size():
    arm = {"mean": 0.85, "std": 0.01}
    arms = {"LoRA": arm, "linear model": arm | {"difference": 0.044, "interval": [0.024, 0.064]}}
    head, *rows = tables.make_label_counts({"label-counts": {"sizes": [{"rows": 500, "arms": arms}]}})
    assert rows == [("500", "85.00 ± 1.00", "85.00 ± 1.00", "+4.40 (+2.40 to +6.40)")] and len(head) == 4


def test_other_recipes_that_a_study_tested_stand_beside_the_profile():
    """With the linear model on all rows, since some saw other rows than the profile."""
    records = made_up(950, 900)
    runs = [{"test_predictions": "1" * n + "0" * (1000 - n), "test_accuracy": n / 1000} for n in (930, 0)]
    runs = [run | {"trained_parameters": 70_916, "labelled_rows": 3200} for run in runs]
    variants = {"ours": {"runs": runs}, "batches of 32": {"runs": runs}, "untested": {"mean": 0.9}}
    records["a study"] = {"profile": "mini-agnews", "variants": variants}
    records["another"] = {"profile": "mini", "variants": variants}
    found = results(records)
    row = found["`mini-agnews`, batches of 32"]
    assert row[:2] == ("0.9300", "0.912–0.944") and row[3:5] == ("70,916", "3,200") and len(row) == 6
    assert row[2].startswith("0.4650 ± ") and row[5].startswith("ahead: +3.00 (")
    assert found["`mini`, batches of 32"][5] == "no paired test yet"
    assert "`mini-agnews`, untested" not in found and "`mini-agnews`, ours" not in found


def test_the_table_of_batch_sizes_pairs_both_kinds_of_arithmetic():
    rows = [
        {"batch_size": size, "arithmetic": kind, "examples_per_second": size * rate, "peak_memory_mib": 1024.0 * rate}
        for kind, rate in (("bfloat16", 100.0), ("float32", 2.0)) for size in (16, 512)
    ]  # fmt: skip
    head, *found = tables.make_gpu_batches({"gpu-batches": {"rows": rows}})
    assert head[1:] == ("bfloat16, examples/s", "bfloat16, GiB", "float32, examples/s", "float32, GiB")
    assert found == [("16", "1,600", "100.0", "32", "2.0"), ("512", "51,200", "100.0", "1,024", "2.0")]


# --- commands and snippets


@pytest.fixture
def sandbox(tmp_path, monkeypatch, tiny_base):
    """A working folder that looks like the repository and may be written to."""
    (tmp_path / "checkpoints" / "runs").mkdir(parents=True)
    for path in (REPOSITORY / "checkpoints").iterdir():
        if path.name != "runs":
            (tmp_path / "checkpoints" / path.name).symlink_to(path)
    (tmp_path / "texts.csv").write_text("text\nThe striker scored twice\nThe probe reached Mars\n")
    (tmp_path / "my-rows").mkdir()
    for name in ("train.csv", "test.csv"):  # as README says, without validation rows
        shutil.copy(MINI_NEWS / name, tmp_path / "my-rows")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_commands_in_readme(sandbox, tiny_base, capsys):
    """In their order, since one uses what another wrote; a training on a tiny base, for a few steps, on bundled rows."""
    tiny = shlex.split(f"--base-model {tiny_base} --max-length 32 --max-steps 20 --eval-steps 10 --save-steps 10")
    written = commands(README.replace("checkpoint-600", "checkpoint-20"), "python -m lora_helpers")
    assert {line[0] for line in written} >= {"predict", "train", "figures", "evaluate"}
    for line in written:
        changes = tiny if "--dataset" in line else [*tiny, "--dataset", "bundled", "--dataset-revision", "none"]
        assert main(line + changes * (line[0] == "train")) == 0, (line, capsys.readouterr().err)
    assert "Business" in capsys.readouterr().out
    assert [row["Label"] for row in csv.DictReader((sandbox / "labels.csv").open())] == ["1", "3"]
    assert (sandbox / "my-model" / "model.safetensors").is_file()
    assert len(list((sandbox / "my-figures").glob("mine-*.png"))) >= 5
    assert (sandbox / "mine" / "run.json").is_file()


def test_the_snippet_in_readme(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (code,) = code_blocks(README, "python")
    *statements, last = ast.parse(code).body
    names = {}
    exec(compile(ast.Module(statements, []), "README", "exec"), names)
    table = eval(compile(ast.Expression(last.value), "README", "eval"), names)
    assert list(table["name"]) == ["Business"]


def test_the_maintainers_commands(sandbox, capsys):
    written = commands(PAGE, "python -m lora_helpers")
    for line in written:
        if line[0] in ("bench", "pretrain"):
            with pytest.raises(SystemExit, match="0"):
                main([*line, "--help"])
        else:
            assert main(line) == 0, capsys.readouterr().err
    assert {"verify", "report", "bench", "pretrain"} == {line[0] for line in written}


def test_make_knows_every_target_that_the_documents_name():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())
    helped = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert targets == helped
    named = {line[0] for text in (README, PAGE) for line in commands(text, "make")}
    named |= {name for text in (README, PAGE) for name in re.findall(r"`make ([a-z]+)", text)}
    assert {"run", "test", "help", "evidence", "drill"} <= named <= targets
    if shutil.which("make"):
        shown = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        assert all(re.search(rf"^  {target} ", shown, re.MULTILINE) for target in targets)


def test_the_pip_commands_are_those_of_make_and_the_same_on_windows():
    (posix,) = (code for code in code_blocks(README) if "-m venv" in code)
    assert "On Windows write `py` for `python3` and `.venv\\Scripts\\` for `.venv/bin/`" in README
    assert all(line.startswith(("python3 ", ".venv/bin/")) for line in posix.strip().splitlines())
    assert "-m pip install -c constraints.txt -r requirements.txt" in posix
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "--constraint constraints.txt" in makefile and "$(PIP) -r requirements.txt" in makefile
    notebook = re.search(r"jupyter lab (\S+)", posix)[1]
    assert (REPOSITORY / notebook).is_file() and "jupyter==" in (REPOSITORY / "requirements.txt").read_text()


# --- cards, licences, citation


def test_the_data_card_counts_what_is_there(bundled_rows):
    card = (MINI_NEWS / "README.md").read_text(encoding="utf-8")
    for split, rows in bundled_rows.items():
        counts = Counter(label for label, _ in rows)
        cells = " | ".join(str(counts[label]) for label in range(len(LABELS)))
        assert f"| `{split}.csv` | {len(rows)} | {cells} |" in card
    assert f"| file | rows | {' | '.join(LABELS)} |" in card
    unlabelled = sum(1 for _ in csv.reader((MINI_NEWS / "unlabelled.csv").open(encoding="utf-8", newline=""))) - 1
    assert f"| `unlabelled.csv` | {unlabelled} |" in card
    with (MINI_NEWS / "unlabelled.csv").open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    lengths = [len(text.split()) for text in texts + [text for rows in bundled_rows.values() for _, text in rows]]
    assert f"has {min(lengths)} to {max(lengths)} words" in card


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_card_begins_with_metadata_that_the_hub_accepts(path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    make = huggingface_hub.DatasetCard if path.parent == MINI_NEWS else huggingface_hub.ModelCard
    data = make(path.read_text(encoding="utf-8")).data.to_dict()
    assert data["license"] in ("other", "cc0-1.0") and data["language"] == "en"
    if data["license"] == "other":
        assert data["license_name"] == "ag-news-research-non-commercial"
        assert (path.parent / data["license_link"]).is_file()


def test_each_licence_stands_where_a_host_looks_for_it():
    first = {path: path.read_text().splitlines() for path in REPOSITORY.rglob("LICENSE") if ".venv" not in path.parts}
    by_folder = {path.parent.relative_to(REPOSITORY).as_posix(): lines for path, lines in first.items()}
    assert by_folder["."][0] == "MIT License" and len(by_folder["."]) == 21  # the plain text, nothing beside it
    assert "CC0 1.0 Universal" in by_folder["lora_helpers/mini_news"][:3]
    assert "non-commercial" in " ".join(by_folder["checkpoints"])


def test_the_citation_has_the_version_and_its_date():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lora_helpers.__version__
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \((\S+)\)$", changelog, re.MULTILINE)
    assert newest.groups() == (citation["version"], str(citation["date-released"]))
