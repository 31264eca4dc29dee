"""Looks after the runs of the server: ends dead ones and tells late ones. Its heartbeat is the file services/watch."""

from __future__ import annotations

import sys
import time

from pipelines.notify import notify
from pipelines.services.config import FOLDER

HEARTBEAT = FOLDER / "watch"
BEAT_SECONDS = 15.0


def main() -> None:
    from prefect.client.orchestration import get_client  # these imports take seconds

    from pipelines.flows.liveness import Watch

    watch = Watch(_tell)
    with get_client(sync_client=True) as client:
        while True:
            watch.look(client)
            HEARTBEAT.touch()
            time.sleep(BEAT_SECONDS)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    notify("watch", line)


if __name__ == "__main__":
    main()
