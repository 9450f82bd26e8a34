"""The commands: `python -m lora_helpers COMMAND …`. Each calls the module that does the work, and prints."""

import gc
import json
import os
import signal
import sys
from pathlib import Path

from .command_line import a_new_file, a_path, command, main, read_lines
from .config import AG_NEWS, AG_NEWS_REVISION, BUNDLED, LABELS, PRECISIONS, PROFILES, RunConfig, get_profile
from .errors import InputError, Stopped, first_line
from .files.manifests import write_atomically
from .files.places import CHECKPOINTS, REPOSITORY, RUNS, find_folder

NAMES = ", ".join(map("{} {}".format, range(len(LABELS)), LABELS))
TEXT_WIDTH = 44  # characters of a text in the table of predictions, which then fits a line of 80

CHECKPOINT = {"checkpoint": {"type": a_path, "metavar": "CHECKPOINT", "help": "e.g. checkpoints/mini/checkpoint-300"}}
JSON = {"--json": {"dest": "json_file", "type": a_new_file, "metavar": "FILE", "help": "write the numbers there too"}}


@command("mini --max-steps 60 --eval-steps 20 --save-steps 20 --seed 3", {
    "profile": {"metavar": "PROFILE", "help": f"{', '.join(PROFILES)}; with it --help shows its defaults"},
    "--output-dir": {"type": a_path, "metavar": "DIR", "help": "default: the next free checkpoints/runs/PROFILE-N"},
    "--resume": {"action": "store_true", "help": "continue the newest whole checkpoint of --output-dir"},
    "--resume-from": {"type": a_path, "metavar": "CHECKPOINT", "help": "continue this one in a new or empty folder"},
    "--warm-start": {"type": a_path, "metavar": "CHECKPOINT", "help": "begin a new run with its weights alone"},
    "--allow-other-data": {"action": "store_true", "help": "resume although the data differ"},
}, defaults=lambda words: next((PROFILES[word] for word in words if word in PROFILES), RunConfig()))  # fmt: skip
def train(profile, output_dir, allow_other_data, resume, resume_from, warm_start, **fields) -> None:
    """Fine-tune a profile. Two CPU cores take a minute for mini, a quarter of an hour for mini-agnews, hours for the others."""
    config = get_profile(profile, **fields)
    if resume and not output_dir:
        raise InputError("--resume continues the run of a folder; name it with --output-dir")
    from .processes import leads
    from .records import validation_rows
    from .training.resuming import Beginning
    from .training.run import next_run_dir, train

    origins = {"resume": resume, "resume_from": resume_from, "warm_start": warm_start}
    start = Beginning(**origins, allow_other_data=allow_other_data)  # refused before there is a folder
    output_dir = output_dir or next_run_dir(config.profile)
    last = validation_rows(train(config, output_dir, **vars(start)))[-1]
    if leads():
        print(f"{output_dir}: step {last['step']}, validation accuracy {last['eval_accuracy']:.4f}")


@command("checkpoints/mini/checkpoint-300 --data bundled --json scores.json", CHECKPOINT | {
    "--data": {"default": BUNDLED, "metavar": "hub|bundled|DIR", "help": "default: bundled, also for a run on AG News"},
    "--split": {"default": "test", "choices": ("train", "validation", "test"), "help": "default: test"},
} | JSON)  # fmt: skip
def evaluate(checkpoint, data, split, json_file) -> None:
    """Score a checkpoint on labelled rows. The bundled rows take seconds, those of AG News' test about a minute."""
    from .data import describe_source, load_split
    from .inference import evaluate_classifier

    if data not in ("hub", BUNDLED) and not find_folder(data):
        raise InputError(f"--data is {data!r}, wanted hub, bundled or a folder with {split}.csv")
    name, revision = (AG_NEWS, AG_NEWS_REVISION) if data == "hub" else (data, None)
    rows = load_split(name, split, revision)
    scores = evaluate_classifier(_load(checkpoint), rows) | {"data": describe_source(name, revision), "split": split}
    low, high = scores["interval"]
    print(f"accuracy {scores['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, {scores['examples']} rows)")
    print(f"macro F1 {scores['macro_f1']:.4f}, expected calibration error {scores['calibration']['ece']:.4f}")
    for label, each in scores["per_class"].items():
        rates = f"precision {each['precision']:.4f}  recall {each['recall']:.4f}  F1 {each['f1']:.4f}"
        print(f"{label:9} {rates}  {each['support']:,.0f} rows")
    print(f"scored on the {split} split of {scores['data']}")
    if json_file:  # last, so that nothing is lost where it cannot be written
        write_atomically(json_file, json.dumps(scores, indent=1) + "\n")


