import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from lora_helpers import __version__
from lora_helpers.__main__ import main
from lora_helpers.command_line import COMMANDS
from lora_helpers.config import AG_NEWS, AG_NEWS_REVISION, PROFILES, RunConfig, describe_fields
from lora_helpers.data import load_split
from lora_helpers.errors import InputError
from lora_helpers.files.places import CHECKPOINTS, REPOSITORY
from lora_helpers.pretraining.config import PretrainingConfig
from lora_helpers.records import read_record

CHECKPOINT = str(REPOSITORY / "checkpoints" / "mini" / "checkpoint-300")


def run(*arguments):
    """Exit status of a command, in this process."""
    return main([str(argument) for argument in arguments])


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, lora_helpers, lora_helpers.__main__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_what_the_package_tells_is_shown():
    code = "import logging, lora_helpers; lora_helpers.quiet(); logging.getLogger('lora_helpers.data').info('told')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == "told\n"


def test_an_error_is_one_line():
    assert str(InputError("a file\nof two lines: no")) == "a file of two lines: no"


@pytest.mark.slow
def test_train_then_evaluate_verify_figures(tmp_path, tiny_base, capsys):
    run_dir = tmp_path / "run"
    fields = ("--base-model", tiny_base, "--max-length", 32, "--max-steps", 30, "--eval-steps", 10, "--save-steps", 20)
    assert run("train", "mini", "--output-dir", run_dir, *fields) == 0
    assert "step 30, validation accuracy" in capsys.readouterr().out
    assert run("train", "mini", "--output-dir", run_dir, *fields) == 2
    assert "holds files already" in capsys.readouterr().err
    last = run_dir / "checkpoint-30"
    assert run("evaluate", last, "--json", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"accuracy", "macro_f1", "per_class", "interval", "calibration"} <= set(scores)
    assert run("verify", last) == 0
    assert run("figures", run_dir, "--output-dir", tmp_path / "figures") == 0
    shutil.copytree(last, run_dir / "checkpoint-30-backup")  # somebody's own, and none of the run's
    assert run("verify", run_dir) == 2
    assert "it holds checkpoint-20, checkpoint-30; " in capsys.readouterr().err
    (last / "adapter_model.safetensors").write_bytes(b"damaged")
    assert run("verify", last) == 1
    assert "SHA-256 differs" in capsys.readouterr().err


@pytest.mark.parametrize(("split", "rows"), [("test", 240), ("validation", 120)])
def test_evaluate_scores_the_split_that_is_named_as_the_record_has_it(split, rows, tmp_path, capsys):
    record = read_record(REPOSITORY / "checkpoints" / "mini")
    recorded = {"test": record["test"]["accuracy"], "validation": record["checkpoints"]["300"]["validation_accuracy"]}
    options = () if split == "test" else ("--split", split)
    assert run("evaluate", CHECKPOINT, "--json", tmp_path / "scores.json", *options) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["examples"] == rows and scores["accuracy"] == pytest.approx(recorded[split], abs=1.1 / rows)
    low, high = scores["interval"]
    assert (scores["data"], scores["split"]) == ("the bundled corpus", split)
    said = f"accuracy {scores['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, {rows} rows)\n"
    shown = capsys.readouterr().out
    assert shown.startswith(said) and shown.endswith(f"\nscored on the {split} split of the bundled corpus\n")


