"""The presets of this project: `pipelines/presets/NAME.yaml` over `params.yaml`, and the user's overrides over both.

What only the user knows (where the data lies, for example) is kept in `workspaces/NAME/overrides.yaml`. It also
applies to every preset that extends NAME. `qdformer.config.presets` has the rule of merging.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipelines.environment import PROJECT
from qdformer.config import presets
from qdformer.config.base import SettingsError
from qdformer.config.presets import PresetFiles
from qdformer.config.settings import Settings, parse_settings, read_yaml
from qdformer.utils.files import write_text


def preset_files(project: Path = PROJECT) -> PresetFiles:
    """The files that the presets of a project are read from."""
    return PresetFiles(
        root=project,
        default=project / "params.yaml",
        presets={path.stem: path for path in (project / "pipelines" / "presets").glob("*.yaml")},
        overrides={path.parent.name: path for path in (project / "workspaces").glob("*/overrides.yaml")},
    )


def preset_values(name: str, project: Path = PROJECT) -> dict[str, Any]:
    """The validated values of a preset, as nested mappings; raises `SettingsError`."""
    return presets.preset_values(name, preset_files(project))


def preset_settings(name: str = "", project: Path = PROJECT) -> Settings:
    """The settings of a preset; raises `SettingsError`. Writes nothing."""
    return parse_settings(preset_values(name, project), name or "params.yaml")


def is_default(name: str, project: Path = PROJECT) -> bool:
    """Whether the name stands for `params.yaml` as it is."""
    return preset_files(project).is_default(name)


def overrides_path(name: str, project: Path = PROJECT) -> Path:
    """The file of the user's overrides of a preset; it may not exist."""
    return project / "workspaces" / name / "overrides.yaml"


def save_overrides(name: str, values: dict[str, Any], project: Path = PROJECT) -> None:
    """Add `values` to the user's overrides of a preset; earlier overrides of other keys stay.

    Raises `SettingsError`, and changes nothing, if there is no such preset or the merged settings are not valid.
    """
    path = overrides_path(name, project)
    if is_default(name, project):
        raise SettingsError(f"{name or 'the default'}: its values are in params.yaml; change them there")
    merged = presets.merge(preset_values(name, project), values)
    parse_settings(merged, f"{name} with the values given")
    kept = presets.merge(read_yaml(path) if path.is_file() else {}, values)
    write_text(path, "# Your overrides of the preset of this name.\n" + yaml.safe_dump(kept, sort_keys=False))


def preset_label(name: str, project: Path = PROJECT) -> str:
    """How console output names a preset."""
    return "params.yaml" if is_default(name, project) else f"preset {name}"
