"""Stage `train` of a cell of a sweep, in the cell's folder: -> models/qdformer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cell_record import cell_record, end_with_parent
from pipelines.cli import stage_main
from pipelines.stages.train import train
from pipelines.workspace import CHECKPOINT
from qdformer import tracking

if TYPE_CHECKING:
    from qdformer.config.settings import Settings


def main(settings: Settings) -> None:
    cell = Path.cwd()
    record = cell_record(cell, settings)
    dataset = cell / "data" / "dataset"
    with tracking.training_run(settings, record.tags, dataset, record.name, record.parent) as run_id:
        train(settings, cell, CHECKPOINT.parent, run_id)
        tracking.finish_training(run_id, CHECKPOINT)


if __name__ == "__main__":
    end_with_parent()
    stage_main(main)
