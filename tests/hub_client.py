"""A process that uses the project as somebody with a Hub does, for `test_hub`: see `Client`."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

from lora_helpers.files.places import REPOSITORY

# The sizes that the product insists on are those of the real things; here alone they are set to the small ones.
# With `hurried`, the client's waits between two tries (23 s for one HTTP 500) take no time; it tries as often. It also
# writes to disk every MiB and not every 10 MiB, for the files here are smaller than the real ones.
DRIVER = """
import json, os, sys, traceback
from types import SimpleNamespace
sizes, hurried = json.loads(sys.argv[1]), sys.argv[2] == "hurried"
from lora_helpers import bases, data, quiet
quiet()
import peft, sklearn.metrics, transformers.trainer
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from lora_helpers import inference
from lora_helpers.training import run, trainer
from lora_helpers.__main__ import main
data.HUB_ROWS = sizes["rows"]
bases.PARAMETERS.update(sizes["parameters"])
if hurried:
    file_download.time = _http.time = SimpleNamespace(sleep=lambda seconds: None)
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 20
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            status = exec(order["code"]) or 0 if "code" in order else main(order["arguments"])
        except BaseException:
            traceback.print_exc()
            status = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


BAR = re.compile(r"\d+/\d+ \[|^fetching ")  # a progress bar, or the line that says what is fetched


class Client:
    """A process with the real client libraries, a cache of its own, and no folder that stands in for the Hub.

    It runs commands of `python -m lora_helpers` one after the other, each in a fork of a process that has only
    imported: nothing but the cache passes from one to the next, and the imports are paid once.
    """

    def __init__(
        self, folder: Path, endpoint: str, *, rows: dict, parameters: dict, hurried: bool = False, **environment: str
    ):
        self.folder, self.cache, self.numbers, self.announced = folder, folder / "hf-home", count(), []
        folder.mkdir(exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        hub = {"HF_HOME": str(self.cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
        sizes = json.dumps({"rows": rows, "parameters": parameters})
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, sizes, "hurried" if hurried else ""],
            cwd=REPOSITORY,
            env=kept | hub | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, seconds: float = 120) -> tuple[int, list[str]]:
        """The command's exit status and the lines that it wrote, progress bars apart; `announced` has what was fetched."""
        return self._order({"arguments": [str(a) for a in arguments]}, seconds)

    def execute(self, code: str, seconds: float = 120) -> tuple[int, list[str]]:
        """Run Python there: 0, or 70 after a traceback, and the lines that it wrote."""
        return self._order({"code": code}, seconds)

    def forget(self) -> None:
        """Empty the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def _order(self, order: dict, seconds: float) -> tuple[int, list[str]]:
        log = self.folder / f"log-{next(self.numbers)}"
        watch = threading.Timer(seconds, self.process.kill)  # "still ends" is part of what is tested
        watch.start()
        print(json.dumps(order | {"log": str(log)}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        watch.cancel()
        assert answer, f"no end within {seconds} s: {order}"
        lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8"))
        self.announced = [line for line in lines if line.startswith("fetching ")]
        return int(answer), [line for line in lines if line.strip() and not BAR.search(line)]
