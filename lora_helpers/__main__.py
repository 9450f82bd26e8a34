"""The command line: `python -m lora_helpers COMMAND …`. A thin face on the modules; every command is one function.

Errors of the user's end as one line on stderr with exit status 2, failed checks with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

from . import quiet
from .config import AG_NEWS, AG_NEWS_REVISION, BUNDLED, PROFILES, RunConfig, get_profile
from .errors import CheckFailed, InputError, nearest
from .field_checks import parse_field
from .files.places import REPOSITORY
from .pretraining.config import PretrainingConfig
from .processes import run_program


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    quiet()
    try:
        options, unknown = _parser().parse_known_args(arguments)
        if unknown:
            flags = [_flag(name.removeprefix("field_")) for name in vars(options)]  # what this command has
            raise InputError(f"unknown option {unknown[0]!r}{nearest(unknown[0], flags)}; --help lists them")
        return options.run(options) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CheckFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place, reason = error.filename or "writing", error.strerror or error
        print(f"error: {place}: {reason}; check that it is there and may be read or written", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":  # of several processes, which all are stopped, one says so
            print(stop if str(stop) else "stopped", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message):
        raise InputError(f"{message}; {self.prog} --help shows what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m lora_helpers", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = _add(commands, "train", _train, "fine-tune a profile")
    train.add_argument("profile", help=", ".join(PROFILES))
    train.add_argument("--output-dir", type=Path, help="default: the next free checkpoints/runs/PROFILE-N")
    start = train.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue the newest whole checkpoint of --output-dir")
    start.add_argument("--resume-from", type=Path, metavar="CHECKPOINT", help="continue it into a new folder")
    train.add_argument("--allow-other-data", action="store_true", help="resume although the data differ")
    for field in fields(RunConfig):
        if field.name != "profile":
            train.add_argument(_flag(field.name), dest=f"field_{field.name}", metavar="VALUE")

    evaluate = _add(commands, "evaluate", _evaluate, "score a checkpoint on labelled rows")
    evaluate.add_argument("checkpoint", type=Path)
    evaluate.add_argument("--data", default="bundled", help="hub, bundled, or a folder that holds test.csv")
    evaluate.add_argument("--split", default="test", choices=("train", "validation", "test"))
    evaluate.add_argument("--json", type=_new_file, metavar="FILE", help="write the scores there")

    predict = _add(commands, "predict", _predict, "label texts, or a file of texts")
    predict.add_argument("checkpoint", type=Path)
    predict.add_argument("texts", nargs="*", metavar="TEXT")
    predict.add_argument("--input", type=Path, metavar="FILE", help=".csv, .jsonl, .parquet or .txt")
    predict.add_argument("--output", type=Path, metavar="FILE.csv")
    predict.add_argument("--probabilities", action="store_true", help="add LabelName and one column a class")

    figures = _add(commands, "figures", _figures, "draw the figures of runs from their records")
    figures.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR")
    figures.add_argument("--output-dir", type=Path, default=REPOSITORY / "figures")

    verify = _add(commands, "verify", _verify, "check a checkpoint: checksums, keys, shapes")
    verify.add_argument("checkpoint", type=Path)

    bench = _add(commands, "bench", _bench, "measure training and prediction beside what people use today")
    bench.add_argument("--json", type=_new_file, metavar="FILE", help="write the record there")

    pretrain = _add(commands, "pretrain", _pretrain, "rebuild the bundled base model from AG News text")
    pretrain.add_argument("--output-dir", type=Path, help="default: checkpoints/runs/roberta-mini")
    pretrain.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    for field in fields(PretrainingConfig):
        pretrain.add_argument(_flag(field.name), dest=f"field_{field.name}", metavar="VALUE")

    report = _add(commands, "report", _report, "write the records' numbers into README and model cards")
    report.add_argument("--check", action="store_true", help="write nothing; exit 1 if a number differs")

    evidence = _add(commands, "evidence", _evidence, "rerun the committed runs, controls and baselines")
    evidence.add_argument("parts", nargs="*", metavar="PART", help="default: all of them")
    return parser


def _add(commands, name, run, help):
    command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _train(options) -> None:
    from .processes import leads
    from .records import validation_rows
    from .training.run import next_run_dir, train

    config = get_profile(options.profile, **_given_fields(options, RunConfig))
    if options.resume and options.output_dir is None:
        raise InputError("--resume continues the run of a folder; name it with --output-dir")
    output_dir = options.output_dir or next_run_dir(config.profile)
    start = {name: getattr(options, name) for name in ("resume", "resume_from", "allow_other_data")}
    record = train(config, output_dir, **start)
    last = validation_rows(record)[-1]
    if leads():
        print(f"{output_dir}: step {last['step']}, validation accuracy {last['eval_accuracy']:.4f}")


def _evaluate(options) -> None:
    from .data import load_split
    from .inference import evaluate_classifier

    if options.data not in ("hub", BUNDLED) and not Path(options.data).is_dir():
        raise InputError(f"--data is {options.data!r}, wanted hub, bundled or a folder with {options.split}.csv")
    dataset = AG_NEWS if options.data == "hub" else options.data
    rows = load_split(dataset, options.split, AG_NEWS_REVISION if options.data == "hub" else None)
    scores = evaluate_classifier(_load(options.checkpoint), rows)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    low, high = scores["interval"]
    print(f"accuracy {scores['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, {scores['examples']} rows)")
    print(f"macro F1 {scores['macro_f1']:.4f}, expected calibration error {scores['calibration']['ece']:.4f}")
    for label, each in scores["per_class"].items():
        print(f"{label:9} precision {each['precision']:.4f}  recall {each['recall']:.4f}  F1 {each['f1']:.4f}")


def _predict(options) -> None:
    if bool(options.texts) == bool(options.input) or bool(options.input) != bool(options.output):
        raise InputError("predict: give either texts, or --input FILE with --output FILE.csv")
    if options.texts and options.probabilities:
        raise InputError("predict: --probabilities goes with --input; texts get a table of label, name, confidence")
    classifier = _load(options.checkpoint)
    if options.texts:
        print(classifier.predict(options.texts)[["label", "name", "confidence"]].to_string(index=False))
    else:
        count = classifier.predict_file(options.input, options.output, probabilities=options.probabilities)
        print(f"{options.output}: {count} documents labelled")


def _load(checkpoint: Path):
    from .inference import Classifier

    classifier = Classifier.from_checkpoint(checkpoint)
    _show_notices(classifier.verification)
    return classifier


def _show_notices(verification) -> None:
    for notice in verification.notices:
        print(f"notice: {notice}", file=sys.stderr)


def _figures(options) -> None:
    from .evidence.rebuild import draw
    from .figures import draw_figures

    drawn = draw_figures(options.run_dirs, options.output_dir)
    files = [path for kinds in drawn.values() for path in kinds.values()] or draw(options.output_dir)
    print(*files, sep="\n")


def _verify(options) -> None:
    from .checkpoints import verify_checkpoint

    found = verify_checkpoint(options.checkpoint)
    _show_notices(found)
    checksums = f"{found.files} checksums" if found.files else "no checksum to compare"
    print(f"{options.checkpoint}: whole; {checksums}, {found.tensors} tensors as they should be")


def _new_file(text: str) -> Path:
    path = Path(text)
    if path.exists() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path} exists already, or its folder does not; name another file")
    return path


def _bench(options) -> None:
    import pandas as pd

    from .environment import environment
    from .evidence.training_speed import run_benchmark

    record = run_benchmark() | {"environment": environment()}
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(pd.DataFrame(record["rows"]).round(3).to_string(index=False))
    print(f"ceiling, a matrix product alone: {record['ceiling_gflops']:.0f} GFLOP/s")
    for model, trainer in record["trainer"].items():
        rates = ", ".join(f"{way} {row['rows_per_second']:.1f}" for way, row in record["prediction"][model].items())
        print(f"{model}: the Trainer adds {trainer['overhead']:.1%} to the step; rows labelled a second: {rates}")


def _pretrain(options) -> None:
    from .files.places import RUNS
    from .pretraining.run import pretrain

    output_dir = options.output_dir or RUNS / "roberta-mini"
    record = pretrain(PretrainingConfig(**_given_fields(options, PretrainingConfig)), output_dir, resume=options.resume)
    last = [row for row in record["log"] if "eval_masked_loss" in row][-1]
    print(f"{output_dir}: base model and record written; loss on validation text {last['eval_masked_loss']:.3f} nats")


def _given_fields(options, config) -> dict:
    """The fields of a configuration that the command line gives, with their types."""
    given = {field.name: getattr(options, f"field_{field.name}", None) for field in fields(config)}
    return {name: parse_field(config, name, text) for name, text in given.items() if text is not None}


def _report(options) -> None:
    from .evidence.report import update_documents

    for path in update_documents(check=options.check):
        print(f"{path}: numbers written")


def _evidence(options) -> None:
    from .evidence.rebuild import rebuild

    rebuild(options.parts)


if __name__ == "__main__":
    run_program(main)
