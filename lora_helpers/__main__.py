"""The command line: `python -m lora_helpers COMMAND …`. A thin face on the modules; every command is one function.

Errors of the user's end as one line on stderr with exit status 2, failed checks with 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

from . import quiet
from .config import AG_NEWS, AG_NEWS_REVISION, PROFILES, REPOSITORY, RunConfig, get_profile, parse_field
from .errors import CheckFailed, InputError, nearest

RUNS = REPOSITORY / "checkpoints" / "runs"


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    quiet()
    options, unknown = _parser().parse_known_args(arguments)
    try:
        if unknown:
            flags = [_flag(field.name) for field in fields(RunConfig)]
            raise InputError(f"unknown option {unknown[0]!r}{nearest(unknown[0], flags)}; --help lists them")
        return options.run(options) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CheckFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; a training run goes on from its last whole checkpoint with --resume", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lora_helpers", description=__doc__.splitlines()[0])
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
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write the scores there")

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

    pretrain = _add(commands, "pretrain", _pretrain, "rebuild the bundled base model from AG News text")
    pretrain.add_argument("--output-dir", type=Path, default=REPOSITORY / "checkpoints" / "roberta-mini")
    pretrain.add_argument("--work-dir", type=Path, default=RUNS / "pretraining", help="checkpoints while it runs")
    pretrain.add_argument("--resume", action="store_true", help="continue the newest checkpoint of --work-dir")
    pretrain.add_argument(
        "fields", nargs=argparse.REMAINDER, metavar="--FIELD VALUE", help="any PretrainingConfig field"
    )

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
    from .training import next_run_dir, train

    given = {f.name: getattr(options, f"field_{f.name}", None) for f in fields(RunConfig)}
    changes = {name: parse_field(name, text) for name, text in given.items() if text is not None}
    config = get_profile(options.profile, **changes)
    if options.resume and options.output_dir is None:
        raise InputError("--resume continues the run of a folder; name it with --output-dir")
    output_dir = options.output_dir or next_run_dir(config.profile, RUNS)
    record = train(
        config,
        output_dir,
        resume=options.resume,
        resume_from=options.resume_from,
        allow_other_data=options.allow_other_data,
    )
    last = [row for row in record["log"] if "eval_accuracy" in row][-1]
    print(f"{output_dir}: step {last['step']}, validation accuracy {last['eval_accuracy']:.4f}")


def _evaluate(options) -> None:
    from .data import load_split
    from .evaluation import evaluate_classifier
    from .inference import Classifier

    if options.json and options.json.exists():
        raise InputError(f"{options.json}: exists already; name another file")
    dataset = AG_NEWS if options.data == "hub" else options.data
    rows = load_split(dataset, options.split, AG_NEWS_REVISION if options.data == "hub" else None)
    scores = evaluate_classifier(_load(Classifier, options.checkpoint), rows)
    if options.json:
        options.json.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    low, high = scores["interval"]
    print(f"accuracy {scores['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, {scores['examples']} rows)")
    print(f"macro F1 {scores['macro_f1']:.4f}, expected calibration error {scores['calibration']['ece']:.4f}")
    for label, each in scores["per_class"].items():
        print(f"{label:9} precision {each['precision']:.4f}  recall {each['recall']:.4f}  F1 {each['f1']:.4f}")


def _predict(options) -> None:
    from .inference import Classifier

    if bool(options.texts) == bool(options.input) or bool(options.input) != bool(options.output):
        raise InputError("predict: give either texts, or --input FILE with --output FILE.csv")
    classifier = _load(Classifier, options.checkpoint)
    if options.texts:
        print(classifier.predict(options.texts)[["label", "name", "confidence"]].to_string(index=False))
    else:
        count = classifier.predict_file(options.input, options.output, probabilities=options.probabilities)
        print(f"{options.output}: {count} documents labelled")


def _load(classifier, checkpoint: Path):
    loaded = classifier.from_checkpoint(checkpoint)
    for notice in loaded.verification.notices:
        print(f"notice: {notice}", file=sys.stderr)
    return loaded


def _figures(options) -> None:
    from .figures import draw_figures

    run_dirs = options.run_dirs or [REPOSITORY / "checkpoints" / "mini-agnews", REPOSITORY / "checkpoints" / "mini"]
    for path in draw_figures(run_dirs, options.output_dir):
        print(path)


def _verify(options) -> None:
    from .checkpoints import verify_checkpoint

    found = verify_checkpoint(options.checkpoint)
    for notice in found.notices:
        print(f"notice: {notice}", file=sys.stderr)
    print(f"{options.checkpoint}: whole; {found.files} checksums and {found.tensors} tensors as they should be")


def _pretrain(options) -> None:
    from .pretraining import PretrainingConfig, pretrain

    known = {field.name: type(field.default) for field in fields(PretrainingConfig)}
    changes = {}
    for flag, value in zip(options.fields[::2], [*options.fields[1::2], None], strict=False):
        name = flag.removeprefix("--").replace("-", "_")
        if name not in known or value is None:
            raise InputError(f"pretrain: {flag!r} is no field with a value; fields are {', '.join(known)}")
        try:
            changes[name] = known[name](value)
        except ValueError:
            raise InputError(f"pretrain: {name} is {value!r}, wanted {known[name].__name__}") from None
    pretrain(PretrainingConfig(**changes), options.output_dir, options.work_dir, resume=options.resume)
    print(f"{options.output_dir}: base model and record written")


def _report(options) -> None:
    from .report import update_documents

    for path in update_documents(check=options.check):
        print(f"{path}: numbers written")


def _evidence(options) -> None:
    from .evidence import rebuild

    rebuild(options.parts)


if __name__ == "__main__":
    sys.exit(main())
