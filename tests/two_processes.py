"""Two processes under torch's launcher, on the CPU (gloo): how `test_processes` starts them; as a script, a command
in each of them that keeps which rows it trained on.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from lora_helpers.__main__ import main
from lora_helpers.files.places import REPOSITORY

SECONDS = 300  # for a launch that takes ten where the machine has nothing else to do


class Launch:
    """Two processes under torch's launcher; what each of them wrote, by rank."""

    def __init__(self, log_dir, *program):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}")
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self.log_dir = log_dir
        self.process = subprocess.Popen(
            [sys.executable, *launcher, "--master-addr=127.0.0.1", "--redirects=3", f"--log-dir={log_dir}", *program],
            env=environment, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def finish(self, seconds=SECONDS) -> int:
        """The launcher's exit status; what still runs after `seconds` is ended, and the test with it."""
        try:
            return self.process.wait(timeout=seconds)
        finally:
            self.process.terminate()  # the launcher ends its processes, which are in no group with it
            self.process.wait(timeout=60)

    def written(self, rank, stream="stderr") -> str:
        """All that the process of this rank wrote."""
        (path,) = self.log_dir.glob(f"*/attempt_0/{rank}/{stream}.log")
        return path.read_bytes().decode()  # a bar's carriage returns as they are


@contextlib.contextmanager
def rows_written_to(path):
    """The rows of every training step that this process computes on, as texts of token ids, one list a step."""
    from transformers import Trainer

    steps, stock = [], Trainer.training_step

    def training_step(self, model, inputs, *more):
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        steps.append([" ".join(map(str, row[real].tolist())) for row, real in zip(ids, mask, strict=True)])
        return stock(self, model, inputs, *more)

    Trainer.training_step = training_step
    try:
        yield
    finally:
        Trainer.training_step = stock
        path.write_text(json.dumps(steps))


if __name__ == "__main__":
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    with rows_written_to(folder / f"rows-{os.environ['RANK']}.json"):
        sys.exit(main(arguments))