@command('checkpoints/mini-agnews/checkpoint-2400 "Oil prices rise as stocks fall"', CHECKPOINT | {
    "texts": {"nargs": "*", "metavar": "TEXT", "help": "what to label; - reads one text per line from standard input"},
    "--input": {"type": a_path, "metavar": "FILE", "help": "label these texts: .csv, .tsv, .jsonl, .parquet, .txt"},
    "--output": {"type": a_path, "metavar": "FILE.csv", "help": f"where they go, as ID,Label ({NAMES})"},
    "--text-column": {"metavar": "NAME[,NAME]", "help": "which columns of --input make the text"},
    "--id-column": {"metavar": "NAME", "help": "the column of --input that becomes ID"},
    "--json": {"dest": "as_json", "action": "store_true", "help": "print one JSON object per TEXT, one per line"},
    "--probabilities": {"action": "store_true", "help": "add one column per class; in a file, LabelName too"},
    "--precision": {"default": "float32", "choices": PRECISIONS, "help": "default: float32, which alone is exact"},
})  # fmt: skip
def predict(checkpoint, texts, input, output, text_column, id_column, as_json, probabilities, precision) -> None:
    """Label texts, or a file of texts. With the bundled base two CPU cores label a few hundred rows a second."""
    if bool(texts) == bool(input) or bool(input) != bool(output):
        raise InputError("predict: after CHECKPOINT give either texts, or --input FILE with --output FILE.csv")
    if input and as_json:
        raise InputError("predict: --json goes with texts, not with --input")
    if texts and (text_column, id_column) != (None, None):
        raise InputError("predict: --text-column and --id-column go with --input")
    texts = read_lines() if texts == ["-"] else texts
    classifier = _load(checkpoint, precision=precision)
    if input:
        columns = {"text_columns": text_column and text_column.split(","), "id_column": id_column}
        count = classifier.predict_file(input, output, probabilities=probabilities, **columns)
        print(f"{output}: {count} documents labelled")
        return
    columns = classifier.predict_columns(texts, probabilities=probabilities)
    names, rows = [*columns], [*zip(*columns.values(), strict=True)]
    if as_json:
        for row in rows:
            print(json.dumps(dict(zip(names, row, strict=True))))
        return
    widths = (TEXT_WIDTH, *(max(len(name), 8) for name in names[1:]))  # 8: "Business"
    for text, *values in (names, *rows):
        flat = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))  # repr: its number
        cells = [flat if len(flat) <= TEXT_WIDTH else f"{flat[: TEXT_WIDTH - 1]}…"]
        cells += (f"{value:.5f}" if isinstance(value, float) else str(value) for value in values)
        print(" ".join(map(str.ljust, cells, widths)).rstrip())


def _load(checkpoint: Path, **options):
    from .inference import Classifier

    classifier = Classifier.from_checkpoint(checkpoint, **options)
    _show_notices(classifier.verification)
    return classifier


def _show_notices(verification) -> None:
    for notice in verification.notices:
        print(f"notice: {notice}", file=sys.stderr)


@command("checkpoints/mini-agnews/checkpoint-2400 my-model", CHECKPOINT | {
    "target": {"type": a_path, "metavar": "DIR", "help": "a new folder"},
    "--adapter": {"action": "store_true", "help": "the adapter alone, for PEFT"},
    "--onnx": {"action": "store_true", "help": "for onnxruntime; takes onnx and onnxscript"},
    "--base-name": {"metavar": "NAME", "help": "the base's name on the Hub, for adapter and card"},
})  # fmt: skip
def export(checkpoint, target, adapter, onnx, base_name) -> None:
    """Write a folder that plain transformers loads, with a model card: the adapter merged into the base."""
    if adapter and onnx:
        raise InputError("export: give --adapter, --onnx or neither")
    from .export import export_checkpoint

    form = "adapter" if adapter else "onnx" if onnx else "merged"
    export_checkpoint(checkpoint, target, form=form, base_name=base_name)
    print(f"{target}: written")


