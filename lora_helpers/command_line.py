"""Parse the command line, call a command of `__main__`, and turn errors into one line and an exit status.

Nothing here loads a library, so that help and errors of typing are answered at once.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from . import __version__, quiet
from .config import describe_fields
from .errors import CheckFailed, InputError, nearest
from .field_checks import parse_field

PROGRAM = "python -m lora_helpers"


class Command(NamedTuple):
    """A function that is called with its arguments by name; its docstring says what it does."""

    call: Callable
    example: str
    arguments: dict[str, dict]  # name or flag -> what argparse's `add_argument` takes
    defaults: Callable | None  # from what was typed to the configuration whose fields are options too


COMMANDS: dict[str, Command] = {}


def command(example: str, arguments: dict[str, dict], *, defaults: Callable | None = None) -> Callable:
    """Make the decorated function the command of its name."""

    def register(call: Callable) -> Callable:
        COMMANDS[call.__name__] = Command(call, example, arguments, defaults)
        return call

    return register


def main(words: list[str] | None = None) -> int:
    """Carry out what was typed. The exit status is 1 for a failed check, 2 for bad input, 130 for an interrupt."""
    try:
        _call(*_parse(sys.argv[1:] if words is None else words))
    except InputError as error:
        return _say(f"error: {error}", 2)
    except CheckFailed as error:
        return _say(f"failed: {error}", 1)
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
    except OSError as error:
        place, reason = error.filename or "writing", error.strerror or error
        return _say(f"error: {place}: {reason}; check that it is there and may be read or written", 2)
    except KeyboardInterrupt as stop:
        first = os.environ.get("RANK", "0") == "0"  # of several processes, which all are stopped, one says so
        return _say(str(stop) or "stopped", 130) if first else 130
    return 0


def a_path(text: str) -> Path:
    """The file or folder of an argument; a shell leaves `~` in --output-dir=~/mine as it is."""
    return Path(os.path.expanduser(text))


def a_new_file(text: str) -> Path:
    """The same, refused if something is there already, or no folder for it."""
    if (path := a_path(text)).exists() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} exists already, or its folder does not; name another file")
    return path


def read_lines() -> list[str]:
    """The lines of standard input."""
    if sys.stdin is None:
        raise InputError("standard input is closed; give it the texts, one per line")
    sys.stdin.reconfigure(encoding="utf-8-sig")
    try:
        return [line.rstrip("\r\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 ({error.reason}); convert it") from error


def _call(function: Callable, values: dict) -> None:
    quiet()
    try:
        function(**values)
        if sys.stdout:
            sys.stdout.flush()
    except ImportError:
        from .environment import require_packages

        require_packages()  # says in one sentence what is missing
        raise


def _say(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, which hint at an option that this command has, and examples left in one piece."""

    def __init__(self, **details):
        super().__init__(**details, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parse(self, words: list[str]) -> dict:
        options, unknown = self.parse_known_intermixed_args(words)  # `predict CHECKPOINT --json TEXT` too
        if unknown:
            kind = "option" if unknown[0].startswith("-") else "argument"
            hint = nearest(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unknown {kind} {unknown[0]!r}{hint}")
        return vars(options)

    def error(self, message):
        raise InputError(f"{message}; {self.prog} --help shows what there is")


def _parse(words: list[str]) -> tuple[Callable, dict]:
    """What to call, and with which arguments. Raises: SystemExit after --help and --version."""
    name, *rest = words or ["--help"]
    if name.startswith("-"):
        summaries = (f"{name:10}{each.call.__doc__.partition('.')[0]}" for name, each in COMMANDS.items())
        about = "Fine-tune RoBERTa on news with LoRA; evaluate, predict with and pass on what was trained."
        parser = _Parser(prog=PROGRAM, usage=f"{PROGRAM} COMMAND …", description=about, epilog="\n".join(summaries))
        parser.add_argument("--version", action="version", version=__version__)
        parser.parse([name])
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}{nearest(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    call, example, arguments, defaults = COMMANDS[name]
    prog = f"{PROGRAM} {name}"
    parser = _Parser(prog=prog, description=call.__doc__, epilog=f"example: {prog} {example}")
    for argument, details in arguments.items():
        parser.add_argument(argument, **details)
    if defaults:
        words_alone = "".join(f"{argument.upper()} " for argument in arguments if not argument.startswith("-"))
        parser.usage = f"{prog} {words_alone}[OPTION …] [--FIELD X …]"
        _add_fields(parser, defaults(rest))
    return call, parser.parse(rest)


def _add_fields(parser: _Parser, config) -> None:
    """An option for each field, its group as a heading, with the defaults of `config`."""
    rows = [row for row in describe_fields(config) if row["group"] != "profile"]  # which is an argument of its own
    for group, its_rows in groupby(rows, key=lambda row: row["group"]):
        section = parser.add_argument_group(group)
        for row in its_rows:
            details = ", ".join(filter(None, (row["unit"], f"default {row['value']}")))
            section.add_argument(
                "--" + row["field"].replace("_", "-"), metavar="X", default=argparse.SUPPRESS,
                type=partial(parse_field, type(config), row["field"]), help=f"{row['help']} [{details}]".replace("%", "%%"),
            )  # fmt: skip
