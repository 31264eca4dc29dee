"""The dashboard: its addresses, and views that are saved there.

A saved view is a tag of the experiment: its key names the view, its value holds the filter, the columns and the charts
as the dashboard's own *Save & share view* writes them (MLflow 3.17). The dashboard lists saved views at the top of the
runs page, and each has an address.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlsplit

from mlflow.entities import Experiment
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from qdformer.evaluation.result import SCORES
from qdformer.tracking.store import Store, TrackingError, tracking_uri

VIEW_TAG = "mlflow.sharedViewState."
WORKFLOW = "workflowType=machine_learning"  # without it the dashboard opens its pages for language models
SCORES_VIEW = "scores"
ROW_TAG = "row"
"""The tag with the row of a run in its sweep, such as "1 baseline", by which the view of the sweep is grouped."""
COLOR_TAG = "mlflow.runColor"
"""The tag from which the dashboard takes the color of a run."""


def save_comparison(
    parent: str, metrics: Sequence[str], name: str, table: str, colors: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Save a view that compares the rows of the sweep `parent`; return its path below the dashboard's address.

    The runs below `parent` are grouped by their tag `row`, which begins with the position of the row, so that the view
    shows the mean over the seeds of each row in the order of the sweep. `colors` maps that tag to the color (#rrggbb)
    of the row's runs. The description of the parent run becomes `table`, in Markdown, with links to the view and to
    MLflow's own page of comparison. An earlier view of the same parent is replaced. Raises `TrackingError` if no run
    below `parent` has the tag.
    """
    store = Store()
    experiment_id = store.get_run(parent).info.experiment_id
    children = store.search_runs(experiment_id, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'")
    of_rows = [run for run in children if ROW_TAG in run.data.tags]
    if not of_rows:
        raise TrackingError(f"run {parent}: no run with the tag {ROW_TAG} below it; expected those of the sweep's rows")
    of_rows.sort(key=lambda run: (run.data.tags[ROW_TAG], run.info.run_name))
    for run in of_rows:
        if color := colors.get(run.data.tags[ROW_TAG]):
            store.set_tags(run.info.run_id, {COLOR_TAG: color})
    view = comparison_view(name, parent, metrics, _now_ms())
    store.set_experiment_tag(experiment_id, VIEW_TAG + parent, view)
    path = view_path(experiment_id, parent)
    compared = compare_path(experiment_id, [run.info.run_id for run in of_rows])
    links = f"[Charts and table of the rows]({path}) · [MLflow's comparison of the runs]({compared})"
    store.set_tags(parent, {MLFLOW_RUN_NOTE: f"{links}\n\n{table}"})
    return path


def save_scores_view(store: Store, experiment: str) -> None:
    """Save a view of all runs with the scores on clean sound as columns, unless there is one already."""
    found = _get_experiment(store, experiment)
    key = VIEW_TAG + SCORES_VIEW
    if key not in found.tags:
        view = scores_view([f"clean/{score}" for score in SCORES], _now_ms())
        store.set_experiment_tag(found.experiment_id, key, view)


def runs_url(experiment: str) -> str:
    """The address of the table of an experiment's runs and their scores, on the dashboard of this store."""
    return dashboard_url() + runs_path(_get_experiment(Store(), experiment).experiment_id)


def dashboard_url() -> str:
    """The address of the dashboard of this store: the server's, or the one that `make ui` serves."""
    uri = tracking_uri()
    return f"{uri.rstrip('/')}/" if urlsplit(uri).scheme in ("http", "https") else local_url()


def local_url(port: int = 5000) -> str:
    """The address at which `make ui` serves the dashboard."""
    return f"http://127.0.0.1:{port}/"


def run_path(experiment_id: str, run_id: str) -> str:
    """The page of a run, below the dashboard's address."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{WORKFLOW}"


def view_path(experiment_id: str, key: str) -> str:
    """The saved view `key` with its charts, below the dashboard's address."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&compareRunsMode=CHART&{WORKFLOW}"


def runs_path(experiment_id: str) -> str:
    """The table of all runs with the columns of the saved view `SCORES_VIEW`, below the dashboard's address."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={SCORES_VIEW}&{WORKFLOW}"


def compare_path(experiment_id: str, run_ids: Sequence[str]) -> str:
    """MLflow's page that shows settings, metrics and plots of runs side by side, below the dashboard's address."""
    runs, experiments = (quote(_json(list(ids))) for ids in (run_ids, [experiment_id]))
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{WORKFLOW}"


def comparison_view(name: str, parent: str, metrics: Sequence[str], created_ms: int) -> str:
    """The tag's value for a view of the runs below `parent`: a bar chart of each metric, with the mean of each row.

    The metrics are the columns of its list of runs. `created_ms` is in milliseconds since 1970. MLflow's table of
    differences stays empty for grouped runs; the page of `compare_path` has their numbers.
    """
    scores = "scores"
    bars = [{"type": "BAR", "metricKey": metric, **_card(metric, scores)} for metric in metrics]
    state = {
        "selectedColumns": _columns(metrics),
        "searchFilter": f"tags.mlflow.parentRunId = '{parent}'",
        "orderByKey": f"tags.`{ROW_TAG}`",
        "orderByAsc": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": ROW_TAG}]},
        "useGroupedValuesInCharts": True,
        "compareRunCharts": bars,
        "compareRunSections": [_section(scores, "Scores", 2, 300)],
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
        "autoRefreshEnabled": False,
    }
    return _envelope(name, state, created_ms)


def scores_view(metrics: Sequence[str], created_ms: int) -> str:
    """The tag's value for a view of all runs with `metrics` as columns."""
    return _envelope("test scores", {"selectedColumns": _columns(metrics)}, created_ms)


def _get_experiment(store: Store, name: str) -> Experiment:
    found = store.find_experiment(name)
    if found is None:
        raise TrackingError(f"{store.uri}: no experiment {name}; expected one with at least one run")
    return found


def _now_ms() -> int:
    return int(time.time() * 1000)


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
