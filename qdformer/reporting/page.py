"""The page: a result's figures, tables, curves and clips, made ready for the template beside this file.

Shapes: T frames, H W pixels, C object classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qdformer.audio.io.read import LOG_MEL_SUFFIX
from qdformer.data.manifest import Classes
from qdformer.evaluation.result import Picture
from qdformer.metrics.conventions import PROTOCOLS
from qdformer.reporting.html import STYLE
from qdformer.reporting.media import figure, film, sound
from qdformer.reporting.plots import METRIC_TITLES, class_colors, overlay
from qdformer.reporting.result import Result

HEARD_FROM = 0.3
"""Probability from which a class counts as heard."""
_HEARD, _CLEAN = 4, "clean"  # classes named for each clip
_TITLES = {**METRIC_TITLES, "miou_seen": "mIoU, seen classes", "miou_unseen": "mIoU, unseen classes"}
_FIGURES = {
    "robustness": "Scores over the signal-to-noise ratio",
    "training": "Training",
    "confusion": "Confusion of classes",
    "codebook": "What the codes stand for",
    "tokens": "Audio tokens before and after decomposition",
}
_LEFT_OUT = ("pictures", "classes")  # the clips themselves, and the table of classes, are on the page
_CONDITIONS = {
    "clean": "clips as they are",
    "shuffled": "control: each clip with another's sound",
    "silence": "control: no sound",
    "noise": "control: noise in place of the sound",
    "offscreen": "control: sound of what is not in the picture",
    "untrained": "control: the model before training",
}
_GROUPS = {"sources": "sounding sources", "off_screen": "sound from outside the picture"}


@dataclass(frozen=True)
class About:
    """Where a result comes from and how it is made again."""

    title: str
    evaluation_setup: Mapping[str, str]
    facts: Mapping[str, str]
    """Provenance, by what it is called on the page."""
    settings: Mapping[str, Any]
    """All, nested as in `params.yaml`."""
    changed: Mapping[str, tuple[Any, Any]]
    """Settings, by dotted name, that are not `params.yaml`'s: theirs, and that file's."""
    commands: Sequence[str]
    """What a shell needs to be told to make the result again."""


def make_page(result: Result, classes: Classes, about: About, sounds: Mapping[str, Path]) -> str:
    """The page as HTML.

    `classes` are those of the label maps, `sounds` the sound file of every clip by uid (the files of published
    spectrograms cannot be played, and are left out). Raises `AudioError` if a sound cannot be read.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = class_colors(len(classes))
    shown = [name for name in result.figures if name not in _LEFT_OUT]
    return environment.get_template("page.html").render(
        style=STYLE,
        about=about,
        headline=_headline(result),
        conditions=_conditions(result),
        figures=[(_FIGURES.get(name, name), figure(result.figures[name])) for name in _known_first(shown)],
        clips=[_clip(picture, result, classes, colours, sounds) for picture in result.pictures],
        classes=_classes(result, colours),
        sources=_sources(result.sources),
        protocols=[(key, PROTOCOLS[key]) for key in result.intervals[_CLEAN] if key in PROTOCOLS],
        settings=yaml.safe_dump(dict(about.settings), sort_keys=False),
    )


def _headline(result: Result) -> list[dict[str, str]]:
    return [
        {"name": key, "title": _TITLES[key], **_figure(of)}
        for key, of in result.intervals[_CLEAN].items()
        if key in _TITLES and of["value"] is not None
    ]


def _conditions(result: Result) -> dict[str, Any]:
    keys = [key for key in result.intervals[_CLEAN] if any(of.get(key) for of in result.intervals.values())]
    rows = []
    for name, of in result.intervals.items():
        told = _CONDITIONS.get(name) or (f"noise at {name[3:]} dB" if name.startswith("snr") else "")
        rows.append({"name": name, "told": told, "cells": [_figure(of.get(key)) for key in keys]})
    return {"keys": keys, "rows": rows}


def _classes(result: Result, colours: np.ndarray) -> list[dict[str, Any]]:
    table = result.classes[result.classes["condition"] == _CLEAN].sort_values("iou", ascending=False, kind="stable")
    return [
        {
            "name": row["name"],
            "colour": _hex(colours[row["id"]]),
            "kind": "" if row["id"] == 0 else "unseen" if row["unseen"] else "seen",
            "frames": f"{row['frames']:,}",
            "iou": row["iou"],
            "cells": [_number(row[key]) for key in ("iou_per_frame", "f_per_frame")],
        }
        for row in table.to_dict("records")
    ]


def _sources(table: pandas.DataFrame | None) -> list[dict[str, Any]]:
    """A block for each way to group the clips; `KEY_low` and `KEY_high` are the ends of `KEY`'s interval."""
    if table is None:
        return []
    if "condition" in table:
        table = table[table["condition"] == _CLEAN]
    keys = [key for key in table.columns if f"{key}_low" in table.columns]
    blocks = []
    for by, rows in table.groupby("by", sort=False):
        lines = [
            {
                "group": str(row["group"]),
                "clips": row["clips"],
                "cells": [
                    _figure({"value": row[key], "low": row[f"{key}_low"], "high": row[f"{key}_high"]}) for key in keys
                ],
            }
            for row in rows.to_dict("records")
        ]
        blocks.append({"by": _GROUPS.get(by, by), "keys": keys, "rows": lines})
    return blocks


def _clip(
    picture: Picture, result: Result, classes: Classes, colours: np.ndarray, sounds: Mapping[str, Path]
) -> dict[str, Any]:
    def over(labels_THW: np.ndarray) -> str:
        pairs = zip(picture.images_THWC, labels_THW, strict=True)
        return film(np.stack([overlay(image_HWC, labels_HW, colours) for image_HWC, labels_HW in pairs]))

    present = np.union1d(picture.truth_THW, picture.prediction_THW)
    legend = [(classes.names[index - 1], _hex(colours[index])) for index in present if 0 < index <= len(classes)]
    likeliest = [
        index
        for index in np.argsort(-picture.class_probs_TC.max(axis=0), kind="stable")[:_HEARD]
        if picture.class_probs_TC[:, index].max() >= HEARD_FROM
    ]
    scores = result.clips[(result.clips["uid"] == picture.uid) & (result.clips["condition"] == _CLEAN)]
    row = scores.iloc[0] if len(scores) else {}
    height, width = picture.images_THWC.shape[1:3]
    path = sounds[picture.uid]
    return {
        "uid": picture.uid,
        "frames": len(picture.images_THWC),
        "ratio": f"{width} / {height}",
        "films": [
            ("picture", film(picture.images_THWC)),
            ("truth", over(picture.truth_THW)),
            ("prediction", over(picture.prediction_THW)),
        ],
        "sound": None if path.suffix == LOG_MEL_SUFFIX else sound(path),
        "legend": legend,
        "heard": [(classes.names[index], [float(p) for p in picture.class_probs_TC[:, index]]) for index in likeliest],
        "scores": [(key, _number(row[key])) for key in ("miou_dataset", "davis_jf") if key in row],
    }


def _figure(of: Mapping[str, float | None] | None) -> dict[str, str]:
    """Value and interval as text; empty where there is no figure."""
    if of is None or pandas.isna(of["value"]):
        return {"value": "–", "interval": ""}
    return {"value": f"{of['value']:.3f}", "interval": f"{_number(of['low'])}–{_number(of['high'])}"}


def _number(value: float | None) -> str:
    return "–" if pandas.isna(value) else f"{value:.3f}"


def _hex(colour_C: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour_C)


def _known_first(names: Iterable[str]) -> list[str]:
    order = list(_FIGURES)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
