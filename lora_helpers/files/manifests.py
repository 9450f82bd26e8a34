"""What makes a folder a whole checkpoint: `manifest.json`, written last, with the SHA-256 of every file and of itself."""

import hashlib
import json
import os
import secrets
from pathlib import Path

from ..errors import CheckFailed

MANIFEST = "manifest.json"


def seal(folder: Path, details: dict) -> None:
    """Make `folder` a whole checkpoint: checksums of all its files, and `details`, in a manifest written last."""
    for name in ("training_args.bin", "README.md"):  # a pickle of what the record has, and PEFT's empty model card
        (folder / name).unlink(missing_ok=True)
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    make_readable(files)
    for path in files:
        with path.open("r+b") as stream:  # writable, or Windows refuses fsync
            os.fsync(stream.fileno())
    write_atomically(folder / MANIFEST, _render(details | {"files": {path.name: hash_file(path) for path in files}}))


def make_readable(files: list[Path]) -> None:
    """Give all files the permissions of the one that most may read: safetensors writes for the owner alone."""
    mode = max(path.stat().st_mode for path in files)
    for path in files:
        path.chmod(mode)


def read_manifest(folder: Path) -> dict:
    """The manifest of a whole checkpoint, empty for a foreign folder; CheckFailed if a byte of it is not what `seal` wrote."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        manifest.pop("sha256", None)
        if _render(manifest) != text:
            raise ValueError("it is not what its own SHA-256 was taken of")
        if outside := [name for name in manifest["files"] if name in ("", ".", "..") or set(name) & set("/\\:")]:
            raise ValueError(f"it lists {outside[0]!r}, wanted names of files in this folder")
        int(manifest["config"]["max_length"]), manifest["base"]["sha256"].encode()  # as whoever reads it relies on
        return manifest | {"files": dict(manifest["files"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckFailed(f"{path}: not a manifest ({error}); the checkpoint is damaged, take another") from error


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all: temporary name, fsync, rename."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _render(content: dict) -> str:
    """The manifest's text: `content` and, last, the SHA-256 of `content` as JSON."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content | {"sha256": digest}, indent=2) + "\n"
