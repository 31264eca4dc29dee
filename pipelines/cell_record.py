"""What connects the process of a cell with the sweep that started it: the MLflow run of the sweep, and its end."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.workspace import provenance

if TYPE_CHECKING:
    from qdformer.config.settings import Settings

PARENT_VARIABLE = "QDFORMER_SWEEP_RUN"
"""Environment variable of the process of a cell: the id of the MLflow run of its sweep."""
POSITION_VARIABLE = "QDFORMER_SWEEP_POSITION"
"""Environment variable of the process of a cell: the position of its row in the grid, from 1."""


@dataclass(frozen=True)
class CellRecord:
    """How the run of a cell is recorded: its name, its tags and its parent, None outside of `make sweep`."""

    name: str
    tags: dict[str, str]
    parent: str | None


def cell_record(cell: Path, settings: Settings, parent: str | None = None, position: int | None = None) -> CellRecord:
    """The record of the cell in the folder `cell`; `parent` and `position` are by default those of the environment."""
    grid, row = cell.parents[1].name, cell.parent.name
    origin = provenance(cell.parents[3])
    parent = parent or os.environ.get(PARENT_VARIABLE)
    number = position or os.environ.get(POSITION_VARIABLE)
    tags = {**origin, "sweep": grid, "row": f"{number} {row}" if number else row, "seed": str(settings.train.seed)}
    from qdformer import tracking  # its import takes seconds

    return CellRecord(tracking.run_name(settings, origin, f"{grid} {row}"), tags, parent)


def end_with_parent() -> None:
    """End this process, and all of its group, when the sweep that started it has ended, even by SIGKILL.

    The sweep holds the other end of standard input. A cell that was started by plain `dvc repro` is left alone.
    """
    if PARENT_VARIABLE not in os.environ:
        return

    def wait() -> None:
        while os.read(0, 1024):  # not sys.stdin, whose lock a thread must not hold when Python ends
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
