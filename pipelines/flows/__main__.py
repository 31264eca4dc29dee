"""Run a flow: `python -m pipelines.flows {reproduce,train,data,evaluate,sweep,retrain,schedule} [--data PRESET]`.

Settings and the workspace's lock are checked before Prefect and MLflow are imported, which takes seconds: wrong
settings and a busy workspace are refused at once. If nothing has changed, `reproduce` and `retrain` end without
Prefect.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from pipelines.arrivals import has_arrivals
from pipelines.cells import plan_sweep, write_sweep
from pipelines.cli import command_main, preset_parser
from pipelines.published import checkpoint_file, preset_of
from pipelines.record import current_verdict, noted_record, record_results, require_tracking_store
from pipelines.results import print_results
from pipelines.settings import preset_settings
from pipelines.sweep_status import asked_jobs, is_finished, noted_sweep, show_sweep
from pipelines.variant import open_variant
from pipelines.workspace import is_up_to_date, locked_workspace, workspace_lock
from qdformer.config.base import SettingsError
from qdformer.config.overrides import split_overrides
from qdformer.utils.download import is_url
from qdformer.utils.errors import InputError


def reproduce(data: str) -> None:
    """Bring the preset's pipeline up to date and show its test metrics."""
    _check_first(data)
    with locked_workspace(data) as (settings, workspace, _):
        if is_up_to_date(workspace):
            record = noted_record(settings, workspace) or record_results(settings, workspace)
            print_results(data, settings, workspace, record, {})
            return
    from pipelines.flows.reproduce import reproduce as flow

    _run_with_prefect(lambda: flow(data))


def retrain(data: str) -> None:
    """Retrain if anything changed, and register the result."""
    _check_first(data)
    with locked_workspace(data) as (settings, workspace, _):
        if (
            not has_arrivals(workspace)
            and is_up_to_date(workspace)
            and (verdict := current_verdict(settings, workspace, data))
        ):
            print(f"Nothing changed: {verdict}")
            return
    from pipelines.flows.retrain import retrain as flow

    _run_with_prefect(lambda: flow(data))


def train(data: str, overrides: str) -> None:
    """Train and evaluate with some settings changed, in a workspace of its own."""
    changes = tuple(_overrides(overrides))
    settings, workspace = open_variant(data, changes)
    require_tracking_store()
    with workspace_lock(workspace):
        if is_up_to_date(workspace):
            record = noted_record(settings, workspace) or record_results(settings, workspace)
            print_results(workspace.name, settings, workspace, record, {})
            return
    from pipelines.flows.reproduce import reproduce as flow

    _run_with_prefect(lambda: flow(data, changes))


def sweep(data: str, grid: str, seeds: str, epochs: str, overrides: str) -> None:
    """Train, evaluate and compare the rows of a grid of ablations."""
    changes = _overrides(overrides) + ([f"epochs={epochs}"] if epochs else [])
    asked_jobs()
    count = _count("SEEDS", seeds)
    plan = plan_sweep(preset_settings(data), grid, count, changes)
    require_tracking_store()
    with locked_workspace(data) as (_, workspace, _):
        write_sweep(plan, workspace)
        if is_finished(plan, workspace) and (record := noted_sweep(plan, workspace)):
            print(f"{len(plan.cells)} cells, all of them finished before")
            show_sweep(data, plan, workspace, record)
            return
    from pipelines.flows.sweep import sweep as flow

    _run_with_prefect(lambda: flow(data, grid, count, changes))


def schedule(data: str, cron: str, every: float | None) -> None:
    """Serve `retrain` on a schedule."""
    preset_settings(data)
    from pipelines.flows.schedule import serve_retrain

    serve_retrain(data, cron, every)


def import_dataset(data: str, source: str) -> None:
    """Import a published data set."""
    if not data:
        raise InputError("DATASET is missing; expected s4, ms3 or avss, as in: make data DATASET=s4 SOURCE=s4.zip")
    sources = parse_source(source)
    _check(data)
    from pipelines.flows.data import import_dataset as flow

    _run_with_prefect(lambda: flow(data, sources))


def evaluate(data: str, method: str, checkpoint: str) -> None:
    """Evaluate a published checkpoint of another public code."""
    path, preset = checkpoint_file(checkpoint), preset_of(data, method)
    _check(preset)
    from pipelines.flows.evaluate import evaluate as flow

    _run_with_prefect(lambda: flow(preset, path))


def parse_source(text: str) -> list[str]:
    """Split paths and URLs at blanks, with quotes as in a shell; paths become absolute."""
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise InputError(f"SOURCE={text}: {error}") from None
    return [part if is_url(part) else str(Path(part).expanduser().resolve()) for part in parts]


def _overrides(text: str) -> list[str]:
    try:
        return split_overrides(text)
    except ValueError as error:
        raise SettingsError(f"SET={text}: {error}") from None


def _check_first(data: str) -> None:
    """Raise `SettingsError` or `StoreError` before anything is started or written."""
    preset_settings(data)
    require_tracking_store()


def _check(data: str) -> None:
    """Raise `SettingsError` or `BusyError` before anything is started."""
    with locked_workspace(data):
        pass


def _run_with_prefect(run: Callable[[], object]) -> None:
    from pipelines.flows.server import prefect_api

    with prefect_api(meanwhile=_import_tracking):
        run()


def _import_tracking() -> None:
    import qdformer.tracking  # noqa: F401


def _count(name: str, text: str) -> int | None:
    """The whole number of a make variable, None if it is empty."""
    if text and not text.isdecimal():
        raise SettingsError(f"{name}={text}: expected a whole number")
    return int(text) if text else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.flows", description=__doc__)
    flows = parser.add_subparsers(required=True, metavar="FLOW")
    options = preset_parser(add_help=False)
    for run in (reproduce, retrain):
        flows.add_parser(run.__name__, parents=[options], help=run.__doc__).set_defaults(run=run)
    single = flows.add_parser("train", parents=[options], help=train.__doc__)
    single.add_argument("--set", dest="overrides", default="", help="the changed settings, KEY=VALUE ...")
    single.set_defaults(run=train)
    grids = flows.add_parser("sweep", parents=[options], help=sweep.__doc__)
    grids.add_argument("--grid", default="table2", help="a grid of sweep.grids (%(default)s)")
    grids.add_argument("--seeds", default="", help="trainings of each row (default: sweep.seeds)")
    grids.add_argument("--epochs", default="", help="of every training (default: train.epochs)")
    grids.add_argument("--set", dest="overrides", default="", help="settings of all rows, KEY=VALUE ...")
    grids.set_defaults(run=sweep)
    data = flows.add_parser("data", parents=[options], help=import_dataset.__doc__)
    data.add_argument("--source", default="", help="folders, archives or URLs that hold it (default: as saved)")
    data.set_defaults(run=import_dataset)
    published = flows.add_parser("evaluate", parents=[options], help=evaluate.__doc__)
    published.add_argument("--method", default="", help="the method; the preset is then DATA-METHOD")
    published.add_argument("--checkpoint", default="", help="the published file")
    published.set_defaults(run=evaluate)
    timer = flows.add_parser("schedule", parents=[options], help=schedule.__doc__)
    timer.add_argument("--cron", default="0 3 * * *", help="minute hour day month weekday, in UTC (%(default)s)")
    timer.add_argument("--every", type=float, metavar="SECONDS", help="retrain at this interval instead")
    timer.set_defaults(run=schedule)
    return parser


if __name__ == "__main__":
    given = vars(_parser().parse_args())
    chosen = given.pop("run")
    command_main(lambda: chosen(**given))
