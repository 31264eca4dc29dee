"""Evaluates the champion again, in a folder that `pipelines.promotion` has prepared: its models with the present data.

If its VGGish is another one, the features are computed with it first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cli import stage_main
from pipelines.workspace import CHECKPOINT, REPORTS

if TYPE_CHECKING:
    from qdformer.config.settings import Settings


def main(settings: Settings) -> None:
    from pipelines.stages.evaluate import evaluate_checkpoint  # this import takes seconds
    from pipelines.stages.features import features

    folder = Path.cwd()
    for condition in settings.mix.conditions:
        if not (folder / "data" / "features" / f"{condition}.h5").is_file():
            features(settings, condition, folder)
    evaluate_checkpoint(settings, folder, CHECKPOINT, REPORTS)


if __name__ == "__main__":
    stage_main(main)
