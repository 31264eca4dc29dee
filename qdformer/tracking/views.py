"""Addresses of MLflow's dashboard, and the comparison of a sweep as a view that is saved there.

A saved view is a tag of the experiment: its key names it, its value holds the filter, the columns and the charts
as the dashboard's own *Save & share view* writes them (MLflow 3.17). It stands in the list of saved views at the
top of the runs page, and has an address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

VIEW_TAG = "mlflow.sharedViewState."
WORKFLOW = "workflowType=machine_learning"  # without it the dashboard opens its half for language models
SCORES_VIEW = "scores"
ROW_TAG = "row"
"""Tag that holds a run's place in its sweep; the view is sorted by it."""


def local_url(port: int = 5000) -> str:
    """Where `make ui` serves the dashboard."""
    return f"http://127.0.0.1:{port}/"


def run_path(experiment_id: str, run_id: str) -> str:
    """A run's page, below the dashboard's address."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{WORKFLOW}"


def view_path(experiment_id: str, key: str) -> str:
    """The saved view `key`, with its charts."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&compareRunsMode=CHART&{WORKFLOW}"


def runs_path(experiment_id: str) -> str:
    """All runs with the columns of the saved view `SCORES_VIEW`."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={SCORES_VIEW}&{WORKFLOW}"


def compare_path(experiment_id: str, run_ids: Sequence[str]) -> str:
    """MLflow's own page that lays runs side by side: settings, metrics and their plots."""
    runs, experiments = (quote(_json(list(ids))) for ids in (run_ids, [experiment_id]))
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{WORKFLOW}"


def comparison_view(name: str, parent: str, metrics: Sequence[str], created_ms: int) -> str:
    """The tag's value for a view of the runs below `parent`: a bar chart for each metric, a table of what differs.

    Seen as a list, it has the metrics as columns. `created_ms` is in milliseconds since 1970.
    """
    scores, table = "scores", "table"
    bars = [{"type": "BAR", "metricKey": metric, **_card(metric, scores)} for metric in metrics]
    differences = {
        "type": "DIFFERENCE",
        "chartName": "Rows side by side",
        "compareGroups": ["Model metrics", "Parameters"],
        "showChangeFromBaseline": False,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
        **_card(table, table),
    }
    state = {
        "selectedColumns": _columns(metrics),
        "searchFilter": f"tags.mlflow.parentRunId = '{parent}'",
        "orderByKey": f"tags.`{ROW_TAG}`",
        "orderByAsc": True,
        "compareRunCharts": [*bars, differences],
        "compareRunSections": [_section(scores, "Scores", 2, 300), _section(table, "Table", 1, 420)],
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
        "autoRefreshEnabled": False,
    }
    return _envelope(name, state, created_ms)


def scores_view(metrics: Sequence[str], created_ms: int) -> str:
    """The tag's value for a view of all runs with `metrics` as columns."""
    return _envelope("test scores", {"selectedColumns": _columns(metrics)}, created_ms)


def _envelope(name: str, state: Mapping[str, Any], created_ms: int) -> str:
    return _json({"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": _json(state)})


def _columns(metrics: Sequence[str]) -> list[str]:
    return [f"metrics.`{metric}`" for metric in metrics]


def _card(uuid: str, section: str) -> dict[str, Any]:
    return {"uuid": uuid, "metricSectionId": section, "runsCountToCompare": 100, "isGenerated": False, "deleted": False}


def _section(uuid: str, name: str, columns: int, height: int) -> dict[str, Any]:
    return {
        "uuid": uuid,
        "name": name,
        "display": True,
        "isReordered": True,
        "columns": columns,
        "cardHeight": height,
    }


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
