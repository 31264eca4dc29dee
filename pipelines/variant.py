"""A preset with some settings changed on the command line, in a workspace of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipelines.environment import PROJECT
from pipelines.settings import preset_values
from pipelines.workspace import make_workspace, write_params
from qdformer.config.base import SettingsError
from qdformer.config.overrides import parse_overrides
from qdformer.config.presets import merge
from qdformer.config.settings import Settings, parse_settings
from qdformer.utils.digests import short_digest

MAX_NAME = 80
"""Characters of the name of a workspace."""


def open_variant(data: str, overrides: Sequence[str], project: Path = PROJECT) -> tuple[Settings, Path]:
    """The settings of the preset `data` with `overrides` (`KEY=VALUE`) over them, and their workspace.

    Raises `SettingsError`, and writes nothing, if there are no overrides or the settings are not valid.
    """
    if not overrides:
        raise SettingsError('SET is empty; expected settings, as in: make train SET="model.codebook_size=64 epochs=4"')
    try:
        changes = parse_overrides(overrides)
    except ValueError as error:
        raise SettingsError(f"SET: {error}") from None
    values = merge(preset_values(data, project), changes)
    settings = parse_settings(values, "SET")
    header = f"# Written by `make train`: {data or 'params.yaml'} with {' '.join(overrides)}\n"
    name = variant_name(data or settings.download.dataset, overrides)
    workspace = make_workspace(name, project)
    write_params(workspace, values, header)
    return settings, workspace


def variant_name(preset: str, overrides: Sequence[str]) -> str:
    """The name of the workspace, such as `toy+epochs=4`: readable, and with a digest if it does not hold all."""
    name = "+".join([preset, *sorted(overrides)])
    plain = re.sub(r"[^A-Za-z0-9._=+-]", "-", name)
    return name if name == plain and len(name) <= MAX_NAME else f"{plain[: MAX_NAME - 17]}-{short_digest([name])}"
