"""Stage `evaluate` of a cell of a sweep, in the cell's folder: models/qdformer -> reports."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cell_record import cell_record, end_with_parent
from pipelines.cli import stage_main
from pipelines.stages.evaluate import evaluate_checkpoint
from pipelines.workspace import CHECKPOINT, REPORTS
from qdformer import tracking

if TYPE_CHECKING:
    from qdformer.config.settings import Settings


def main(settings: Settings) -> None:
    cell, started = Path.cwd(), time.monotonic()
    evaluate_checkpoint(settings, cell, CHECKPOINT, REPORTS, settings.sweep.conditions)
    seconds = time.monotonic() - started
    record = cell_record(cell, settings)
    dataset = cell / "data" / "dataset"
    with tracking.warn_if_unreachable("the evaluation is recorded when the sweep ends"):
        tracking.log_evaluation(
            REPORTS,
            settings,
            record.tags,
            CHECKPOINT,
            dataset,
            name=record.name,
            parent=record.parent,
            seconds=seconds,
        )


if __name__ == "__main__":
    end_with_parent()
    stage_main(main)
