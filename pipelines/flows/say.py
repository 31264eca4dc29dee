"""What a flow tells its user: on the terminal, and in the log of its run, where Prefect's dashboard shows it."""

from __future__ import annotations

from prefect import get_run_logger


def say(line: str) -> None:
    """Print a line and log it with the flow's run."""
    print(line, flush=True)
    get_run_logger().info(line)
