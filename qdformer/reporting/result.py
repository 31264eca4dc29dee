"""Reading what the stage `evaluate` leaves in `reports/`, for the page."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from qdformer.evaluation.evaluate import Picture
from qdformer.utils.errors import InputError

WRITER = "`make repro` writes it"


class ReportError(InputError):
    """What a report is made of is missing or not usable; the message names the file."""


@dataclass(frozen=True)
class Result:
    """The figures, tables and pictures of one evaluation, in the files' order, the clean condition first."""

    metrics: dict[str, dict[str, float | None]]
    """Every figure by condition."""
    intervals: dict[str, dict[str, dict[str, float | None]]]
    """`value`, `low` and `high` of the figures, by condition."""
    clips: pandas.DataFrame
    classes: pandas.DataFrame
    sources: pandas.DataFrame | None
    """One row per group of clips, told apart by `by`; None where it was not measured."""
    robustness: pandas.DataFrame
    figures: dict[str, Path]
    """By name, such as `robustness`."""
    pictures: list[Picture]


def read_result(reports: Path) -> Result:
    """Read the folder `reports`; raise `ReportError` for a file that is missing or not what is expected."""
    intervals = _json(reports / "intervals.json")
    if "clean" not in intervals:
        raise ReportError(f"{reports / 'intervals.json'}: no condition clean; expected it among the conditions")
    metrics = {path.stem: _json(path) for path in sorted((reports / "metrics").glob("*.json"))}
    if missing := [name for name in intervals if name not in metrics]:
        raise ReportError(f"{reports / 'metrics' / missing[0]}.json: missing; {WRITER}")
    sources = reports / "sources.csv"
    figures = {path.stem: path for path in sorted((reports / "figures").glob("*.png"))}
    if not figures:
        raise ReportError(f"{reports / 'figures'}: missing; {WRITER}")
    return Result(
        metrics={name: metrics[name] for name in intervals},
        intervals=intervals,
        clips=_table(reports / "clips.csv", ("uid", "condition")),
        classes=_table(reports / "classes.csv", ("name", "iou", "condition")),
        sources=_table(sources, ("by", "group", "clips")) if sources.is_file() else None,
        robustness=_table(reports / "robustness.csv", ("snr",)),
        figures=figures,
        pictures=_pictures(reports / "pictures.npz"),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; {WRITER}") from None
    except ValueError as error:
        raise ReportError(f"{path}: not valid JSON ({error}); {WRITER}") from None


def _table(path: Path, columns: tuple[str, ...]) -> pandas.DataFrame:
    try:
        table = pandas.read_csv(path)
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; {WRITER}") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: not a readable table ({error}); {WRITER}") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise ReportError(f"{path}: no column {', '.join(missing)}; {WRITER}")
    return table


def _pictures(path: Path) -> list[Picture]:
    fields = {"images": 4, "truth": 3, "prediction": 3, "class_probs": 2}  # and their dimensions
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; {WRITER}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path}: not readable ({error}); {WRITER}") from None
    pictures = []
    for uid in dict.fromkeys(key.rpartition("/")[0] for key in arrays):
        of = {name: arrays.get(f"{uid}/{name}") for name in fields}
        for name, dimensions in fields.items():
            if of[name] is None or of[name].ndim != dimensions or len(of[name]) != len(of["images"]):
                raise ReportError(f"{path}: {uid}/{name} is not as expected ({dimensions} dimensions, frames first)")
        pictures.append(Picture(uid, of["images"], of["truth"], of["prediction"], of["class_probs"]))
    return pictures
