"""Where a base model's files lie, a local folder or the Hub's at a commit, and what identifies them.

`bases` loads a base from that folder and from nowhere else, so what is identified is what computes.
"""

import hashlib
import logging
import socket
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing import TimeoutError as NoAnswer
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ..errors import InputError, first_line
from .documents import require_content
from .places import STAND_INS, full_name, local_folder, portable_name

# Everything that decides what a base computes; other files of a folder (a card, a record) do not count.
IDENTITY_FILES = ("config.json", "*.safetensors", "tokenizer*.json", "vocab.*", "merges.txt", "*.model")
LOADED_FILES = ("*.json", *IDENTITY_FILES)  # what is fetched of a repository: no pickle, no other framework's weights
SECONDS = 2  # time limit for a connection to the Hub or its proxy, and for the answer that `is_at_hand` waits for

logger = logging.getLogger(__name__)


def base_folder(name: str) -> Path | None:
    """The local folder that the name of a base means here, None if it is a Hub name."""
    return local_folder(name, "config.json and model.safetensors")


def base_files(name: str, revision: str | None, or_else: str = "") -> Path:
    """The folder from which a base is loaded: a local one, or the Hub's at `revision`, downloaded if need be."""
    variable = STAND_INS.get(full_name(name))
    instead = f"set {variable} to a folder with its files" if variable else "name a folder that holds its files"
    folder = base_folder(name) or download(name, revision, LOADED_FILES, kind="model", instead=instead + or_else)
    for path in folder.glob("*.safetensors"):
        require_content(path)
    return folder


def how_to_restore(name: str, revision: str | None) -> str:
    """What to do about a base whose files are not what they should be."""
    if folder := base_folder(name):
        return f"restore {folder}: config.json, model.safetensors and the tokenizer's files"
    return f"delete {cached_repository(base_files(name, revision))} to download it again"


def base_identity(name: str, revision: str | None) -> dict[str, str | None]:
    """What identifies a base: its name, its commit on the Hub, and the SHA-256 of what is loaded, and of its weights."""
    folder, on_hub = base_files(name, revision), base_folder(name) is None
    files = sorted({path for pattern in IDENTITY_FILES for path in folder.glob(pattern)})
    stats = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in (file.stat() for file in files)]
    named = {"name": portable_name(name), "revision": revision if on_hub else None}
    return named | _hash_files(tuple(files), tuple(stats))


@lru_cache(maxsize=8)
def _hash_files(files: tuple[Path, ...], stats: tuple) -> dict[str, str]:
    """SHA-256 of all files, their names included, and of the weights alone; read again only once `stats` have changed."""
    everything, weights = hashlib.sha256(), hashlib.sha256()
    for file in files:
        everything.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                everything.update(block)
                if file.suffix == ".safetensors":
                    weights.update(block)
    return {"sha256": everything.hexdigest(), "weights_sha256": weights.hexdigest()}


def require_here(name: str, revision: str | None) -> None:
    """Refuse a base that would have to be fetched: it is neither a folder nor whole in the Hub's cache."""
    if base_folder(name) is None and not _find_cached(name, revision, LOADED_FILES, "model"):
        why = "and `verify` downloads nothing that only the checkpoint names; `predict` does, and says how large it is"
        raise InputError(f"base model {name} at {revision or 'main'} is not here, {why}")


def download(name: str, revision: str | None, patterns: Sequence[str], *, kind: str, instead: str) -> Path:
    """The folder in the Hub's cache with all files of `name` at commit `revision` that match one of `patterns`.

    With every file in the cache, or HF_HUB_OFFLINE, nothing is asked; what another program left there will do where
    the Hub does not help. `kind` is "model" or "dataset"; `instead` says what else to do without the Hub.

    Raises: InputError: the Hub is out of reach, broke off or knows no such commit, and the cache lacks a file.
    """
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import HTTPError  # of the HTTP library that huggingface_hub uses; not an OSError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each of its retries would be two lines more
    name, offline = full_name(name), is_offline_mode()
    if cached := _find_cached(name, revision, patterns, kind):
        return cached
    left = None if offline else _find_left(name, revision, patterns, kind)  # before a download that may break off
    try:
        if not offline:
            _announce(name, revision, patterns, kind)
        return Path(snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=list(patterns)))
    except (OSError, ValueError, HTTPError) as error:
        if left:
            return left
        reason = f"{type(error).__name__}: {first_line(error)}"
        instead = f"{'unset HF_HUB_OFFLINE' if offline else 'connect to the Hub'}, or {instead}"
        raise InputError(f"{kind} {name} at {revision} could not be loaded ({reason}); {instead}") from error


