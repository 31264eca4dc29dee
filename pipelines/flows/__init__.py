"""Prefect flows: when the pipeline runs, with retries, time limits, one at a time, and a schedule.

Prefect's own state is kept in the project, `.prefect/`. On the terminal the flows say themselves
what the user needs to know; Prefect's log lines go to its API, where its dashboard shows them.
"""

from __future__ import annotations

import os

from pipelines.workspace import PROJECT

os.environ.setdefault("PREFECT_HOME", str(PROJECT / ".prefect"))
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
