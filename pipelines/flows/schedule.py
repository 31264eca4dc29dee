"""Serve the flow `retrain` on a schedule, with Prefect's dashboard on the loopback interface, until Ctrl-C.

The dashboard's port is PREFECT_SERVER_API_PORT (default 4200). Times of the schedule are UTC.
"""

from __future__ import annotations

from prefect import serve

from pipelines.flows.retrain import retrain
from pipelines.flows.server import schedule_server
from pipelines.flows.terminal import arguments, run_command


def serve_retrain(data: str, cron: str | None, every: float | None) -> None:
    """Run `retrain` on the preset at the times of `cron`, or every so many seconds."""
    deployment = retrain.to_deployment(
        name=data or "default",
        parameters={"data": data},
        cron=None if every else cron,
        interval=every,
        concurrency_limit=1,
    )
    with schedule_server() as dashboard:
        print(f"Retraining {data or 'the default'} {f'every {every:g} s' if every else f'at {cron!r} (UTC)'}")
        print(f"Dashboard: {dashboard}  (Ctrl-C stops both)", flush=True)
        # a paused schedule would stay paused at the next start
        serve(deployment, pause_on_shutdown=False, print_starting_message=False, limit=1)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--cron", default="0 3 * * *", help="minute hour day month weekday (%(default)s)")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="retrain at this interval instead")
    given = parser.parse_args()
    run_command(lambda: serve_retrain(given.data, given.cron, given.every), given.data)
