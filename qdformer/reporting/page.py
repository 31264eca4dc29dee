"""The report page: metrics, tables, curves and clips of a result, prepared for the template `page.html`.

Shapes: T frames, H W pixels, C object classes.
"""

from __future__ import annotations

import re
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
from qdformer.evaluation.result import AUDIO_CONTROLS, DECOMPOSITION, Picture
from qdformer.metrics.conventions import PROTOCOLS
from qdformer.reporting.html import STYLE
from qdformer.reporting.media import film_strip, image_uri, sound_uri
from qdformer.reporting.plots import METRIC_TITLES, class_colors, condition_title, overlay
from qdformer.reporting.result import Result
from qdformer.utils.constants import IGNORE_INDEX

CLASS_THRESHOLD = 0.3
"""A class is listed below a clip if its probability reaches this value in at least one frame."""
_MAX_CLASSES = 4  # listed below a clip
_CLEAN = "clean"
_MAIN_METRICS = (
    "miou_dataset",
    "miou_per_frame",
    "fscore_per_frame",
    "avsbench_j",
    "avsbench_f",
    "davis_j",
    "davis_f",
    "davis_jf",
    "miou_seen",
    "miou_unseen",
)
_HEADLINE = tuple(key for key in _MAIN_METRICS if key != "fscore_per_frame")
_FIGURE_TITLES = {
    "robustness": "Scores over the signal-to-noise ratio",
    "training": "Training",
    "confusion": "Confusion of classes",
    "codebook": "Codebook entries by class",
    "tokens": "Audio tokens before and after decomposition",
}
_LEFT_OUT = ("pictures", "classes")  # the page shows the clips and the table of classes instead
_CONDITIONS = {
    "clean": "the clips' own sound",
    "shuffled": "control: the sound of another clip",
    "silence": "control: no sound",
    "noise": "control: noise in place of the sound",
    "offscreen": "control: a sound of nothing in the picture",
    "untrained": "control: random weights, clean sound",
}
_GOOD_DIRECTIONS = {  # the other metrics of the decomposition: higher is better
    **dict.fromkeys(("token_cosine_clip", "token_cosine_frame"), "lower is better"),
    **dict.fromkeys(("codes_1", "codes_2", "codes_3"), "should grow with the number of sources"),
}
_AUDIO_CONTROLS = {
    "probe": "linear layer on the audio features, no picture",
    "probe_visible": "the same, with the visible classes known",
    "tracks": "the same on every source's own track (oracle separation)",
}
_GROUPS = {"sources": "sounding sources", "off_screen": "off-screen sound"}


@dataclass(frozen=True)
class About:
    """Where a result comes from and how to reproduce it."""

    title: str
    evaluation_setup: Mapping[str, str]
    facts: Mapping[str, str]
    """Provenance, by its name on the page."""
    settings: Mapping[str, Any]
    """All settings, nested as in `params.yaml`."""
    changed: Mapping[str, tuple[Any, Any]]
    """Settings that differ from `params.yaml`, by dotted name: the value of this result and that of the file."""
    commands: Sequence[str]
    """Shell commands that reproduce the result."""


