"""Serves the deployments of prefect.yaml: runs them on schedule and at the dashboard's "Run", one at a time.

Flows are served by this process (`prefect.serve`), so that no work pool and no worker of Prefect is needed.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from pipelines.environment import PROJECT
from pipelines.services.health import wait_for
from qdformer.config.base import SettingsError
from qdformer.config.settings import read_yaml

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Schedule

DEPLOYMENTS = PROJECT / "prefect.yaml"


def main() -> None:
    from prefect import serve  # this import takes seconds

    wait_for(f"{os.environ['PREFECT_API_URL']}/health")
    os.chdir(PROJECT)
    # a paused schedule would stay paused at the next start
    serve(*read_deployments(), pause_on_shutdown=False, print_starting_message=False, limit=1)


def read_deployments() -> list[RunnerDeployment]:
    """The deployments of prefect.yaml; raises `SettingsError` if the file does not describe them."""
    listed = read_yaml(DEPLOYMENTS).get("deployments")
    if not isinstance(listed, list) or not listed:
        raise SettingsError(f"{DEPLOYMENTS}: deployments: expected a list of at least one")
    return [_deployment(values) for values in listed]


def _schedule(values: dict[str, Any]) -> Schedule:
    """One entry of `schedules`: `cron`, or `interval` in seconds; in UTC, as Prefect's own reading of the file."""
    from prefect.schedules import Cron, Interval  # this import takes seconds

    match values:
        case {"cron": str(cron)}:
            return Cron(cron)
        case {"interval": int(seconds) | float(seconds)} if seconds > 0:
            return Interval(seconds)
    raise ValueError(f"{values}: not a schedule; expected cron: '0 3 * * *' or interval: SECONDS")


def _deployment(values: dict[str, Any]) -> RunnerDeployment:
    try:
        path, function = values["entrypoint"].split(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
        schedules = [_schedule(schedule) for schedule in values.get("schedules", ())]
        deployment = flow.to_deployment(
            name=values["name"],
            description=values.get("description"),
            parameters=values.get("parameters", {}),
            schedules=schedules or None,
        )
    except (KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        name = values.get("name", "without a name") if isinstance(values, dict) else values
        raise SettingsError(f"{DEPLOYMENTS}: deployment {name}: {type(error).__name__}: {error}") from None
    return cast("RunnerDeployment", deployment)


if __name__ == "__main__":
    try:
        main()
    except SettingsError as error:
        sys.exit(f"error: {error}")
