"""Checkpoints of other public codes: converted, and evaluated by this project's own protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.console import print_table
from pipelines.environment import shown_path
from pipelines.results import metric_rows, read_metrics, results_title
from pipelines.settings import preset_settings
from pipelines.workspace import CHECKPOINT
from qdformer.config.base import SettingsError
from qdformer.utils.errors import InputError
from qdformer.utils.files import new_folder

if TYPE_CHECKING:
    from qdformer.config.settings import Settings

FOLDER = "published"
"""The folder in a workspace that holds a folder of results for each checkpoint."""


def preset_of(data: str, method: str) -> str:
    """The preset with the recipe of `method` for the data set `data`: DATA-METHOD, or `data` itself without a method.

    Raises `SettingsError` if there is no such preset.
    """
    name = f"{data}-{method}" if data and method else data or method
    settings = preset_settings(name)
    if method and settings.train.model.name != method:
        raise SettingsError(f"METHOD={method}: the preset {name} is of the method {settings.train.model.name}")
    return name


def checkpoint_file(text: str) -> Path:
    """The file that CHECKPOINT names; raises `InputError`."""
    path = Path(text).expanduser().resolve()
    if not text or not path.is_file():
        raise InputError(
            f"CHECKPOINT={text}: no such file; expected a checkpoint of a method's public code, as in: "
            "make evaluate CHECKPOINT=MS3_best.pth METHOD=avsegformer DATA=ms3"
        )
    return path


def evaluate_published(preset: str, settings: Settings, workspace: Path, checkpoint: Path) -> Path:
    """Evaluate a public code's checkpoint on the workspace's data, which has its features; print the test metrics.

    All conditions and controls are evaluated but `untrained`, for which the backbone's own weights would be needed.
    Returns the folder with the results and the converted model. Raises `BackboneError` if the checkpoint does not fit
    the preset.
    """
    from pipelines.stages.evaluate import evaluate_checkpoint  # these imports take seconds
    from qdformer.data.manifest import read_classes, task_classes
    from qdformer.models.published import load_published
    from qdformer.training.checkpoint import save_model

    classes = task_classes(read_classes(workspace / "data" / "dataset"), settings.train.task)
    model = load_published(str(checkpoint), settings.train.model, len(classes))
    names = [name for name in (*settings.mix.conditions, *settings.evaluate.controls) if name != "untrained"]
    folder = workspace / FOLDER / checkpoint.stem
    with new_folder(folder) as partial:
        save_model(partial / CHECKPOINT.name, model, classes, settings.train.model)
        evaluate_checkpoint(settings, workspace, partial / CHECKPOINT.name, partial, names)
    print_table(f"{checkpoint.name}. {results_title(preset, settings)}", *metric_rows(read_metrics(folder, names)))
    print(f"Model, metrics and figures: {shown_path(folder)}")
    return folder