def test_folders_in_the_home_and_in_the_repository_are_found(tmp_path, capsys, monkeypatch):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "test.csv").write_text('"1","Treaty signed","Ministers meet in Geneva"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert run("evaluate", CHECKPOINT, "--data=~/rows", "--json=~/scores.json") == 0
    assert json.loads((tmp_path / "scores.json").read_text())["examples"] == 1
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", CHECKPOINT, "--data", "lora_helpers/mini_news", "--split", "validation") == 0
    assert "120 rows" in capsys.readouterr().out


def test_evaluate_reads_the_named_split_from_the_hub(monkeypatch):
    rows, asked = load_split("bundled", "test").select(range(8)), []
    monkeypatch.setattr("lora_helpers.data.load_split", lambda *words: asked.append(words) or rows)
    assert run("evaluate", CHECKPOINT, "--data", "hub", "--split", "validation") == 0
    assert asked == [(AG_NEWS, "validation", AG_NEWS_REVISION)]


def test_numbers_overwrite_no_file(tmp_path, capsys):
    (tmp_path / "scores.json").write_text("mine")
    assert run("evaluate", CHECKPOINT, "--json", tmp_path / "scores.json") == 2
    assert "scores.json exists already" in capsys.readouterr().err
    assert (tmp_path / "scores.json").read_text() == "mine"


def test_a_notice_is_no_part_of_what_a_program_reads(tmp_path, capsys):
    foreign = shutil.copytree(CHECKPOINT, tmp_path / "foreign", ignore=shutil.ignore_patterns("manifest.json"))
    assert run("predict", foreign, "Oil prices rise", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["label"] == 2 and said.err.startswith("notice: no manifest")


def test_predict_prints_a_table_and_writes_a_file(tmp_path, capsys):
    assert run("predict", CHECKPOINT, "Shares of the bank fell after its quarterly profit halved") == 0
    assert "Business" in capsys.readouterr().out
    source = tmp_path / "in.txt"
    source.write_text("The striker scored twice\nThe probe reached Mars orbit\n")
    assert run("predict", CHECKPOINT, "--input", source, "--output", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open() as stream:
        assert list(csv.reader(stream)) == [["ID", "Label"], ["0", "1"], ["1", "3"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "minni"), "did you mean 'mini'"),
        (("train", "mini", "--resume"), "name it with --output-dir"),
        (("evaluate", "nowhere"), "no checkpoint at"),
        (
            ("evaluate", CHECKPOINT, "--data", "./nowhere", "--split", "train"),
            "--data is './nowhere', wanted hub, bundled or a folder with train.csv",
        ),
        (
            ("predict", str(REPOSITORY / "checkpoints" / "mini"), "text"),
            "it holds checkpoint-100, checkpoint-200, checkpoint-300; name one, as in ",
        ),
        (("predict", CHECKPOINT), "give either texts, or"),
        (("predict", CHECKPOINT, "--input", "x.csv"), "give either texts, or"),
        (("predict", CHECKPOINT, "a text", "--output", "x.csv"), "give either texts, or"),
        (("figures", "nowhere"), "no run.json"),
        (("pretrain", "--vocab-size", "big"), "vocab_size is 'big'"),
        (("evidence", "everything"), "unknown part"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert run(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and error.startswith("error: ")


# Help


def help_of(capsys, *command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert not stop.value.code
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example_that_parses(name, capsys):
    """Parsed for certain: with one more word that no command knows, that word alone is refused."""
    example = f"python -m lora_helpers {name} {COMMANDS[name].example}"
    assert f"example: {example}" in help_of(capsys, name)
    assert run(*shlex.split(example)[3:], "--xyzzy") == 2
    assert "unknown option '--xyzzy'; " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train", "evaluate", "bench", "pretrain", "evidence"])
def test_help_of_what_takes_long_says_how_long(name, capsys):
    assert re.search("minute|hour", help_of(capsys, name))


def test_the_overview_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert set(COMMANDS) <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("command", "config"),
    [
        *((("train", profile), PROFILES[profile]) for profile in PROFILES),
        (("train",), RunConfig()),
        (("pretrain",), PretrainingConfig()),
    ],
)
def test_help_shows_every_field_with_meaning_unit_and_default(command, config, capsys):
    shown = help_of(capsys, *command).replace("- ", "-")  # words that argparse broke at a hyphen
    for row in describe_fields(config):
        if row["group"] != "profile":
            about = f"[{', '.join(filter(None, (row['unit'], 'default ' + row['value'])))}]"
            line = f"--{row['field'].replace('_', '-')} X {row['help']} {about}"
            assert line.replace("- ", "-") in shown and f" {row['group']}: " in shown


def test_help_takes_under_three_tenths_of_a_second_of_a_core():
    resource = pytest.importorskip("resource")  # not on Windows

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = [sys.executable, "-m", "lora_helpers", "train", "--help"]
        subprocess.run(arguments, cwd=REPOSITORY, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lora_helpers.__version__"}


# Slips of the finger


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", "mini"), "unknown command 'trian' (did you mean 'train'?)"),
        (("xyzzy",), "unknown command 'xyzzy'; there are train, "),
        (("--verison",), "unknown option '--verison' (did you mean '--version'?)"),
        (("train", "full"), "it is called 'roberta-base' now"),
        (("train", "mini", "--learning-rat=1"), "unknown option '--learning-rat=1' (did you mean '--learning-rate'?)"),
        (("train", "mini", "--lr", "1"), "unknown option '--lr' (did you mean '--learning-rate'?)"),
        (("train", "mini", "--model=x"), "(did you mean '--base-model'?)"),
        (("pretrain", "--model", "x"), "unknown option '--model'; "),  # what it means elsewhere is no option here
        (("train", "mini", "--run"), "unknown option '--run'"),
        (("verify", CHECKPOINT, "--json"), "unknown option '--json'; "),  # which evaluate has, and predict
        (("verify", CHECKPOINT, CHECKPOINT), "unknown argument 'checkpoints"),
        *(
            (
                ("train", "mini", "--output-dir", "x", *both),
                "resume, resume_from and warm_start each begin in another way; give one of them",
            )
            for both in (
                ("--resume", "--resume-from", "x"),
                ("--resume", "--warm-start", "x"),
                ("--resume-from", "x", "--warm-start", "x"),
            )
        ),
        (("predict", CHECKPOINT, "text", "--id-column", "id"), "--id-column go with --input"),
        (("predict", CHECKPOINT, "text", "--text-column", "a,b"), "--text-column and --id-column go with --input"),
        (("predict", CHECKPOINT, "--input", "in.csv", "--output", "out.csv", "--json"), "--json goes with texts"),
        (("export", CHECKPOINT, "x", "--adapter", "--onnx"), "give --adapter, --onnx or neither"),
        (("predict", CHECKPOINT, "text", "--precision", "int4"), "argument --precision: invalid choice: 'int4'"),
    ],
)
def test_a_slip_of_the_finger_gets_a_hint(arguments, message, capsys):
    assert run(*arguments) == 2
    assert message.replace("checkpoints", str(REPOSITORY / "checkpoints")) in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_hints_name_only_options_of_the_command_and_never_the_word_itself(name, capsys):
    known = set(re.findall(r"--[a-z0-9-]+", help_of(capsys, name)))
    for other in {flag for command in COMMANDS.values() for flag in command.arguments if flag.startswith("--")}:
        for typed in {other, other + "s", other[:-1]} - known:
            assert run(name, *shlex.split(COMMANDS[name].example), typed) == 2
            hint = re.search(r"did you mean '(.*?)'", capsys.readouterr().err)
            assert hint is None or (hint[1] in known and hint[1] != typed)


# Nothing but Python


@pytest.mark.parametrize("name", COMMANDS.keys() - {"report"})  # which reads records and documents alone
def test_with_nothing_installed_a_command_says_so_in_one_line(name):
    arguments = ["-S", "-E", "-m", "lora_helpers", name, *shlex.split(COMMANDS[name].example)]
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "torch is not installed; " in done.stderr
    assert f"run: {sys.executable} -m pip install -r requirements.txt" in done.stderr
    assert "ModuleNotFoundError" not in done.stderr


def test_with_nothing_installed_help_and_slips_are_answered():
    def said(*arguments):
        command = [sys.executable, "-S", "-E", "-m", "lora_helpers", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    status, text = said("train", "mini", "--help")
    assert status == 0 and "--learning-rate X" in text
    assert said("train", "mini", "--lora-rank", "0") == (2, "error: configuration: lora_rank is 0, wanted 1 to 4096\n")


# Texts

TEXTS = ("The striker scored twice in the final minutes of the match", "The probe reached Mars")


def test_the_table_shows_the_texts_first_and_shortened(capsys):
    assert run("predict", CHECKPOINT, *TEXTS, "one\nline \x1b[31m only") == 0
    head, first, second, third = capsys.readouterr().out.splitlines()
    assert head.split() == ["text", "label", "name", "confidence"]
    assert first.startswith("The striker scored twice in the final minut… ") and "Sports" in first
    assert second.startswith("The probe reached Mars    ") and "Sci/Tech" in second
    assert third.startswith("one line \\x1b[31m only ") and max(map(len, (head, first, second, third))) <= 80
    assert run("predict", CHECKPOINT, quoted := """He said "it's over" \\ left""") == 0
    assert quoted in capsys.readouterr().out


def test_probabilities_are_columns_of_texts_too(capsys):
    assert run("predict", CHECKPOINT, "--probabilities", *TEXTS) == 0
    head, first, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["text", "label", "name", "confidence", "World", "Sports", "Business", "Sci/Tech"]
    values = [float(value) for value in first.split()[-5:]]
    assert values[0] == max(values[1:]) and sum(values[1:]) == pytest.approx(1, abs=1e-4)


def test_json_is_an_object_a_line_wherever_the_option_stands(capsys):
    assert run("predict", CHECKPOINT, "--json", *TEXTS) == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [(row["text"], row["label"], row["name"]) for row in rows] == [
        (TEXTS[0], 1, "Sports"),
        (TEXTS[1], 3, "Sci/Tech"),
    ]
    assert all(set(row) == {"text", "label", "name", "confidence"} for row in rows)
    assert run("predict", "--json", CHECKPOINT, *TEXTS) == 0 and capsys.readouterr().out == printed
    assert run("predict", CHECKPOINT, *TEXTS, "--json", "--probabilities") == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[0])) > {"World", "Sports", "Business", "Sci/Tech"}


def test_a_dash_reads_a_text_a_line(capsys, monkeypatch):
    given = b"\xef\xbb\xbfThe striker scored\r\n\nUTF-8: \xc3\xa9\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))
    assert run("predict", CHECKPOINT, "-", "--json") == 0
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert texts == ["The striker scored", "", "UTF-8: é"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), encoding="ascii"))
    assert run("predict", CHECKPOINT, "-", "--json") == 0 and capsys.readouterr().out == ""  # no object, no line
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="ascii"))
    assert run("predict", CHECKPOINT, "-") == 2  # as in a file
    assert capsys.readouterr().err.startswith("error: standard input is not UTF-8 (")
    monkeypatch.setattr(sys, "stdin", None)
    assert run("predict", CHECKPOINT, "-") == 2
    assert capsys.readouterr().err.startswith("error: standard input is closed")


