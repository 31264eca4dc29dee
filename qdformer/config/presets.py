"""Presets: named sets of settings, each written as its differences from the default settings or from another preset.

The values of a preset are layered, later layers over earlier ones: the default settings, the preset that it `extends`
(with that one's overrides), the preset's own file, and the user's overrides of the preset. Which files these are is
up to the caller (`PresetFiles`).

The rule of merging (`merge`) is the same for every layer:

- A mapping whose type is a section of settings is merged key by key, at every depth: `download: {clips: {train: 8}}`
  changes `train` and keeps `val` and `test`. Optional sections are no exception.
- Everything else is replaced as a whole: lists, and mappings with free keys (`mix.conditions`, `noise.count`,
  `sweep.grids`).
- A section that has several types, distinguished by the key `name` (`train.model`), is replaced if `name` differs:
  only keys that both types have from a common base class are kept, such as the backbone. A section that follows it
  (`train.loss`) is then replaced as a whole.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdformer.config.base import Section, SettingsError
from qdformer.config.settings import Settings, parse_settings, read_yaml

EXTENDS = "extends"
KIND = "name"
"""The key that distinguishes the types of a section."""


@dataclass(frozen=True)
class PresetFiles:
    """The files that presets are read from.

    `presets` and `overrides` map the name of a preset to its file and to the file of the user's overrides.
    Error messages give the paths relative to `root`.
    """

    root: Path
    default: Path
    presets: Mapping[str, Path]
    overrides: Mapping[str, Path]

    def is_default(self, name: str) -> bool:
        """Whether `name` is empty or the name of the data set in the default settings."""
        return name in ("", _dataset_name(read_yaml(self.default)))


def preset_values(name: str, files: PresetFiles) -> dict[str, Any]:
    """The merged and validated values of a preset, as nested mappings.

    Raises:
        SettingsError: there is no such preset (the message lists those that exist), it extends itself, or its values
            are not valid.
    """
    values, sources = _layers(name, files, ())
    parse_settings(values, " with ".join(str(path.relative_to(files.root)) for path in sources))
    return values


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any], *sections: type[Section]) -> dict[str, Any]:
    """Return `base` with the values of `overlay`, by the rule in this module's docstring.

    `sections` are the types that the mapping may have (default: `Settings`).
    """
    sections = sections or (Settings,)
    merged = dict(base)
    if any(KIND in section.model_fields for section in sections) and _kind_changes(base, overlay):
        shared = _shared_keys(sections, base.get(KIND), overlay[KIND])
        merged = {key: value for key, value in base.items() if key in shared}
    for follower, leader in [pair for section in sections for pair in section.follows.items()]:
        if follower in base and _kind_changes(base.get(leader), overlay.get(leader)):
            merged[follower] = {}
    for key, value in overlay.items():
        inner = [found for section in sections for found in _sections_of(section, key)]
        if inner and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value, *inner)
        else:
            merged[key] = value
    return merged


def _kind_changes(base: Any, overlay: Any) -> bool:
    """Whether `overlay` makes another kind of section of `base`."""
    if not isinstance(base, Mapping) or not isinstance(overlay, Mapping):
        return False
    return overlay.get(KIND, base.get(KIND)) != base.get(KIND)


def _shared_keys(sections: Iterable[type[Section]], *kinds: Any) -> set[str]:
    """The keys that the sections of these kinds have from their nearest common base class."""
    chosen = [section for kind in kinds for section in sections if _is_kind(section, kind)]
    if len(chosen) < len(kinds):
        return set()
    first, *others = chosen
    common = next(base for base in first.__mro__ if all(issubclass(other, base) for other in others))
    return set(common.model_fields) - {KIND} if issubclass(common, Section) else set()


def _is_kind(section: type[Section], kind: Any) -> bool:
    field = section.model_fields.get(KIND)
    return field is not None and kind in typing.get_args(field.annotation)


def _sections_of(section: type[Section], key: str) -> list[type[Section]]:
    """The sections that a field may hold, looked for inside Optional, Union and Annotated."""
    field = section.model_fields.get(key)
    waiting, found = [field.annotation] if field else [], []
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found.append(annotation)
        elif typing.get_origin(annotation) not in (dict, list):
            waiting += typing.get_args(annotation)
    return found


def _layers(name: str, files: PresetFiles, extending: tuple[str, ...]) -> tuple[dict[str, Any], list[Path]]:
    """Merge a preset's layers without validation; return the values and the files that they come from.

    `extending` names the presets that led here by `extends`.
    """
    if files.is_default(name):
        return read_yaml(files.default), [files.default]
    chain = f" ({' extends '.join((*extending, name))})" if extending else ""
    if name not in files.presets:
        known = sorted({_dataset_name(read_yaml(files.default)), *files.presets} - {""})
        raise SettingsError(f"no preset {name!r}{chain}; there are: {', '.join(known)}")
    if name in extending:
        raise SettingsError(f"preset {name!r} extends itself{chain}")
    differences = read_yaml(files.presets[name])
    values, sources = _layers(str(differences.pop(EXTENDS, "")), files, (*extending, name))
    values = merge(values, differences)
    sources.append(files.presets[name])
    if name in files.overrides:
        values = merge(values, read_yaml(files.overrides[name]))
        sources.append(files.overrides[name])
    return values, sources


def _dataset_name(values: Mapping[str, Any]) -> str:
    download = values.get("download")
    return str(download.get("dataset", "")) if isinstance(download, dict) else ""