def _find_cached(
    name: str, revision: str | None, patterns: Sequence[str], kind: str, *, listed: bool = True
) -> Path | None:
    """The folder in the Hub's cache if it holds every matching file; `listed`: a cached file list must confirm that."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError, LocalEntryNotFoundError

    its = {"revision": revision, "repo_type": kind}
    try:
        if listed:
            get_cached_repo_tree(name, **its)
        return Path(snapshot_download(name, **its, allow_patterns=list(patterns), local_files_only=True))
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError, HFValidationError):
        return None


def _find_left(name: str, revision: str | None, patterns: Sequence[str], kind: str) -> Path | None:
    """What another program left in the cache, which lists no tree, if nothing that is needed seems to be missing."""
    folder = _find_cached(name, revision, patterns, kind, listed=False)
    whole, needed = (all, ("config.json", "*.safetensors", "tokenizer*.json")) if kind == "model" else (any, patterns)
    return folder if folder and whole(any(folder.rglob(pattern)) for pattern in needed) else None


def _announce(name: str, revision: str | None, patterns: Sequence[str], kind: str) -> None:
    """Say what will be downloaded and how large it is. Raises the Hub's refusal, or the error of the connection."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import filter_repo_objects

    try:
        found = _ask(name, revision, kind, timeout=10)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code < 500:
            raise
        return  # a passing fault: the download tries again
    files = list(filter_repo_objects(found.siblings, allow_patterns=list(patterns), key=lambda file: file.rfilename))
    megabytes = sum(file.size or 0 for file in files) / 1e6
    logger.warning("fetching %s %s at %s: %d files, %.1f MB", kind, name, revision, len(files), megabytes)


def _ask(name: str, revision: str | None, kind: str, timeout: float):
    """What the Hub says of a repository, asked once: its client would try for 25 seconds where there is no network."""
    from huggingface_hub import HfApi

    _connect()
    return HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=timeout, files_metadata=True)


def _connect() -> None:
    """Raises OSError if the Hub, or the proxy through which it is reached, accepts no connection."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if not address.hostname:
        raise ValueError(f"HF_ENDPOINT is {constants.ENDPOINT!r}, wanted an address that begins with https://")
    if not proxy_bypass(address.hostname):
        proxies = getproxies()
        proxy = proxies.get(address.scheme) or proxies.get("all", constants.ENDPOINT)
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    place = address.hostname, address.port or (80 if address.scheme == "http" else 443)
    try:
        with ThreadPool(1) as pool:  # the look-up of the name has no limit of its own
            pool.apply_async(socket.create_connection, (place, SECONDS)).get(SECONDS).close()
    except NoAnswer as error:
        raise TimeoutError(f"no answer from {place[0]} within {SECONDS} s") from error


def is_at_hand(name: str, revision: str | None, *, kind: str) -> bool:
    """Whether a repository's files can be had at once: from a folder, the cache, or a Hub that answers in two seconds."""
    from huggingface_hub.errors import HTTPError

    if local_folder(name, "its files"):
        return True
    patterns = LOADED_FILES if kind == "model" else ("train*.parquet", "data/train*.parquet")
    try:
        here = _find_cached(name, revision, patterns, kind) or _find_left(name, revision, patterns, kind)
        return bool(here or _ask(name, revision, kind, SECONDS))
    except (OSError, ValueError, HTTPError):
        return False


def cached_repository(snapshot: Path) -> Path:
    """What to delete so that a `download` that gave `snapshot` fetches again: the Hub's cache of the repository."""
    return snapshot.parent.parent
