import contextlib
import copy
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from lora_helpers import inference
from lora_helpers.arithmetic import Int8Linear
from lora_helpers.checkpoints import load_checkpoint
from lora_helpers.errors import CheckFailed, InputError
from lora_helpers.files.columns import Document
from lora_helpers.files.places import REPOSITORY
from lora_helpers.inference import Classifier

AGNEWS = REPOSITORY / "checkpoints" / "mini-agnews" / "checkpoint-2400"

TEXTS = [f"{word} " * n for n, word in enumerate(["oil", "goal", "chip", "vote", "bank", "coach", "virus"], 1)]


def test_a_model_that_was_training_answers_without_dropout(tiny_run):
    model, tokenizer, _ = load_checkpoint(tiny_run / "checkpoint-10")
    made = Classifier(model.merge_and_unload().train(), tokenizer, max_length=32)
    assert not any(module.training for module in made.model.modules())


def test_predict_returns_a_row_a_text_in_order(classifier):
    table = classifier.predict(TEXTS)
    assert list(table.columns) == ["text", "label", "name", "confidence"]
    assert list(table["text"]) == TEXTS
    assert len(classifier.predict("one text")) == 1 and classifier.predict([]).empty


def write(path, kind, texts):
    if kind == "csv":
        pd.DataFrame({"id": range(len(texts)), "text": texts}).to_csv(path, index=False)
    elif kind == "canonical.csv":
        pd.DataFrame({"class": 1, "title": texts, "description": ""}).to_csv(path, index=False, header=False, quoting=1)
    elif kind == "title.csv":
        pd.DataFrame({"Title": texts, "Description": ""}).to_csv(path, index=False)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "parquet":
        pd.DataFrame({"text": texts}).to_parquet(path)
    else:
        path.write_text("".join(text + "\n" for text in texts))


@pytest.mark.parametrize("kind", ["csv", "canonical.csv", "title.csv", "jsonl", "parquet", "txt"])
def test_every_format_gives_the_same_labels_in_file_order(classifier, tmp_path, kind):
    texts = [text.strip() for text in TEXTS]
    write(tmp_path / f"in.{kind}", kind, texts)
    count = classifier.predict_file(tmp_path / f"in.{kind}", tmp_path / "out.csv", progress=False)
    table = pd.read_csv(tmp_path / "out.csv")
    assert count == len(texts) and list(table.columns) == ["ID", "Label"]
    assert list(table["ID"]) == list(range(len(texts)))
    assert list(table["Label"]) == list(classifier.predict(texts)["label"])


def test_probabilities_add_their_columns(classifier, tmp_path):
    texts = [text.strip() for text in TEXTS]
    write(tmp_path / "in.txt", "txt", texts)
    classifier.predict_file(tmp_path / "in.txt", tmp_path / "OUT.CSV", probabilities=True, progress=False)
    assert b"\r" not in (tmp_path / "OUT.CSV").read_bytes()
    table = pd.read_csv(tmp_path / "OUT.CSV")
    assert list(table.columns) == ["ID", "Label", "LabelName", "World", "Sports", "Business", "Sci/Tech"]
    assert list(table["LabelName"]) == list(classifier.predict(texts)["name"])
    np.testing.assert_allclose(table.iloc[:, 3:], classifier.predict_probabilities(texts), atol=1e-6)


def test_a_length_that_leaves_no_room_for_text_is_refused(tiny_run):
    with pytest.raises(InputError, match="max_length is 2, wanted 3 or more"):
        Classifier.from_checkpoint(tiny_run / "checkpoint-10", max_length=2)
    assert Classifier.from_checkpoint(tiny_run / "checkpoint-10", max_length=3).max_length == 3


def test_probabilities_of_texts_are_columns_of_the_same_table(classifier):
    table = classifier.predict(TEXTS, probabilities=True)
    assert list(table.columns[-4:]) == ["World", "Sports", "Business", "Sci/Tech"]
    np.testing.assert_allclose(table.iloc[:, -4:], classifier.predict_probabilities(TEXTS), atol=1e-6)


def test_the_table_has_the_index_of_a_series(classifier):
    """So that a column of it can be put beside the texts in a table that was sorted or filtered."""
    rows = pd.DataFrame({"text": TEXTS}).sample(frac=0.5, random_state=0)
    wanted = classifier.predict(TEXTS)["name"]
    assert list(classifier.predict(rows["text"])["name"].index) == list(rows.index) != sorted(rows.index)
    assert all(classifier.predict(rows["text"])["name"] == wanted[rows.index])


