"""Merging of the layers of a preset."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from qdformer.config.base import Section, SettingsError
from qdformer.config.presets import PresetFiles, merge, preset_values
from tests.helpers import PROJECT


class First(Section):
    name: Literal["first"]
    size: int
    depth: int


class Second(Section):
    name: Literal["second"]
    size: int


class Trained(Section):
    model: Annotated[First | Second, Field(discriminator="name")]
    extra: First | None = None


FIRST = {"name": "first", "size": 1, "depth": 2}


@pytest.fixture
def values() -> dict:
    return yaml.safe_load((PROJECT / "params.yaml").read_text())


def test_sections_are_merged_key_by_key_at_every_depth(values):
    overlay = {
        "download": {"clips": {"train": 8}},
        "train": {"model": {"encoder_layers": 1}, "augment": {"flip": 0.0}},
    }
    merged = merge(values, overlay)
    assert merged["download"] == values["download"] | {"clips": values["download"]["clips"] | {"train": 8}}
    assert merged["train"]["model"] == values["train"]["model"] | {"encoder_layers": 1}
    assert merged["train"]["augment"] == values["train"]["augment"] | {"flip": 0.0}
    assert merged["train"]["loss"] == values["train"]["loss"]


def test_lists_and_free_mappings_are_replaced_as_a_whole(values):
    overlay = {
        "mix": {"conditions": {"clean": None}},
        "noise": {"count": {"test": 5}, "labels": ["Wind"]},
        "sweep": {"grids": {"one": {"row": ["epochs=1"]}}},
    }
    merged = merge(values, overlay)
    assert merged["mix"]["conditions"] == {"clean": None} and merged["mix"]["seed"] == values["mix"]["seed"]
    assert merged["noise"]["count"] == {"test": 5} and merged["noise"]["labels"] == ["Wind"]
    assert merged["sweep"]["grids"] == {"one": {"row": ["epochs=1"]}}


def test_null_replaces_an_optional_section_and_a_section_replaces_null(values):
    without = merge(values, {"download": {"clips": None}})
    assert without["download"]["clips"] is None
    clips = {"train": 1, "val": 1, "test": 1}
    assert merge(without, {"download": {"clips": clips}})["download"]["clips"] == clips


def test_a_section_of_another_type_replaces_the_whole_section():
    base = {"model": FIRST, "extra": None}
    assert merge(base, {"model": {"size": 5}}, Trained)["model"] == FIRST | {"size": 5}
    assert merge(base, {"model": {"name": "first", "size": 5}}, Trained)["model"] == FIRST | {"size": 5}
    assert merge(base, {"model": {"name": "second", "size": 5}}, Trained)["model"] == {"name": "second", "size": 5}


def test_layers_are_read_from_the_given_files_alone(values, tmp_path):
    layers = {
        "params": values,
        "base": {"train": {"epochs": 3}},
        "child": {"extends": "base", "train": {"batch_size": 2}},
        "mine": {"train": {"epochs": 5}, "download": {"clips": {"train": 0}}},
    }
    paths = {name: tmp_path / f"{name}.yaml" for name in layers}
    for name, layer in layers.items():
        paths[name].write_text(yaml.safe_dump(layer))
    presets = {name: paths[name] for name in ("base", "child")}
    files = PresetFiles(tmp_path, paths["params"], presets, {})
    train = preset_values("child", files)["train"]
    assert (train["epochs"], train["batch_size"]) == (3, 2)
    files = PresetFiles(tmp_path, paths["params"], presets, {"base": paths["mine"]})
    with pytest.raises(
        SettingsError, match=r"params.yaml with base.yaml with mine.yaml with child.yaml: download.clips.train: "
    ) as caught:
        preset_values("child", files)
    assert "val" not in str(caught.value)
