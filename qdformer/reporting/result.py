"""The files of an evaluation: the stage `evaluate` writes them, the report page reads them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas

from qdformer.evaluation.result import SCORES, Picture
from qdformer.evaluation.scores import negatives
from qdformer.reporting import plots
from qdformer.utils.errors import InputError
from qdformer.utils.files import write_text

if TYPE_CHECKING:
    from qdformer.data.manifest import Classes
    from qdformer.evaluation.result import Evaluation
    from qdformer.evaluation.tokens import AudioTokens

_Content = TypeVar("_Content")
REMEDY = "`make repro` writes it"
RESAMPLES = "resamples.npz"


class ReportError(InputError):
    """A file of a result is missing or invalid; the message names it."""


@dataclass(frozen=True)
class Result:
    """An evaluation as read from its files; the conditions keep the order of `intervals.json`."""

    metrics: dict[str, dict[str, float | None]]
    """The summary of each condition: a value, or None where it is undefined, per metric."""
    intervals: dict[str, dict[str, dict[str, float | None]]]
    """`value`, `low` and `high` (95 % interval) of each metric, by condition."""
    clips: pandas.DataFrame
    classes: pandas.DataFrame
    sources: pandas.DataFrame | None
    """One row per group of clips; the column `by` names the grouping. None for results without this table."""
    robustness: pandas.DataFrame
    figures: dict[str, Path]
    """The PNG files by their name without suffix, such as `robustness`."""
    pictures: list[Picture]


def write_result(results: Mapping[str, Evaluation], classes: Classes, reports: Path) -> None:
    """Write the evaluations `results`, by condition, to the folder `reports`.

    - `metrics/CONDITION.json`: the summary; that of a negative condition also holds its `fpr` and `g_miou`.
    - `intervals.json`: value and 95 % interval of every metric.
    - `clips.csv`, `clips.parquet`, `classes.csv`, `sources.csv`: the tables of all conditions.
    - `negatives.csv`, `robustness.csv`: the negative conditions; the scores by signal-to-noise ratio.
    - `resamples.npz`: `CONDITION/METRIC` float64 [1 + bootstrap]: the metric of all clips, then of every resample;
      `CONDITION/SCORE_sources_2` is that of the clips with two sources alone, and so on for every group of clips.
      Evaluations of the same clips have the same resamples, so their differences are paired.
    - `confusion.csv`, `pictures.npz`: of the clean condition. The latter holds for each selected clip
      `UID/images` uint8 [T, H, W, 3], `UID/truth` and `UID/prediction` uint8 [T, H, W] (class ids, 255 in `truth`
      where there is no label) and `UID/class_probs` float32 [T, C].
    - `figures/*.png`.
    """
    negative = negatives(results)
    extra = negative.set_index("condition")[["fpr", "g_miou"]].to_dict("index")
    for name, result in results.items():
        _write_json(reports / "metrics" / f"{name}.json", result.summary | extra.get(name, {}))
    intervals = {name: result.intervals for name, result in results.items()}
    _write_json(reports / "intervals.json", intervals)
    per_clip = _concatenate(results, "per_clip")
    per_clip.to_csv(reports / "clips.csv", index=False)
    per_clip.to_parquet(reports / "clips.parquet", index=False)
    _concatenate(results, "per_class").to_csv(reports / "classes.csv", index=False)
    _concatenate(results, "per_source").to_csv(reports / "sources.csv", index=False)
    negative.to_csv(reports / "negatives.csv", index=False)
    summaries = {name: result.summary for name, result in results.items()}
    resamples: dict[str, Any] = dict(_resample_arrays(results))
    np.savez_compressed(reports / RESAMPLES, **resamples)
    by_snr = pandas.DataFrame(_scores_by_snr(summaries), columns=["snr", *SCORES, "clips"])
    by_snr.to_csv(reports / "robustness.csv", index=False)
    figures = reports / "figures"
    plots.save(plots.robustness_curve(summaries, intervals), figures / "robustness.png")
    if clean := results.get("clean"):
        names = ["background", *classes.names]
        confusion = pandas.DataFrame(clean.confusion, pandas.Index(names, name="truth"), names)
        confusion.to_csv(reports / "confusion.csv")
        arrays: dict[str, Any] = dict(_picture_arrays(clean.pictures))
        np.savez_compressed(reports / "pictures.npz", **arrays)
        plots.save(plots.picture_grid(clean.pictures, classes), figures / "pictures.png")
        plots.save(plots.class_bars(clean.per_class), figures / "classes.png")
        plots.save(plots.confusion_matrix(clean.confusion, classes), figures / "confusion.png")


def write_token_figures(
    tokens: AudioTokens, sounding: Mapping[str, Sequence[str]], classes: Classes, reports: Path
) -> None:
    """Write the figures of the audio tokens to `reports/figures`.

    `sounding` maps each clip to the names of its sounding classes. A model without decomposition has no
    `tokens.png`, one without quantization no `codebook.png`.
    """
    if tokens.clips:
        plots.save(plots.token_map(tokens.clips, sounding, classes), reports / "figures" / "tokens.png")
    if tokens.code_counts_CK is not None:
        plots.save(plots.codebook_use(tokens.code_counts_CK, classes), reports / "figures" / "codebook.png")


def read_result(reports: Path) -> Result:
    """Read the folder `reports`; raise `ReportError` for a missing or invalid file."""
    intervals = _json(reports / "intervals.json")
    if "clean" not in intervals:
        raise ReportError(f"{reports / 'intervals.json'}: no condition `clean`; {REMEDY}")
    metrics = {path.stem: _json(path) for path in sorted((reports / "metrics").glob("*.json"))}
    if missing := [name for name in intervals if name not in metrics]:
        raise ReportError(f"{reports / 'metrics' / missing[0]}.json: missing; {REMEDY}")
    sources = reports / "sources.csv"
    figures = {path.stem: path for path in sorted((reports / "figures").glob("*.png"))}
    if not figures:
        raise ReportError(f"{reports / 'figures'}: missing; {REMEDY}")
    return Result(
        metrics={name: metrics[name] for name in intervals},
        intervals=intervals,
        clips=read_table(reports / "clips.csv", ("uid", "condition")),
        classes=read_table(reports / "classes.csv", ("name", "iou", "condition")),
        sources=read_table(sources, ("by", "group", "clips")) if sources.is_file() else None,
        robustness=read_table(reports / "robustness.csv", ("snr",)),
        figures=figures,
        pictures=_pictures(reports / "pictures.npz"),
    )


def read_resamples(reports: Path) -> dict[str, dict[str, np.ndarray]]:
    """The resamples of each metric, by condition and metric; raises `ReportError` if they are missing or damaged."""
    resamples: dict[str, dict[str, np.ndarray]] = {}
    for key, values in _read(reports / RESAMPLES, _arrays, "NPZ").items():
        condition, _, metric = key.partition("/")
        resamples.setdefault(condition, {})[metric] = values
    return resamples


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _concatenate(results: Mapping[str, Evaluation], table: str) -> pandas.DataFrame:
    """The same table of all conditions, with a column `condition`."""
    tables = [getattr(result, table).assign(condition=name) for name, result in results.items()]
    return pandas.concat(tables, ignore_index=True)


def _picture_arrays(pictures: Iterable[Picture]) -> Iterator[tuple[str, np.ndarray]]:
    for picture in pictures:
        yield f"{picture.uid}/images", picture.images_THWC
        yield f"{picture.uid}/truth", picture.truth_THW
        yield f"{picture.uid}/prediction", picture.prediction_THW
        yield f"{picture.uid}/class_probs", picture.class_probs_TC.astype(np.float32)


def _resample_arrays(results: Mapping[str, Evaluation]) -> Iterator[tuple[str, np.ndarray]]:
    for name, result in results.items():
        for key, values in result.resamples.items():
            yield f"{name}/{key}", values
        for (by, group), scores in result.source_resamples.items():
            for key, values in scores.items():
                yield f"{name}/{key}_{by}_{group}", values


def _scores_by_snr(summaries: Mapping[str, Mapping[str, float | None]]) -> Iterator[dict[str, float | None]]:
    for name, summary in summaries.items():
        if name.startswith("snr"):
            yield {"snr": int(name.removeprefix("snr")), **summary}


def _read(path: Path, read: Callable[[Path], _Content], format_name: str) -> _Content:
    """What `read` returns for the file; raises `ReportError` if the file is missing or damaged."""
    try:
        return read(path)
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; {REMEDY}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path}: not a valid {format_name} file ({error}); {REMEDY}") from None


def _json(path: Path) -> dict[str, Any]:
    return _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")), "JSON")


def read_table(path: Path, columns: tuple[str, ...]) -> pandas.DataFrame:
    """A CSV file with at least these `columns`; raises `ReportError`."""
    table = _read(path, pandas.read_csv, "CSV")
    if missing := [name for name in columns if name not in table.columns]:
        raise ReportError(f"{path}: no column {', '.join(missing)}; {REMEDY}")
    return table


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _pictures(path: Path) -> list[Picture]:
    arrays = _read(path, _arrays, "NPZ")
    dimensions = {"images": 4, "truth": 3, "prediction": 3, "class_probs": 2}
    pictures = []
    for uid in dict.fromkeys(key.rpartition("/")[0] for key in arrays):
        if missing := [name for name in dimensions if f"{uid}/{name}" not in arrays]:
            raise ReportError(f"{path}: no array {uid}/{missing[0]}; {REMEDY}")
        fields = {name: arrays[f"{uid}/{name}"] for name in dimensions}
        frames = fields["images"].shape[:1]
        for name, array in fields.items():
            if array.ndim != dimensions[name] or array.shape[:1] != frames:
                raise ReportError(
                    f"{path}: {uid}/{name} has the shape {array.shape}; expected {dimensions[name]} dimensions, "
                    "the first of the length of images"
                )
        pictures.append(
            Picture(uid, fields["images"], fields["truth"], fields["prediction"], class_probs_TC=fields["class_probs"])
        )
    return pictures
