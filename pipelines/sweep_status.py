"""Which cells of a sweep are stale, and the result of a finished sweep on the terminal, without heavy imports."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipelines.cells import Cell, Sweep
from pipelines.cli import CommandError
from pipelines.console import print_table
from pipelines.environment import dvc_command, dvc_environment, shown_path, tracking_environment
from pipelines.record import Record, is_in_store
from pipelines.settings import preset_label
from pipelines.workspace import REPORTS
from qdformer.utils.digests import file_sha256, short_digest
from qdformer.utils.files import write_text

JOBS_VARIABLE = "QDFORMER_SWEEP_JOBS"
"""Environment variable: number of cells that run at once."""
CONDITION = "clean"
FAILED = "failed"
SHOWN = ("miou_dataset", "davis_jf")
"""The metrics on the terminal, each with its difference to the reference row."""
COLUMNS = (
    "row", "condition", "metric", "seeds", "of_seeds", "value", "low", "high",
    "difference", "difference_low", "difference_high", "paper",
)  # fmt: skip
"""Of the table of results, one line for each row, condition and metric; empty where a value is undefined."""


def table_path(plan: Sweep) -> Path:
    """The table of results, relative to the workspace; the other files of results lie beside it."""
    return REPORTS / "sweeps" / f"{plan.grid}.csv"


def stale_cells(plan: Sweep, workspace: Path) -> list[Cell]:
    """The cells that DVC would run, or whose files it does not find."""
    changed = _dvc_status(workspace, plan.pipeline.as_posix())
    stale = {name.rpartition(":")[2].partition("-")[2] for name in changed}
    return [cell for cell in plan.cells if cell.name in stale]


def is_finished(plan: Sweep, workspace: Path) -> bool:
    """Whether every cell is up to date, and all data before it."""
    if not (workspace / table_path(plan)).is_file():
        return False
    return not _dvc_status(workspace, "--with-deps", plan.pipeline.as_posix())


def _dvc_status(workspace: Path, *arguments: str) -> dict[str, object]:
    command = [dvc_command(), "status", "--json", *arguments]
    done = subprocess.run(command, cwd=workspace, env=dvc_environment(), capture_output=True, text=True)
    if done.returncode:
        raise CommandError(f"dvc status failed: {done.stderr.strip().splitlines()[-1:] or 'no message'}")
    return json.loads(done.stdout)


def note_sweep(plan: Sweep, workspace: Path, record: Record) -> None:
    """Keep where the results of the sweep are recorded."""
    write_text(_note_path(plan, workspace), json.dumps(asdict(record), indent=1) + "\n")


def noted_sweep(plan: Sweep, workspace: Path) -> Record | None:
    """Where the results, as they are, are recorded; None if that was not noted or the store no longer holds them."""
    try:
        record = Record(**json.loads(_note_path(plan, workspace).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.identity == sweep_identity(plan, workspace) and is_in_store(record) else None


def sweep_identity(plan: Sweep, workspace: Path) -> str:
    """Names the store and the results."""
    lock = workspace / plan.pipeline.with_suffix(".lock")
    uri = tracking_environment()["MLFLOW_TRACKING_URI"]
    return short_digest([uri, *plan.identity(), file_sha256(lock) if lock.is_file() else ""])


def _note_path(plan: Sweep, workspace: Path) -> Path:
    return workspace / ".cache" / "sweeps" / f"{plan.grid}.json"


def show_sweep(data: str, plan: Sweep, workspace: Path, record: Record) -> None:
    """Print the scores of every row, and where the results are."""
    table = workspace / table_path(plan)
    with open(table, encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["condition"] == CONDITION]
    columns = ["row", "seeds", *(name for metric in SHOWN for name in (metric, f"to {plan.reference}"))]
    print_table(
        f"Sweep {plan.grid} of {preset_label(data)} (data set {plan.settings.download.dataset}): {CONDITION} sound, "
        "mean over seeds [95 % interval over seeds and clips]",
        columns,
        [_shown_row(row, [line for line in lines if line["row"] == row], plan) for row in plan.rows],
    )
    files = " ".join(str(shown_path(table.with_suffix(kind))) for kind in (".md", ".csv", ".tex", ".png"))
    print(f"\nTables and plot: {files}\nMLflow record: {record}\nOpen it with:  make ui")
    print(f"The rows side by side, while that runs: {record.runs_url}")


def _shown_row(row: str, lines: Sequence[dict[str, str]], plan: Sweep) -> list[str]:
    by_metric = {line["metric"]: line for line in lines}
    first = by_metric[SHOWN[0]]
    shown = [row, f"{first['seeds']} of {first['of_seeds']}"]
    for metric in SHOWN:
        line = by_metric[metric]
        shown.append(FAILED if first["seeds"] == "0" else with_interval(line["value"], line["low"], line["high"]))
        change, low, high = (line[f"difference{end}"] for end in ENDS)
        shown.append("" if row == plan.reference else with_interval(change, low, high, "+"))
    return shown


ENDS = ("", "_low", "_high")


def with_interval(value: str, low: str, high: str, sign: str = "") -> str:
    """`0.357 [0.321, 0.390]`; without an interval that is undefined; a dash for a value that is."""
    value, *ends = [f"{float(number):{sign}.3f}" if number else "" for number in (value, low, high)]
    return f"{value} [{', '.join(ends)}]" if all(ends) else value or "–"


def asked_jobs() -> int | None:
    """The value of `JOBS_VARIABLE`, None if it is not set; raises `CommandError` for one that is no count."""
    text = os.environ.get(JOBS_VARIABLE, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise CommandError(f"{JOBS_VARIABLE}={text}: expected the number of cells at once, such as 2")
    return int(text)
