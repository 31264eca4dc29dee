"""A training through Ray in a process of its own (`tests.helpers.launch`), which a test can watch and kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.helpers import PROJECT

SLOW = float(os.environ.get("QDFORMER_TEST_PATIENCE", "1"))
"""Factor by which the time bounds are raised on a busy machine."""


class Run:
    """A training in a process of its own."""

    def __init__(
        self,
        root: Path,
        epochs: int,
        workers: int = 2,
        settings: Mapping[str, object] = MappingProxyType({}),
        python: str = sys.executable,
        **environment: str,
    ) -> None:
        command = [python, "-m", "tests.helpers.launch", str(root), str(epochs), json.dumps(dict(settings))]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY", "QDFORMER"))}
        variables = {"PYTHONPATH": str(PROJECT), "QDFORMER_WORKERS": str(workers), "QDFORMER_CPUS_PER_WORKER": "1"}
        self.log = root / "log"
        self.started = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=PROJECT, env=kept | variables | environment, stdout=log, stderr=log, start_new_session=True
            )

    def end(self, limit: float) -> int:
        """The exit code; fails after `limit` seconds."""
        try:
            return self.process.wait(limit * SLOW)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"not ended after {limit * SLOW:.0f} s:\n{self.text}") from None

    def wait_for(self, text: str, limit: float) -> None:
        """Wait until the output holds `text`."""
        deadline = time.monotonic() + limit * SLOW
        while text not in self.text:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text
            time.sleep(0.2)

    def workers(self) -> list[psutil.Process]:
        """The processes of the training's workers, among all that this run has started."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if "RayTrainWorker" in " ".join(process.cmdline())]

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def model(self) -> str:
        found = re.search(r"model ([0-9a-f]{64})", self.text)
        assert found, self.text
        return found[1]


def kill_session(run: Run) -> None:
    """SIGKILL the command and all that it has started, as the end of a machine does."""
    below = psutil.Process(run.process.pid).children(recursive=True)
    for process in (psutil.Process(run.process.pid), *below):
        if process.is_running():
            process.kill()
    run.process.wait()
