"""Serve the flow `retrain` on a schedule, with Prefect's dashboard on the loopback interface, until Ctrl-C."""

from __future__ import annotations

import sys
from typing import cast

from prefect import serve
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment

from pipelines.flows.liveness import watching
from pipelines.flows.retrain import retrain
from pipelines.flows.server import schedule_server
from qdformer.utils.errors import InputError


def serve_retrain(data: str, cron: str, every: float | None) -> None:
    """Run `retrain` on the preset at the times of `cron` (UTC), or every `every` seconds.

    The environment variable PREFECT_SERVER_API_PORT sets the dashboard's port (default 4200). Raises `InputError` for a
    schedule that can never run.
    """
    if every is not None and every <= 0:
        raise InputError(f"--every {every:g}: not an interval; expected more than 0 seconds")
    try:
        CronSchedule(cron=cron)
    except ValueError:
        expected = "expected minute, hour, day, month and weekday, such as 0 3 * * *"
        raise InputError(f"CRON={cron}: not a cron expression; {expected}") from None
    deployment = cast(
        RunnerDeployment,
        retrain.to_deployment(
            name=data or "default",
            parameters={"data": data},
            cron=None if every else cron,
            interval=every,
            # without concurrency_limit: a slot on the server would stay taken after a kill, and no run would start
        ),
    )
    with schedule_server() as dashboard, watching(lambda line: print(line, file=sys.stderr, flush=True)):
        when = f"every {every:g} s" if every else f"at {cron!r} (UTC)"
        print(f"Retraining of {data or 'the default settings'} {when}")
        print(f"Dashboard: {dashboard}  (Ctrl-C stops both)", flush=True)
        # a paused schedule would stay paused at the next start
        serve(deployment, pause_on_shutdown=False, print_starting_message=False, limit=1)