@pytest.mark.slow
def test_a_text_that_the_terminal_cannot_show_is_shown_by_its_number():
    words = [sys.executable, "-m", "lora_helpers", "predict", CHECKPOINT, "Goal \u26bd"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Goal \\u26bd" in done.stdout, done.stderr


# Interrupts


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    def interrupted(*arguments, **more):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("lora_helpers.checkpoints.verify_checkpoint", interrupted)
    monkeypatch.setattr("lora_helpers.pretraining.run.pretrain", interrupted)
    assert run("verify", CHECKPOINT) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert run("pretrain") == 130
    assert capsys.readouterr().err == "stopped; the same command with --resume goes on\n"


def test_a_pretraining_that_has_no_room_is_one_line(monkeypatch, capsys):
    from safetensors import SafetensorError

    said = r"error: .*; make room there, and go on with --resume\n"
    for error in (SafetensorError("No space left"), RuntimeError("inline_container.cc: write failed")):
        monkeypatch.setattr("lora_helpers.pretraining.run.pretrain", Mock(side_effect=error))
        assert run("pretrain") == 2
        assert re.fullmatch(said, capsys.readouterr().err)
    monkeypatch.setattr("lora_helpers.pretraining.run.pretrain", Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("pretrain")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows calls a closed pipe otherwise")
def test_a_reader_that_has_enough_is_no_error(monkeypatch):
    """As `… | head` ends; without the care that is taken, closing the stream would complain again."""
    reading, writing = os.pipe()
    os.close(reading)
    found = SimpleNamespace(notices=[], manifest={}, tensors=0)
    monkeypatch.setattr("lora_helpers.checkpoints.verify_checkpoint", lambda _: found)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run("verify", CHECKPOINT) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "a/file"), "a/file: Permission denied"),
        (OSError(28, "No space left on device"), "writing: No space left on device"),
        (OSError("as it was"), "writing: as it was"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_system_refuses_is_one_line_and_status_2(error, said, monkeypatch, capsys):
    def refuse(_):
        raise error

    monkeypatch.setattr("lora_helpers.checkpoints.verify_checkpoint", refuse)
    assert run("verify", CHECKPOINT) == 2
    assert capsys.readouterr().err == f"error: {said}; check that it is there and may be read or written\n"


# Files and ways to begin


def test_columns_of_a_file_are_named(tmp_path):
    rows = (
        "key,headline,body,text\nb7,The striker scored,a late goal,nothing\na3,The probe,reached Mars orbit,nothing\n"
    )
    (tmp_path / "in.csv").write_text(rows)
    options = ("--text-column", "headline,body", "--id-column", "key")
    assert run("predict", CHECKPOINT, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv", *options) == 0
    assert (tmp_path / "out.csv").read_text() == "ID,Label\nb7,1\na3,3\n"


def test_precision_reaches_the_classifier(monkeypatch, capsys):
    from lora_helpers.inference import Classifier

    asked, stock = [], Classifier.from_checkpoint

    def from_checkpoint(checkpoint, **options):
        asked.append(options)
        return stock(checkpoint, **options)

    monkeypatch.setattr(Classifier, "from_checkpoint", from_checkpoint)
    assert run("predict", CHECKPOINT, "The probe reached Mars orbit", "--precision", "int8") == 0
    assert asked == [{"precision": "int8"}] and "Sci/Tech" in capsys.readouterr().out


def test_how_to_begin_reaches_the_training(tmp_path, monkeypatch, capsys):
    asked = []

    def train(config, output_dir, **start):
        asked.append((config.max_steps, output_dir, start))
        return {"log": [{"step": step, "eval_loss": 1.0, "eval_accuracy": step / 40} for step in (10, 20)]}

    monkeypatch.setattr("lora_helpers.training.run.train", train)
    plain = {"resume": False, "resume_from": None, "warm_start": None, "allow_other_data": False}
    for options, start in (
        ((), {}),
        (("--resume", "--allow-other-data"), {"resume": True, "allow_other_data": True}),
        (("--resume-from", tmp_path), {"resume_from": tmp_path}),
        (("--warm-start", tmp_path), {"warm_start": tmp_path}),
    ):
        assert run("train", "mini", "--output-dir", tmp_path / "run", "--max-steps", 60, *options) == 0
        assert asked.pop() == (60, tmp_path / "run", plain | start)
        assert capsys.readouterr().out == f"{tmp_path / 'run'}: step 20, validation accuracy 0.5000\n"


def test_export_writes_the_form_that_was_asked_for(tmp_path, tiny_run, capsys):
    """What each form holds is tested with its function; here that the options reach it."""
    checkpoint = tiny_run / "checkpoint-10"
    assert run("export", checkpoint, tmp_path / "merged") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'merged'}: written\n"
    assert (tmp_path / "merged" / "model.safetensors").is_file() and (tmp_path / "merged" / "README.md").is_file()
    assert run("export", checkpoint, tmp_path / "adapter", "--adapter", "--base-name", "someone/some-base") == 0
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "someone/some-base"
    assert run("export", checkpoint, tmp_path / "merged") == 2
    assert "exists already" in capsys.readouterr().err


def test_figures_of_a_run_called_like_a_committed_one_do_not_replace_its(tmp_path, capsys, monkeypatch):
    shutil.copytree(CHECKPOINTS / "mini", tmp_path / "mini", ignore=shutil.ignore_patterns("checkpoint-*"))
    drawn = []
    monkeypatch.setattr("lora_helpers.figures.draw_figures", lambda runs, target: drawn.append(target) or {})
    assert run("figures", tmp_path / "mini") == 2 and not drawn
    assert (
        "is called like a committed run, whose figures it would replace; give --output-dir" in capsys.readouterr().err
    )
    assert run("figures", tmp_path / "mini", "--output-dir", tmp_path / "mine") == 0 and drawn == [tmp_path / "mine"]
    assert run("figures", CHECKPOINTS / "mini") == 0 and len(drawn) == 2  # the committed run itself


def test_scores_are_shown_even_where_their_file_cannot_be_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left", "f")))
    assert run("evaluate", CHECKPOINT, "--json", tmp_path / "scores.json") == 2
    shown = capsys.readouterr()
    assert not list(tmp_path.iterdir())  # nor a part of it
    assert shown.out.startswith("accuracy 0.9") and "60 rows" in shown.out and "No space left" in shown.err


@pytest.mark.skipif(sys.platform == "win32", reason="closed by a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_without_a_standard_stream_a_command_still_does_its_work(tmp_path, closed):
    (tmp_path / "in.txt").write_text("Oil prices rise")
    command = f'"{sys.executable}" -m lora_helpers predict "{CHECKPOINT}" --input in.txt --output out.csv {closed}'
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "out.csv").is_file(), done.stderr