def make_page(result: Result, classes: Classes, about: About, sounds: Mapping[str, Path]) -> str:
    """The page as HTML.

    `classes` are the classes of the label maps. `sounds` maps each uid to the sound file of the clip; the page leaves
    out published log-mel spectrograms, which cannot be played. Raises `AudioError` if a sound cannot be read.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colors = class_colors(len(classes))
    shown = [name for name in result.figures if name not in _LEFT_OUT]
    return environment.get_template("page.html").render(
        style=STYLE,
        class_threshold=CLASS_THRESHOLD,
        about=about,
        headline=_headline(result),
        condition_tables=_condition_tables(result),
        decomposition=_decomposition(result),
        figures=[(_FIGURE_TITLES.get(name, name), image_uri(result.figures[name])) for name in _known_first(shown)],
        clips=[_clip(picture, result, classes, colors, sounds) for picture in result.pictures],
        classes=_classes(result, colors),
        sources=_sources(result.sources),
        protocols=[
            (METRIC_TITLES.get(key, key), _with_titles(PROTOCOLS[key])) for key in _metrics(result) if key in PROTOCOLS
        ],
        settings=yaml.safe_dump(dict(about.settings), sort_keys=False),
    )


def _headline(result: Result) -> list[dict[str, str]]:
    clean = result.intervals[_CLEAN]
    return [
        {"title": METRIC_TITLES[key], **_cell(interval)}
        for key, interval in clean.items()
        if key in _HEADLINE and interval["value"] is not None
    ]


def _metrics(result: Result) -> list[str]:
    """The metrics of a segmentation that at least one condition has; those without an interval, such as `fpr`, come
    last.
    """
    with_interval = [key for intervals in result.intervals.values() for key in intervals]
    without = [key for metrics in result.metrics.values() for key in metrics if key in METRIC_TITLES]
    return [key for key in dict.fromkeys([*with_interval, *without]) if not key.endswith(DECOMPOSITION)]


def _condition_tables(result: Result) -> list[dict[str, Any]]:
    """Two tables with one row per condition: the scores, and the predicted areas and false positives."""
    keys = _metrics(result)
    tables = []
    for title, chosen in (
        ("Scores", [key for key in keys if key in _MAIN_METRICS]),
        ("Predicted area and false positives", [key for key in keys if key not in _MAIN_METRICS]),
    ):
        rows = [
            {
                "name": condition_title(name),
                "description": _CONDITIONS.get(name, "background noise mixed in" if name.startswith("snr") else ""),
                "cells": [_cell(intervals.get(key) or _value(result.metrics[name].get(key))) for key in chosen],
            }
            for name, intervals in result.intervals.items()
        ]
        if chosen:
            tables.append({"title": title, "columns": [METRIC_TITLES.get(key, key) for key in chosen], "rows": rows})
    return tables


def _decomposition(result: Result) -> dict[str, Any] | None:
    """A table with one row per metric of the decomposition, followed by its controls, and one column per condition."""
    rows = []
    for key in DECOMPOSITION:
        names = {key: METRIC_TITLES[key]} | {f"{name}_{key}": _AUDIO_CONTROLS[name] for name in AUDIO_CONTROLS}
        good = _GOOD_DIRECTIONS.get(key, "higher is better")
        for own, title in names.items():
            cells = [intervals.get(own) or _value(None) for intervals in result.intervals.values()]
            if any(cell["value"] is not None for cell in cells):
                description = f"{PROTOCOLS[key]}; {good}" if own == key else ""
                row = {"title": title, "control": own != key, "description": description}
                rows.append(row | {"cells": [_cell(cell) for cell in cells]})
    return {"columns": [condition_title(name) for name in result.intervals], "rows": rows} if rows else None


def _value(value: float | None) -> dict[str, float | None]:
    """A metric without an interval."""
    return {"value": value, "low": None, "high": None}


def _with_titles(text: str) -> str:
    """The text with the titles of metrics in place of their keys."""
    keys = "|".join(sorted(METRIC_TITLES, key=len, reverse=True))
    return re.sub(rf"`?\b({keys})\b`?", lambda match: METRIC_TITLES[match[1]], text)


def _classes(result: Result, colors: np.ndarray) -> list[dict[str, Any]]:
    table = result.classes[result.classes["condition"] == _CLEAN].sort_values("iou", ascending=False, kind="stable")
    return [
        {
            "name": row["name"],
            "color": _hex(colors[row["id"]]),
            "kind": "" if row["id"] == 0 else "unseen" if row["unseen"] else "seen",
            "frames": f"{row['frames']:,}",
            "iou": row["iou"],
            "cells": [_number(row[key]) for key in ("iou_per_frame", "f_per_frame")],
        }
        for row in table.to_dict("records")
    ]


def _sources(table: pandas.DataFrame | None) -> list[dict[str, Any]]:
    """One table per way to group the clips; `KEY_low` and `KEY_high` are the ends of the interval of `KEY`."""
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
                    _cell({"value": row[key], "low": row[f"{key}_low"], "high": row[f"{key}_high"]}) for key in keys
                ],
            }
            for row in rows.to_dict("records")
        ]
        blocks.append(
            {"by": _GROUPS.get(by, by), "columns": [METRIC_TITLES.get(key, key) for key in keys], "rows": lines}
        )
    return blocks


def _clip(
    picture: Picture, result: Result, classes: Classes, colors: np.ndarray, sounds: Mapping[str, Path]
) -> dict[str, Any]:
    present = np.union1d(picture.truth_THW, picture.prediction_THW)
    max_probs_C = picture.class_probs_TC.max(axis=0)
    likeliest = np.argsort(-max_probs_C, kind="stable")[:_MAX_CLASSES]
    predicted = [index for index in likeliest if max_probs_C[index] >= CLASS_THRESHOLD]
    scores = result.clips[(result.clips["uid"] == picture.uid) & (result.clips["condition"] == _CLEAN)]
    row = scores.iloc[0] if len(scores) else {}
    height, width = picture.images_THWC.shape[1:3]
    path = sounds[picture.uid]
    return {
        "uid": picture.uid,
        "frames": len(picture.images_THWC),
        "first_frame": _first_sounding_frame(picture),
        "ratio": f"{width} / {height}",
        "films": [
            ("picture", film_strip(picture.images_THWC)),
            ("truth", film_strip(_overlays(picture, picture.truth_THW, colors))),
            ("prediction", film_strip(_overlays(picture, picture.prediction_THW, colors))),
        ],
        "sound": None if path.suffix == LOG_MEL_SUFFIX else sound_uri(path),
        "legend": [(classes.names[index - 1], _hex(colors[index])) for index in present if 0 < index <= len(classes)],
        "predicted": [(classes.names[index], picture.class_probs_TC[:, index].tolist()) for index in predicted],
        "scores": [(METRIC_TITLES[key], _number(row[key])) for key in ("miou_dataset", "davis_jf") if key in row],
    }


def _overlays(picture: Picture, labels_THW: np.ndarray, colors: np.ndarray) -> np.ndarray:
    pairs = zip(picture.images_THWC, labels_THW, strict=True)
    return np.stack([overlay(image_HWC, labels_HW, colors) for image_HWC, labels_HW in pairs])


def _first_sounding_frame(picture: Picture) -> int:
    """The first frame whose ground truth holds a sounding object; 0 if there is none."""
    objects_THW = (picture.truth_THW > 0) & (picture.truth_THW != IGNORE_INDEX)
    return int(objects_THW.any(axis=(1, 2)).argmax())


def _cell(metric: Mapping[str, float | None]) -> dict[str, str]:
    """Value and interval as text; a dash for an undefined value, nothing for a missing interval."""
    if pandas.isna(metric["value"]):
        return {"value": "–", "interval": ""}
    interval = "" if pandas.isna(metric["low"]) else f"{_number(metric['low'])}–{_number(metric['high'])}"
    return {"value": _number(metric["value"]), "interval": interval}


def _number(value: float | None) -> str:
    return "–" if pandas.isna(value) else f"{value:.3f}"


def _hex(color_3: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color_3)


def _known_first(names: Iterable[str]) -> list[str]:
    order = list(_FIGURE_TITLES)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