@command("checkpoints/runs/mini-1 --output-dir my-figures", {
    "run_dirs": {"nargs": "*", "type": a_path, "metavar": "RUN_DIR", "help": "default: the committed runs"},
    "--output-dir": {"type": a_path, "metavar": "DIR", "default": REPOSITORY / "figures", "help": "default: figures"},
})  # fmt: skip
def figures(run_dirs, output_dir) -> None:
    """Draw the figures of runs from their records."""
    from .figures import draw_figures
    from .records import committed_runs

    theirs = {path.name for path in committed_runs()} if output_dir.resolve() == REPOSITORY / "figures" else set()
    if mine := [path for path in map(Path.resolve, run_dirs) if path.name in theirs and path.parent != CHECKPOINTS]:
        raise InputError(f"{mine[0]} is called like a committed run, whose figures it would replace; give --output-dir")
    files = [path for kinds in draw_figures(run_dirs, output_dir).values() for path in kinds.values()]
    if not run_dirs:
        from .evidence.plots import draw_all

        files = draw_all(output_dir)
    print(*files, sep="\n")


@command("checkpoints/mini/checkpoint-300", CHECKPOINT)
def verify(checkpoint) -> None:
    """Check a checkpoint that you kept or were given: checksums, the adapter's keys and shapes. Its base must be at hand."""
    from .checkpoints import verify_checkpoint

    found = verify_checkpoint(checkpoint)
    _show_notices(found)
    checksums = f"{len(files)} checksums" if (files := found.manifest.get("files")) else "no checksum to compare"
    print(f"{checkpoint}: valid; {checksums}, all {found.tensors} tensors as expected")


@command("--json bench.json", JSON)
def bench(json_file) -> None:
    """Measure training and prediction beside what people use today. Takes half an hour of two otherwise idle cores."""
    import pandas as pd

    from .environment import environment
    from .evidence.training_speed import run_benchmark

    record = run_benchmark() | {"environment": environment()}
    print(pd.DataFrame(record["rows"]).round(3).to_string(index=False))
    for model, peers in record["prediction"].items():
        rates = ", ".join(f"{peer} {row['rows_per_second']:.1f}" for peer, row in peers.items())
        print(f"{model}: rows labelled a second: {rates}")
    if json_file:
        write_atomically(json_file, json.dumps(record, indent=1) + "\n")


def _pretraining(words: list[str] = (), **fields):
    from .pretraining.config import PretrainingConfig

    return PretrainingConfig(**fields)


@command("--output-dir checkpoints/runs/my-base", {
    "--output-dir": {"type": a_path, "metavar": "DIR", "help": "default: checkpoints/runs/roberta-mini"},
    "--resume": {"action": "store_true", "help": "continue a run that was stopped"},
}, defaults=_pretraining)  # fmt: skip
def pretrain(output_dir, resume, **fields) -> None:
    """Rebuild the bundled base model from AG News text. Takes minutes of a GPU, many hours of two CPU cores."""
    config, output_dir = _pretraining(**fields), output_dir or RUNS / "roberta-mini"
    from safetensors import SafetensorError

    from .pretraining.run import pretrain

    try:
        log = pretrain(config, output_dir, resume=resume)["log"]
    except KeyboardInterrupt:
        raise Stopped("stopped; the same command with --resume goes on") from None
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save's writer
            raise
        raise InputError(f"{output_dir}: {first_line(error)}; make room there, and go on with --resume") from error
    loss = [row["eval_masked_loss"] for row in log if "eval_masked_loss" in row][-1]
    print(f"{output_dir}: base model and record written; loss on validation text {loss:.3f} nats")


@command("mini baselines", {
    "parts": {"nargs": "*", "metavar": "PART", "help": "default: all but those of hours, a GPU or bfloat16"},
})  # fmt: skip
def evidence(parts) -> None:
    """Rerun the committed runs, controls and baselines, for maintainers. Takes hours and rewrites checkpoints/."""
    from .evidence.rebuild import rebuild

    rebuild(parts)


@command("--check", {"--check": {"action": "store_true", "help": "write nothing; exit 1 if a number differs"}})
def report(check) -> None:
    """Write the records' numbers into README, notebook and model cards, for maintainers."""
    from .evidence.report import update_documents

    for path in update_documents(check=check):
        print(f"{path}: numbers written")


if __name__ == "__main__":
    if "RANK" not in os.environ:  # a launcher's process may wait for another, and then no Python runs
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # Windows has no SIGHUP
            if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores it
                signal.signal(number, signal.default_int_handler)  # an orderly end, as after Ctrl-C
    if sys.stdout:  # closed, in some daemons
        sys.stdout.reconfigure(errors="backslashreplace")  # what this terminal cannot show
    status = main()
    gc.freeze()  # Python's end would walk through everything that the libraries made
    sys.exit(status)
