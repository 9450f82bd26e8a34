"""The kinds of failure that a user sees as one line, and the hint at a misspelt name."""

import difflib
import re
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line, the command line exits with 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))  # a name with a line break in it is still named on one line

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows: the sentence, not the way to it."""
        return [f"{type(self).__name__}: {self}"]


class CheckFailed(Exception):
    """A check that was asked for did not hold; the message is one line, the command line exits with 1."""

    _render_traceback_ = InputError._render_traceback_


class Stopped(KeyboardInterrupt):
    """The user interrupted a run (Ctrl-C, Jupyter's stop button); the message is one line and says how it goes on."""

    _render_traceback_ = InputError._render_traceback_


@contextmanager
def written_into(folder):
    """InputError if what is done within cannot write into `folder`: it may be read-only, or the disk full."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InputError(f"{folder}: cannot be written ({reason}); make room there, or name another folder") from error


# What other programs call a field.
SYNONYMS = {"lr": "learning_rate", "model": "base_model"}


def nearest(name: str, known) -> str:
    """A hint at the known name that is most like `name`, or means the same; or nothing."""
    plain = {_as_field(each): each for each in known}
    meant = SYNONYMS.get(_as_field(name))
    close = [meant] if meant in plain else difflib.get_close_matches(_as_field(name), plain, n=1)
    return f" (did you mean {plain[close[0]]!r}?)" if close else ""


def _as_field(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def first_line(error: BaseException) -> str:
    """The first line of what a library says, for a message of one line; without colours of a terminal."""
    return (re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines() or [type(error).__name__])[0]
