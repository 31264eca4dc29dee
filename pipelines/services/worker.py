"""Prefect's worker: waits for the server, deploys prefect.yaml, and then runs one flow at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

from pipelines.environment import PROJECT
from pipelines.services.config import POOL

_WAIT_SECONDS = 120.0


def main() -> None:
    _wait_for_server(os.environ["PREFECT_API_URL"])
    prefect = [sys.executable, "-m", "prefect"]
    subprocess.run([*prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"], check=True, cwd=PROJECT)
    subprocess.run([*prefect, "--no-prompt", "deploy", "--all"], check=True, cwd=PROJECT)
    os.chdir(PROJECT)
    os.execv(sys.executable, [*prefect, "worker", "start", "--pool", POOL, "--limit", "1", "--name", POOL])


def _wait_for_server(url: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    main()
