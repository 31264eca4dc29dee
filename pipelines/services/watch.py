"""Looks after the runs of the server: ends dead ones, tells late ones, and starts one when clips have arrived.

Its heartbeat is the file services/watch.
"""

from __future__ import annotations

import os
import sys
import time

from pipelines.notify import notify
from pipelines.services.config import FOLDER
from pipelines.services.health import wait_for

HEARTBEAT = FOLDER / "watch"
BEAT_SECONDS = 15.0


def main() -> None:
    from prefect.client.orchestration import get_client  # these imports take seconds

    from pipelines.flows.liveness import Watch
    from pipelines.services.starter import Starter

    HEARTBEAT.unlink(missing_ok=True)  # of an earlier process
    wait_for(f"{os.environ['PREFECT_API_URL']}/health")  # both start together
    watch, starter = Watch(_tell), Starter(_tell)
    with get_client(sync_client=True) as client:
        while True:
            watch.look(client)
            starter.look(client)
            HEARTBEAT.touch()
            time.sleep(BEAT_SECONDS)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    notify("watch", line)


if __name__ == "__main__":
    main()
