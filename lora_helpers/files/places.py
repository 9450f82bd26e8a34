"""Where things lie: the repository's own folders, and the folder that the name of a base model or data set means here."""

import os
from pathlib import Path, PureWindowsPath

from ..errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINTS = REPOSITORY / "checkpoints"
RUNS = CHECKPOINTS / "runs"  # yours; git ignores it
MINI_NEWS = REPOSITORY / "lora_helpers" / "mini_news"

ROBERTA_BASE = "FacebookAI/roberta-base"
MPNET_BASE = "sentence-transformers/all-mpnet-base-v2"
AG_NEWS = "fancyzhx/ag_news"
ROBERTA_MINI = "checkpoints/roberta-mini"  # relative to the repository
BUNDLED = "bundled"  # the corpus in MINI_NEWS

SHORT_NAMES = {"roberta-base": ROBERTA_BASE, "ag_news": AG_NEWS}  # of before the Hub knew owners; it redirects them

# Variables that may name a folder to take the place of what the Hub calls so.
STAND_INS = {ROBERTA_BASE: "ROBERTA_BASE_DIR", MPNET_BASE: "MPNET_BASE_DIR", AG_NEWS: "AG_NEWS_DIR"}


def full_name(name: str) -> str:
    """The Hub's name of today for an old short one; any other name as it is."""
    return SHORT_NAMES.get(name, name)


def is_folder_name(name: str) -> bool:
    """Whether `name` means a folder and not something on the Hub; the folder itself may still be missing."""
    on_a_drive = PureWindowsPath(name).drive != ""
    return name.startswith(("checkpoints/", ".", "/", "~")) or on_a_drive or find_folder(name) is not None


def find_folder(name: str) -> Path | None:
    """The folder called `name`, seen from the working folder or from the repository; None if there is none."""
    for candidate in (os.path.expanduser(name), REPOSITORY / name):
        if os.path.isdir(candidate):  # False, never an error, for a name that no folder can have
            return Path(candidate).resolve()
    return None


def local_folder(name: str, wanted: str) -> Path | None:
    """The local folder that `name` means, its `STAND_INS` variable first; None: on the Hub. Errors ask for `wanted`."""
    variable = STAND_INS.get(full_name(name), "")
    if given := os.environ.get(variable):
        folder = Path(os.path.expanduser(given))
        if not folder.is_dir():
            raise InputError(f"{variable} is {str(folder)!r}, which is no folder; give one with {wanted}")
        return folder
    folder = find_folder(name)
    if folder is None and is_folder_name(name):
        raise InputError(f"folder {name!r} is missing; give one with {wanted}")
    return folder


def portable_name(name: str) -> str:
    """A folder's path from the repository, which tells nothing above the folder that holds both; else the full name.
    From another drive of Windows there is no such path: then ./ and the folder's own name, which must be found anew."""
    folder = None if name == BUNDLED else find_folder(name)
    if folder is None:
        return full_name(name)
    try:
        return Path(os.path.relpath(folder, REPOSITORY)).as_posix()
    except ValueError:  # another drive of a Windows machine
        return f"./{folder.name}"


def relative_to_repository(path: Path) -> str:
    """A path for a record: relative to the repository where it lies inside it, else its last part alone."""
    path = path.resolve()
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.name
