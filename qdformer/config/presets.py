"""Presets: a project's `params.yaml`, and what differs from it by name.

A preset is a file `pipelines/presets/NAME.yaml` of the project that names only what differs from `params.yaml`, or from
the preset that it `extends`. What is the user's own (where the data lies, say) is laid over it from
`workspaces/NAME/overrides.yaml`, and so over every preset that extends it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdformer.config.base import Section, SettingsError
from qdformer.config.settings import Settings, parse_settings, read_yaml

EXTENDS = "extends"


def preset_values(name: str, project: Path) -> dict[str, Any]:
    """The nested values of a preset, validated: `params.yaml`, the preset's own laid over it, and the user's over that.

    An empty name, or the name of the data set in `params.yaml`, is the default. Raises
    `SettingsError` if there is no such preset (naming those there are) or its values are not usable.
    """
    values, sources = _layered(name, project, ())
    parse_settings(values, " with ".join(str(path.relative_to(project)) for path in sources))
    return values


def overrides_path(name: str, project: Path) -> Path:
    """The file of the user's own values for a preset; it need not be there."""
    return project / "workspaces" / name / "overrides.yaml"


def is_default(name: str, project: Path) -> bool:
    """Whether the name means `params.yaml` as it is."""
    return name in ("", _default_name(read_yaml(project / "params.yaml")))


def merge(base: dict[str, Any], overlay: dict[str, Any], section: type[Section] = Settings) -> dict[str, Any]:
    """`overlay` laid over `base`, section by section; other mappings (conditions, rows) are replaced as a whole."""
    merged = dict(base)
    for key, value in overlay.items():
        inner = section.model_fields[key].annotation if key in section.model_fields else None
        nested = isinstance(inner, type) and issubclass(inner, Section)
        nested = nested and isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value, inner) if nested else value
    return merged


def _layered(name: str, project: Path, extending: tuple[str, ...]) -> tuple[dict[str, Any], list[Path]]:
    """A preset's values, not validated, and the files they come from; `extending` are the presets on the way here."""
    if is_default(name, project):
        path = project / "params.yaml"
        return read_yaml(path), [path]
    presets = {file.stem: file for file in (project / "pipelines" / "presets").glob("*.yaml")}
    asked = f" ({' extends '.join((*extending, name))})" if extending else ""
    if name not in presets:
        known = sorted({_default_name(read_yaml(project / "params.yaml")), *presets} - {""})
        raise SettingsError(f"no preset {name!r}{asked}; there are: {', '.join(known)}")
    if name in extending:
        raise SettingsError(f"preset {name!r} extends itself{asked}")
    differing = read_yaml(presets[name])
    values, sources = _layered(str(differing.pop(EXTENDS, "")), project, (*extending, name))
    layers = [(presets[name], differing)]
    if (own := overrides_path(name, project)).is_file():
        layers.append((own, read_yaml(own)))
    for path, overlay in layers:
        values = merge(values, overlay)
        sources.append(path)
    return values, sources


def _default_name(values: dict[str, Any]) -> str:
    download = values.get("download")
    return str(download.get("dataset", "")) if isinstance(download, dict) else ""
