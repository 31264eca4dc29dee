"""Serves the deployments of prefect.yaml: runs them on schedule and at the dashboard's "Run", one at a time.

Flows are served by this process (`prefect.serve`), so that no work pool and no worker of Prefect is needed.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, cast

from pipelines.environment import PROJECT
from qdformer.config.base import SettingsError
from qdformer.config.settings import read_yaml

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

DEPLOYMENTS = PROJECT / "prefect.yaml"
_WAIT_SECONDS = 300.0


def main() -> None:
    from prefect import serve  # this import takes seconds

    _wait_for_server(os.environ["PREFECT_API_URL"])
    os.chdir(PROJECT)
    # a paused schedule would stay paused at the next start
    serve(*read_deployments(), pause_on_shutdown=False, print_starting_message=False, limit=1)


def read_deployments() -> list[RunnerDeployment]:
    """The deployments of prefect.yaml; raises `SettingsError` if the file does not describe them."""
    listed = read_yaml(DEPLOYMENTS).get("deployments")
    if not isinstance(listed, list) or not listed:
        raise SettingsError(f"{DEPLOYMENTS}: deployments: expected a list of at least one")
    return [_deployment(values) for values in listed]


def _deployment(values: dict[str, Any]) -> RunnerDeployment:
    try:
        path, function = values["entrypoint"].split(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), function)
        crons = [schedule["cron"] for schedule in values.get("schedules", ())]
        deployment = flow.to_deployment(
            name=values["name"],
            description=values.get("description"),
            parameters=values.get("parameters", {}),
            cron=crons or None,
        )
    except (KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        name = values.get("name", "without a name") if isinstance(values, dict) else values
        raise SettingsError(f"{DEPLOYMENTS}: deployment {name}: {type(error).__name__}: {error}") from None
    return cast("RunnerDeployment", deployment)


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
    try:
        main()
    except SettingsError as error:
        sys.exit(f"error: {error}")
