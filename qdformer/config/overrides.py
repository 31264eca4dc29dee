"""Settings given as `KEY=VALUE`: in the rows of a sweep, and on the command line.

`KEY` is the dotted name of a setting in the sections `train`, `features`, `separate` and `mix`; without a section it is
one of `train`. `VALUE` is read as YAML: `epochs=4`, `model.backbone_weights=null`, and
`mix.noisy_splits=[train, val, test]`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

import yaml

SECTIONS = ("train", "features", "separate", "mix")
"""The sections whose settings a row of a sweep, and a single training, may change."""


def split_overrides(text: str) -> list[str]:
    """Split a command-line argument at blanks, with quotes as in a shell; raises `ValueError`."""
    return shlex.split(text)


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """The overrides as nested mappings; raises `ValueError` for one that is malformed or contradicts another."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, path, value = _parse(override)
        section = values
        for name in path[:-1]:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ValueError(f"{override}: {name} has been set to a value before")
        if path[-1] in section:
            raise ValueError(f"{override}: {key} is set twice")
        section[path[-1]] = value
    return values


def _parse(override: str) -> tuple[str, list[str], Any]:
    key, equals, text = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise ValueError(f"{override}: expected KEY=VALUE, such as model.codebook_size=64")
    if path[0] not in SECTIONS:
        path.insert(0, SECTIONS[0])
    elif len(path) == 1:
        raise ValueError(f"{override}: {key} is a section; expected one of its settings, such as train.epochs=4")
    try:
        return ".".join(path), path, yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{override}: the value is not valid YAML") from None
