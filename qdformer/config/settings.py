"""Typed settings: `params.yaml`, one section per pipeline stage.

All values that change a result are settings. Where the work runs (workers, GPUs, addresses, the tracking store) is read
from the environment, so that no result becomes stale on another machine. An unknown key, a wrong type or a value out of
range raises a `SettingsError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from qdformer.config.base import Section, SettingsError
from qdformer.config.check import Check
from qdformer.config.download import Download
from qdformer.config.evaluate import Evaluate
from qdformer.config.features import Features
from qdformer.config.mix import Mix
from qdformer.config.model import SETTINGS
from qdformer.config.noise import Noise
from qdformer.config.pretrain import Pretrain
from qdformer.config.promote import Promote
from qdformer.config.renamed import RENAMED
from qdformer.config.separate import Separate
from qdformer.config.sweep import Sweep
from qdformer.config.train import Train


class Settings(Section):
    """All sections of `params.yaml`."""

    download: Download
    check: Check
    pretrain: Pretrain
    noise: Noise
    mix: Mix
    features: Features
    separate: Separate
    train: Train
    evaluate: Evaluate
    promote: Promote
    sweep: Sweep

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        if self.noise.source == "audioset" and (without := set(self.mix.noisy_splits) - set(self.noise.count)):
            raise ValueError(
                f"noise.count must name every split of mix.noisy_splits; {', '.join(sorted(without))} is not"
            )
        if self.noise.source == "none" and (noisy := sorted(set(self.mix.conditions) - {"clean"})):
            raise ValueError(f"noise.source: none leaves mix.conditions nothing for {', '.join(noisy)}")
        if self.download.dataset in ("s4", "ms3") and self.train.task != "avs":
            raise ValueError(f"download.dataset: {self.download.dataset} names no classes; expected train.task: avs")
        if self.download.dataset == "ms3" and "offscreen" in self.evaluate.controls:
            raise ValueError("download.dataset: ms3 names no sources; evaluate.controls cannot hold offscreen")
        if "clean" not in self.sweep.conditions or (unknown := set(self.sweep.conditions) - set(self.mix.conditions)):
            named = f"; {', '.join(sorted(unknown))} is not" if "clean" in self.sweep.conditions else ""
            raise ValueError(f"sweep.conditions must hold clean, and only names of mix.conditions{named}")
        if self.train.condition not in self.mix.conditions:
            raise ValueError(
                f"train.condition must be one of mix.conditions ({', '.join(self.mix.conditions)}), "
                f"not {self.train.condition}"
            )
        if self.train.condition != "clean" and "train" not in self.mix.noisy_splits:
            raise ValueError(f"train.condition: {self.train.condition} needs the split train in mix.noisy_splits")
        if unknown := set(self.promote.max_drop) - set(self.mix.conditions):
            raise ValueError(f"promote.max_drop may name only mix.conditions; {', '.join(sorted(unknown))} is not")
        if unknown := set(self.promote.max_false_positives) - set(self.evaluate.controls):
            raise ValueError(
                f"promote.max_false_positives may name only evaluate.controls; {', '.join(sorted(unknown))} is not"
            )
        if self.evaluate.split not in self.mix.noisy_splits:
            raise ValueError(f"mix.noisy_splits must hold evaluate.split ({self.evaluate.split})")
        return self


def parse_settings(values: Any, source: str = "settings") -> Settings:
    """Validate nested mappings; raise a `SettingsError` that names each wrong key and what was expected."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
    method = _method_name(values)
    for item in errors:
        item["loc"] = _without_method(item["loc"])
    renamed = {
        (*item["loc"][:-1], RENAMED.get(_dotted(item["loc"][:-1]), {}).get(str(item["loc"][-1])))
        for item in errors
        if item["type"] == "extra_forbidden"
    }
    problems = [
        _describe(item["loc"], item["type"], item["msg"], item["input"], method)
        for item in sorted(errors, key=lambda item: item["type"] != "extra_forbidden")  # unknown keys first
        if not (item["type"] == "missing" and item["loc"] in renamed)  # its old name is reported instead
    ]
    raise SettingsError(f"{source}: " + "\n  ".join(problems))


def _method_name(values: Any) -> str:
    """`train.model.name`, empty if it cannot be found."""
    for part in ("train", "model", "name"):
        values = values.get(part) if isinstance(values, dict) else None
    return values if isinstance(values, str) else ""


def _without_method(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location of an error without the method's name, which pydantic inserts after `train.model`."""
    if location[:2] == ("train", "model") and location[2:3] and location[2] in SETTINGS:
        return *location[:2], *location[3:]
    return location


def _describe(location: tuple[int | str, ...], kind: str, message: str, given: Any, method: str) -> str:
    """One line for one of pydantic's errors: the key, and what was expected."""
    key, section = _dotted(location) or "settings", location[:-1]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        found = f"not {given['name']!r}" if isinstance(given, dict) and "name" in given else "but it is missing"
        return f"{key}.name: expected one of {', '.join(map(repr, SETTINGS))}, {found}"
    if kind == "extra_forbidden":
        if new := RENAMED.get(_dotted(section), {}).get(str(location[-1])):
            return f"{key}: unknown key; it is called {new} now"
        return f"{key}: unknown key; known here: {', '.join(_known_keys(section, method))}"
    message = message.removeprefix("Value error, ")
    return f"{key}: {message}" if kind in ("missing", "value_error") else f"{key}: {message}, not {given!r}"


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def load_settings(path: str | Path = "params.yaml") -> Settings:
    """Read and validate a settings file; raise `SettingsError` if it is missing or wrong."""
    return parse_settings(read_yaml(Path(path)), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; raise `SettingsError` if the file is missing, not valid or no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must hold a mapping of sections")
    return values


def _known_keys(location: tuple[int | str, ...], method: str) -> list[str]:
    model: Any = Settings
    if location[:1] == ("train",) and location[1:2] in (("model",), ("loss",)) and method in SETTINGS:
        model = SETTINGS[method] if location[1] == "model" else SETTINGS[method].losses
        location = location[2:]
    for part in location:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field else None
    return list(model.model_fields) if hasattr(model, "model_fields") else []
