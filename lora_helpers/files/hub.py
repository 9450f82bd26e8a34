"""Where a base model's files lie, a local folder or the Hub's at a commit, and what identifies them.

`model` loads a base from that folder and from nowhere else, so what is identified is what computes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, first_line
from .places import local_folder, portable_name

# Everything that decides what a base computes; other files of a folder (a card, a record) do not count.
IDENTITY_FILES = ("config.json", "*.safetensors", "tokenizer*.json", "vocab.*", "merges.txt", "*.model")
LOADED_FILES = ("*.json", *IDENTITY_FILES)  # what is fetched of a repository: no pickle, no other framework's weights


def base_folder(name: str) -> Path | None:
    """The local folder that `name` means here, None if it is a Hub name. ROBERTA_BASE_DIR counts for roberta-base."""
    return local_folder(name, "config.json and model.safetensors")


def base_files(name: str, revision: str | None) -> Path:
    """The folder from which a base is loaded: a local one, or the Hub's at `revision`, downloaded if need be."""
    instead = "connect to the Hub, set ROBERTA_BASE_DIR to a folder with roberta-base, or use PROFILE=mini"
    return base_folder(name) or download(name, revision, LOADED_FILES, kind="model", instead=instead)


def how_to_restore(name: str, revision: str | None) -> str:
    """What to do about a base whose files are not what they should be."""
    if base_folder(name):
        return f"restore {base_folder(name)}: config.json, model.safetensors and the tokenizer's files"
    return f"delete {cached_repository(base_files(name, revision))} to download it again"


def base_identity(name: str, revision: str | None) -> dict[str, str | None]:
    """What identifies a base: its name, its commit on the Hub, and the SHA-256 of the weights and tokenizer loaded."""
    folder, on_hub = base_files(name, revision), base_folder(name) is None
    digest = hashlib.sha256()
    for file in sorted({path for pattern in IDENTITY_FILES for path in folder.glob(pattern)}):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return {"name": portable_name(name), "revision": revision if on_hub else None, "sha256": digest.hexdigest()}


def download(name: str, revision: str | None, patterns: Sequence[str], *, kind: str, instead: str) -> Path:
    """The folder in the Hub's cache with all files of `name` at commit `revision` that match one of `patterns`.

    Nothing else of the repository is fetched. With every file in the cache, or HF_HUB_OFFLINE, nothing is asked.
    `kind` is "model" or "dataset"; `instead` says what to do without the Hub.

    Raises:
        InputError: the Hub is out of reach, broke off or knows no such commit, and the cache lacks a file.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # of the HTTP library that huggingface_hub uses; not an OSError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of its retries would be two lines more
    try:
        return Path(snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=list(patterns)))
    except (OSError, ValueError, HTTPError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{kind} {name} at {revision} could not be loaded ({reason}); {instead}") from error


def is_at_hand(name: str, revision: str | None, *, kind: str) -> bool:
    """Whether a repository's files can be had at once: from a folder, from the Hub's cache, or from a Hub that answers
    within two seconds."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError

    if local_folder(name, "its files"):
        return True
    try:
        cached = Path(snapshot_download(name, revision=revision, repo_type=kind, local_files_only=True))
        if any(cached.rglob("model.safetensors" if kind == "model" else "train*.parquet")):
            return True
    except (OSError, ValueError):  # nothing of it was ever fetched
        pass
    try:
        return bool(HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=2))
    except (OSError, ValueError, HTTPError):
        return False


def cached_repository(snapshot: Path) -> Path:
    """What to delete so that a `download` that gave `snapshot` fetches again: the Hub's cache of the repository."""
    return snapshot.parent.parent
