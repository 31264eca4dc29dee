"""Prefect flows: when the pipeline runs, its retries, time limits and schedule, and one run at a time.

Prefect keeps its state in the project, in `.prefect/`. The flows print what the user needs to know; Prefect's log lines
go to its API only, where its dashboard shows them.
"""

from __future__ import annotations

import os

from pipelines.environment import PROJECT

os.environ.setdefault("PREFECT_HOME", str(PROJECT / ".prefect"))
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