def test_columns_are_named_and_an_id_column_is_the_outputs_ID(classifier, tmp_path):
    """Under a BOM, in tabs; half of a surrogate pair in an id is written as the texts' is."""
    rows = [{"key": f"k{i}\ud800", "head": "oil", "body": text.strip()} for i, text in enumerate(TEXTS)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pd.DataFrame([row | {"key": row["key"].replace("\ud800", "?")} for row in rows])
    table.to_csv(tmp_path / "in.tsv", sep="\t", index=False, encoding="utf-8-sig")
    wanted = classifier.predict([f"oil {text.strip()}" for text in TEXTS])
    names = ["head", "body"]
    for name, given in (("in.jsonl", names), ("in.tsv", pd.Index(names)), ("in.jsonl", (name for name in names))):
        target = tmp_path / f"{type(given).__name__}.csv"
        classifier.predict_file(tmp_path / name, target, text_columns=given, id_column="key", progress=False)
        found = pd.read_csv(target)
        assert list(found["ID"]) == [f"k{i}?" for i in range(len(TEXTS))]
        assert list(found["Label"]) == list(wanted["label"])


def test_a_carriage_return_that_nothing_quotes_moves_no_row(classifier, tmp_path):
    """As pandas writes it on Linux; in a file of one column it would pass for the end of a row."""
    pd.DataFrame({"text": ["oil\rprices", "goal"]}).to_csv(tmp_path / "in.csv", index=False, lineterminator="\n")
    with pytest.raises(InputError, match="row 2: it ends in a carriage return, the first row in a line feed; quote"):
        classifier.predict_file(tmp_path / "in.csv", tmp_path / "out.csv", progress=False)
    (tmp_path / "quoted.csv").write_bytes(b'text\n"oil\rprices"\ngoal\n')
    assert classifier.predict_file(tmp_path / "quoted.csv", tmp_path / "out.csv", progress=False) == 2


@pytest.mark.parametrize("later", [3, 5])
def test_a_file_that_changes_while_it_is_read_leaves_none(classifier, tmp_path, monkeypatch, later):
    counts = iter((4, later))
    rows = lambda *_, **__: iter([Document(i, "oil") for i in range(next(counts))])  # noqa: E731
    monkeypatch.setattr(inference, "read_documents", rows)
    with pytest.raises(InputError, match=f"in.csv: 4 documents at first, then {later}; it changed while it was read"):
        classifier.predict_file("in.csv", tmp_path / "out.csv", progress=False)
    assert not list(tmp_path.iterdir())


def test_scores_that_are_not_finite_are_no_answer(tiny_run):
    broken = Classifier.from_checkpoint(tiny_run / "checkpoint-10")
    with torch.no_grad():
        broken.model.classifier.out_proj.bias[2] = float("inf")
    with pytest.raises(CheckFailed, match="scores are not finite"):
        broken.predict(["oil"])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are UTF-8")
def test_a_parquet_file_may_have_a_name_that_is_no_utf8(classifier, tmp_path):
    source = tmp_path / os.fsdecode(b"caf\xe9.parquet")
    with source.open("wb") as stream:
        pd.DataFrame({"text": ["oil"]}).to_parquet(stream)
    assert classifier.predict_file(source, tmp_path / "out.csv", progress=False) == 1


def test_each_text_is_looked_at_once(classifier, tmp_path, monkeypatch):
    seen = []

    class Text(str):
        def encode(self, *how):
            seen.append(str(self))
            return super().encode(*how)

    classifier.predict([Text("oil"), Text("goal")])
    assert seen == ["oil", "goal"]


@pytest.mark.parametrize("name", ["cud", "cuda:99", 3.5])
def test_a_device_that_is_not_here_is_said_in_one_line(tiny_run, name):
    with pytest.raises(InputError, match=r"^device is .*; leave it out for the best there is$") as found:
        Classifier.from_checkpoint(tiny_run / "checkpoint-10", device=name)
    assert "\n" not in str(found.value)
    assert Classifier.from_checkpoint(tiny_run / "checkpoint-10", device="cpu").device.type == "cpu"


def test_a_precision_that_is_none_of_the_three_is_refused(tiny_run):
    with pytest.raises(InputError, match="precision is 'fp16', wanted one of float32, bfloat16, int8"):
        Classifier.from_checkpoint(tiny_run / "checkpoint-10", precision="fp16")


needs_int8 = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no int8 product here")


@pytest.mark.parametrize(("precision", "nearly"), [("bfloat16", 0.05), pytest.param("int8", 0.1, marks=needs_int8)])
def test_less_precise_arithmetic_is_near_and_not_equal(tiny_run, classifier, precision, nearly):
    found = Classifier.from_checkpoint(tiny_run / "checkpoint-10", precision=precision).predict_probabilities(TEXTS)
    wanted = classifier.predict_probabilities(TEXTS)
    assert 0 < np.abs(found - wanted).max() < nearly
    assert found.dtype == np.float32 and classifier.precision == "float32"


@needs_int8
def test_in_int8_products_are_rounded_and_not_cut_off():
    linear = torch.nn.Linear(64, 8, bias=False)
    torch.nn.init.ones_(linear.weight)
    inputs = torch.rand(50, 64, generator=torch.Generator().manual_seed(0))
    inputs[:, 0], inputs[:, 1] = 0, 1  # the range of each
    error = Int8Linear(linear)(inputs) - linear(inputs)
    # Cut off, each would lack 0.12; had sums overflowed, half of its value.
    assert error.abs().max() < 0.06 and error.mean().abs() < 0.01 and error.std() < 0.012  # by 7 bits, 0.018


@needs_int8
def test_in_int8_a_token_of_large_values_takes_nothing_from_the_others():
    layer, tokens = Int8Linear(torch.nn.Linear(64, 32)), torch.randn(10, 64)
    alone, tokens[0] = layer(tokens[1:]), 1000 * tokens[0]
    assert torch.equal(layer(tokens)[1:], alone)
    assert not layer(torch.zeros(2, 64)).sub(layer.bias).any()
    unbiased = torch.nn.Linear(64, 32, bias=False)
    unbiased.weight.data[0] = 0
    assert torch.allclose(Int8Linear(unbiased)(tokens[1:]), unbiased(tokens[1:]), atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_labels_agree_with_those_of_float32(ag_news_dir, precision):
    """At least 99.5 % of the validation rows keep their label; with 4 bits it would not pass. Accuracy stays."""
    from lora_helpers.config import get_profile
    from lora_helpers.data import load_ag_news

    rows = load_ag_news(get_profile("mini-agnews")).validation
    rows = rows.select(range(2000 if precision == "int8" else 200))  # minutes where bfloat16 is imitated
    labels = {
        each: Classifier.from_checkpoint(AGNEWS, precision=each).predict_probabilities(rows["text"][:]).argmax(axis=1)
        for each in ("float32", precision)
    }
    assert np.mean(labels["float32"] == labels[precision]) >= 0.995
    right = {each: np.mean(found == np.array(rows["label"][:])) for each, found in labels.items()}
    assert abs(right["float32"] - right[precision]) <= 0.005


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_classifier_works_in_threads_and_in_workers_of_every_kind(precision):
    """After predicting with two threads. Without what is done in a forked child it would hang for good."""
    program = REPOSITORY / "tests" / "in_workers.py"
    ways = ["threads", "fork", "spawn", "joblib"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2"}
    environment.pop("TOKENIZERS_PARALLELISM", None)
    with subprocess.Popen(
        [sys.executable, program, AGNEWS, precision, *ways], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        try:
            out, errors = running.communicate(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    assert out.splitlines() == [f"{way} as wanted" for way in ways], errors


# The progress bar


def label_texts(classifier, folder, texts=TEXTS, **how):
    write(folder / "in.txt", "txt", [text.strip() for text in texts])
    classifier.predict_file(folder / "in.txt", folder / "out.csv", **how)


def test_a_terminal_sees_documents_their_rate_and_the_time_left(classifier, tmp_path, monkeypatch):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    monkeypatch.setattr(inference, "BATCH_TOKENS", 1)  # a document a batch
    with os.fdopen(other_end, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        label_texts(classifier, tmp_path)
        stream.flush()
        shown = ""
        # one read gives only what has arrived so far
        while "7/7" not in shown and select.select([terminal], [], [], 10)[0]:
            shown += os.read(terminal, 2**16).decode()
    os.close(terminal)
    assert "7/7" in shown and " documents/s" in shown and "<" in shown, shown


@pytest.mark.parametrize("how", [{"progress": False}, {}])
def test_a_log_file_gets_no_bar(classifier, tmp_path, monkeypatch, how):
    streams = {name: io.StringIO() for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    label_texts(classifier, tmp_path, **how)
    assert not any(stream.getvalue() for stream in streams.values())


@pytest.mark.parametrize("progress", [True, False])
def test_a_notebook_shows_the_bar_where_nothing_is_red(classifier, tmp_path, monkeypatch, progress):
    class OutStream(io.StringIO):
        __module__ = "ipykernel.iostream"

    streams = {name: OutStream() for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    label_texts(classifier, tmp_path, progress=progress)
    assert ("7/7" in streams["stdout"].getvalue()) == progress and not streams["stderr"].getvalue()


def test_an_error_in_the_last_row_comes_before_any_work_and_any_bar(classifier, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n' * 9 + '{"text": 1}\n')
    monkeypatch.setattr(inference, "progress_bar", None)
    monkeypatch.setattr(Classifier, "_classify", None)
    with pytest.raises(InputError, match="line 10"):
        classifier.predict_file(tmp_path / "in.jsonl", tmp_path / "out.csv")


def test_a_large_file_is_told_once_what_int8_would_do_if_that_was_measured(tiny_run, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="lora_helpers")
    monkeypatch.setattr(inference, "WINDOW", 2)
    monkeypatch.setattr(inference, "LARGE_FILE", 7)
    measured = {"int8": {"speedup": 1.62, "rows": 2000, "agreement": 0.9985}}
    on_cpu = Classifier.from_checkpoint(tiny_run / "checkpoint-10", device="cpu")
    of_int8 = copy.copy(on_cpu)
    of_int8.precision = "int8"  # as it calls itself: no product in int8 is needed here
    for of, large, evidence, said in (
        *((on_cpu, 7, measured, 1), (on_cpu, 8, measured, 0)),
        *((on_cpu, 7, {}, 0), (of_int8, 7, measured, 0)),
    ):
        monkeypatch.setattr(inference, "LARGE_FILE", large)
        monkeypatch.setattr(inference, "read_evidence", lambda evidence=evidence: evidence)
        caplog.clear()
        label_texts(of, tmp_path)
        (tmp_path / "out.csv").unlink()
        assert [record.getMessage() for record in caplog.records] == [
            'precision "int8" labels 1.6 times as many rows a second; of 2000 validation rows 99.9 % kept their label'
        ] * said  # 99.85, rounded


def test_long_texts_end_a_window_and_answers_keep_their_order(classifier, monkeypatch):
    texts = ["oil prices " * words for words in (1, 400, 2, 3, 500, 1, 4)]
    before, windows, stock = classifier.predict_probabilities(texts), [], Classifier._classify
    remember = lambda self, window, advance: windows.append(len(window)) or stock(self, window, advance)  # noqa: E731
    monkeypatch.setattr(Classifier, "_classify", remember)
    monkeypatch.setattr(inference, "LONG", 4000)
    assert np.allclose(classifier.predict_probabilities(texts), before, atol=1e-6) and windows == [2, 3, 2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without telling it")
@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_whoever_stops_the_command_finds_no_half_file(tmp_path, sent):
    number = signal.Signals[sent]
    not_ignored = partial(signal.signal, number, signal.SIG_DFL)  # as it is in what `nohup make test` starts
    rows = inference.LARGE_FILE - 1  # of more it would first be said what int8 does
    (tmp_path / "in.txt").write_text("oil prices rise as stocks fall\n" * rows)
    words = ["predict", AGNEWS, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.csv"]
    running = subprocess.Popen(
        [sys.executable, "-m", "lora_helpers", *words],
        cwd=REPOSITORY, stderr=subprocess.PIPE, preexec_fn=not_ignored,
    )  # fmt: skip
    try:
        while not any(path.suffix == ".partial" for path in tmp_path.iterdir()):
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        running.send_signal(number)
        assert running.communicate(timeout=60)[1] == b"stopped\n" and running.returncode == 130
    finally:
        running.kill()
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.slow
def test_an_answer_waits_for_no_library_that_it_does_not_need(tmp_path):
    """Measured once: pandas alone was a tenth of the time. What transformers and PEFT bring by themselves stays."""
    show = "import sys; from lora_helpers.command_line import main; import lora_helpers.__main__\n"
    show += "main(sys.argv[1:]); print(*(name for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", show, "predict", AGNEWS, "oil"], cwd=REPOSITORY, capture_output=True, text=True
    )
    *_, answer, loaded = done.stdout.splitlines()
    assert answer.startswith("oil"), done.stderr
    assert {"peft", "transformers.models.roberta.modeling_roberta"} <= set(loaded.split())
    needless = {"pandas", "pyarrow", "datasets", "evaluate", "sklearn", "matplotlib", "transformers.trainer"}
    assert not needless & set(loaded.split())


def test_a_file_that_came_to_be_meanwhile_is_not_replaced(classifier, tmp_path, monkeypatch):
    stock = Classifier._classify

    def classify(self, texts, advance):
        (tmp_path / "out.csv").write_text("somebody's")
        return stock(self, texts, advance)

    monkeypatch.setattr(Classifier, "_classify", classify)
    with pytest.raises(InputError, match="exists already"):
        label_texts(classifier, tmp_path)
    assert (tmp_path / "out.csv").read_text() == "somebody's" and len(list(tmp_path.iterdir())) == 2


def test_an_id_that_would_break_a_row_is_refused_and_a_column_without_a_name_can_be_the_id(classifier, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "a\\rb", "text": "a"}\n')
    with pytest.raises(InputError, match="line 1: id is"):
        classifier.predict_file(tmp_path / "in.jsonl", tmp_path / "out.csv", id_column="id")
    (tmp_path / "in.csv").write_text(",text\n5,a\n2,b\n")  # as pandas writes its index
    classifier.predict_file(tmp_path / "in.csv", tmp_path / "out.csv", id_column="")
    assert [line.partition(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()] == ["ID", "5", "2"]
