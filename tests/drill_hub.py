"""The drill of the full size: roberta-base's true shape, downloaded, trained for 20 steps and reloaded, without the Hub.

`make drill` calls it. It serves 500 MB of random weights from this machine, takes some minutes, and needs 2 GB of disk
and memory, AG News and roberta-base's tokenizer.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from hub_client import Client
from hub_repositories import build_repositories
from hub_server import HubServer

from lora_helpers.bases import PARAMETERS
from lora_helpers.records import read_record

ROWS = {"train": 2000, "test": 400}  # of AG News; every other size is the true one
FIELDS = {"max-steps": 20, "eval-steps": 20, "save-steps": 20, "validation-size": 64, "batch-size": 2}
TRAINABLE = 630_532  # LoRA: 12 * (2 * 768 + 768 * 2); head: 768 * 768 + 768 + 768 * 4 + 4
SECONDS = 1800  # for one command, on a slow machine


def run_full_size(roberta_base: Path, ag_news: Path) -> dict:
    """`original` from the server, `roberta-base` from the cache it filled, each checkpoint reloaded in a process of its own.

    Returns:
        Files and bytes that the server gave, seconds of each profile, and the counts that came out.

    Raises:
        RuntimeError: a command failed, or a count is not the promised one; the message is what was found.
    """
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        repositories = build_repositories(root / "hub", roberta_base, ag_news, shape={}, rows=ROWS)
        result = {"profiles": {}}
        with HubServer(repositories) as hub:
            sizes = {"rows": ROWS, "parameters": PARAMETERS}
            client = Client(root / "client", hub.endpoint, **sizes, OMP_NUM_THREADS=str(os.cpu_count()))
            try:
                for profile in ("original", "roberta-base"):
                    result["profiles"][profile] = _train_and_reload(client, root / profile, profile)
            finally:
                client.close()
        served = [request for request in hub.log if request.bytes and "/api/" not in request.path]
        return {"files": len(served), "bytes": sum(request.bytes for request in served)} | result


def _train_and_reload(client: Client, run_dir: Path, profile: str) -> dict:
    flags = [part for name, value in FIELDS.items() for part in (f"--{name}", value)]
    began = time.monotonic()
    _require_success(client.run("train", profile, "--output-dir", run_dir, *flags, seconds=SECONDS))
    trained = time.monotonic()
    checkpoint = run_dir / "checkpoint-20"
    _require_success(client.run("predict", checkpoint, "Central bank raises rates", seconds=SECONDS))
    reloaded = time.monotonic()
    record = read_record(run_dir)
    if record["parameters"]["trainable"] != TRAINABLE:
        raise RuntimeError(f"{profile}: {record['parameters']['trainable']} trainable parameters, wanted {TRAINABLE}")
    return {
        "seconds": round(trained - began, 1),
        "reload_seconds": round(reloaded - trained, 1),
        "trainable": record["parameters"]["trainable"],
        "total": record["parameters"]["total"],
        "base_sha256": record["base"]["sha256"],
    }


def _require_success(outcome: tuple[int, list[str]]) -> None:
    status, lines = outcome
    if status:
        raise RuntimeError(f"exit status {status}: " + "\n".join(lines))
