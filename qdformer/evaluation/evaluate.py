"""Measure a predictor on a test set under every published protocol at once.

Shapes: B clips, T frames, C object classes, H W pixels, F labeled frames of one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pandas
import torch

from qdformer.metrics import (
    AVSBenchScores,
    DavisScores,
    PredictedArea,
    SemanticScores,
    bootstrap_indices,
    confidence_interval,
    g_miou,
)
from qdformer.metrics.clips import all_gather, gather_by_index
from qdformer.metrics.semantic import nanmean
from qdformer.utils.constants import IGNORE_INDEX
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from qdformer.data.dataset import Batch
    from qdformer.data.manifest import Classes
    from qdformer.models import Prediction

SCORES = ("miou_dataset", "miou_per_frame", "avsbench_j", "avsbench_f", "davis_j", "davis_f", "davis_jf")
"""The summary's scores, 0..1, in its order. `qdformer.metrics` defines them."""
NEGATIVE_CONDITIONS = ("silence", "noise", "offscreen")
"""The conditions in which nothing of what sounds is in the picture."""
_NEGATIVE_METRICS = ("predicted_area", "predicted_frames", "avsbench_j_sounding")
MAX_SOURCE_GROUP = 3
"""From so many sounding sources on, clips are one group."""


class EvaluationError(InputError):
    """A prediction or a label map cannot be scored; the message names the clip."""


@dataclass(frozen=True)
class Picture:
    """What the picture grid shows of one clip; unlabeled frames have truth 255, padding is cut off."""

    uid: str
    images_THWC: np.ndarray
    """uint8."""
    truth_THW: np.ndarray
    prediction_THW: np.ndarray
    class_probs_TC: np.ndarray
    """Probability of each object class being heard."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one predictor on one test set."""

    summary: dict[str, float | int]
    """`SCORES` and `clips`, the number of clips measured. Binary scores take all sounding objects as one."""
    groups: dict[str, float | None]
    """`miou_seen`, `miou_unseen`: dataset-level IoU averaged over the classes of that kind which occur,
    background in neither, None where none occurs; `fscore_per_frame`: AVSS's F-score over all classes.
    """
    intervals: dict[str, dict[str, float | None]]
    """For each figure of `draws` its `value` and the ends, `low` and `high`, of its 95 % interval over clips."""
    draws: dict[str, np.ndarray]
    """The figures of `summary` and `groups`, `avsbench_j_sounding`, `predicted_area` and `predicted_frames`: float64
    [1 + bootstrap], of the whole set and of every resample of it, NaN where undefined. Every resample goes through the
    figure's own definition: pixel counts are added before they are divided, and AVSBench's F is taken over batches of
    drawn clips. Two evaluations of the same clips with the same seed have the same resamples.
    """
    per_clip: pandas.DataFrame
    """One row per clip: uid, subset, classes (labeled in it, joined by '_'), sources (how many classes sound in the
    picture), off_screen (something sounds out of it), unseen (holds an unseen class), frames (labeled), and `SCORES`
    of this clip alone, its mIoUs over the classes that occur in it; `avsbench_f` is empty where nothing sounds; and
    marked, the share of its pixels that is.
    """
    per_class: pandas.DataFrame
    """One row per class, background first: id, name, unseen, frames (in which it is labeled or predicted), pixels
    (intersection, predicted, truth, union), iou, iou_per_frame, f_per_frame; empty where it never occurs.
    """
    per_source: pandas.DataFrame
    """One row per group of clips: by (what tells the groups apart), group, clips, and `SCORES` of these clips alone,
    each with the ends of its 95 % interval, SCORE_low and SCORE_high. The clips are grouped by their number of
    `sources` (0, 1, 2, 3+) and by `off_screen` (no, yes). Empty is what the group does not define.
    """
    confusion: np.ndarray
    """Pixels of each class (rows, background first) that were given each class (columns): int64 [C + 1, C + 1]."""
    pictures: list[Picture]


def evaluate(
    predict: Callable[[Batch], Prediction],
    batches: Iterable[Batch],
    classes: Classes,
    progress: Callable[[int], object] | None = None,
    *,
    manifest: pandas.DataFrame | None = None,
    picture_uids: Collection[str] = (),
    video_batch: int = 4,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score `predict` on every labeled frame of `batches`.

    Padding, frames without ground truth and pixels labeled 255 are left out; a clip with nothing left is not
    counted. Batches may be of any size: only a few kilobytes per clip are kept, and the result depends on the
    order of the clips alone, through AVSBench's F over `video_batch` clips at a time. It is that of `manifest`, or
    without one the order in which they come. Where `torch.distributed` is initialised each process gives its share
    of the clips, and all get the result of the whole.

    `progress` is told after each batch how many clips it held. `manifest` tells also what sounds in the clips and
    their `subset`; a data set that names no classes, such as MS3, counts as one source all that is labeled.
    `picture_uids` are the clips to keep pictures of. Raises `EvaluationError` for a prediction of the wrong
    shape, type or range, for an unknown class id or clip, and if no clip has a labeled frame; `ValueError` where
    several processes are given no manifest.
    """
    if manifest is None and len(all_gather(None)) > 1:
        raise ValueError("several processes need the manifest to agree on the order of the clips")
    clips = {} if manifest is None else {clip.uid: (place, clip) for place, clip in enumerate(manifest.itertuples())}
    scores = _Scores(classes, video_batch)
    rows: dict[int, dict] = {}
    pictures: dict[int, Picture] = {}
    for batch in batches:
        with torch.no_grad():
            prediction = predict(batch)
        labels_BTHW = _array(batch.labels_BTHW)
        semantic_BTHW, foreground_BTHW, class_probs_BTC = _checked(prediction, batch.uids, labels_BTHW.shape, classes)
        valid_BT = _array(batch.valid_BT)
        labeled_BT = valid_BT & _array(batch.labeled_BT)
        for index, uid in enumerate(batch.uids):
            if manifest is not None and uid not in clips:
                raise EvaluationError(f"clip {uid}: not in the manifest; expected one of its {len(manifest)} clips")
            place, clip = clips.setdefault(uid, (len(clips), None))
            if uid in picture_uids:
                pictures[place] = _picture(
                    batch, index, semantic_BTHW[index], class_probs_BTC[index], labeled_BT[index]
                )
            kept_F = np.flatnonzero(labeled_BT[index])
            kept_F = kept_F[(labels_BTHW[index, kept_F] != IGNORE_INDEX).any(axis=(1, 2))]
            if not kept_F.size:
                continue
            area = _image_area(labels_BTHW[index, kept_F])
            truth_FHW = labels_BTHW[index, kept_F][area]
            ignored_FHW = truth_FHW == IGNORE_INDEX
            present = _present_classes(truth_FHW, ignored_FHW, uid, classes)
            sounding_FHW = (truth_FHW > 0) & ~ignored_FHW
            own = scores.update(
                semantic_BTHW[index, kept_F][area],
                foreground_BTHW[index, kept_F][area],
                truth_FHW,
                sounding_FHW,
                ignored_FHW if ignored_FHW.any() else None,
                place,
            )
            rows[place] = {
                "uid": uid,
                "subset": clip.subset if clip else "",
                "classes": "_".join(classes.names[class_id - 1] for class_id in present),
                "sources": max(len(clip.classes) if clip else 0, len(present)),
                "off_screen": bool(clip and clip.off_screen),
                "unseen": any(classes.unseen[class_id - 1] for class_id in present),
                "frames": len(kept_F),
                **{key: own[key] for key in (*SCORES, "predicted_area")},
            }
        if progress is not None:
            progress(len(batch.uids))
    scores.sync()
    rows, pictures = gather_by_index(rows), gather_by_index(pictures)
    if not rows:
        raise EvaluationError("nothing to evaluate: no clip has a labeled frame")

    per_clip = pandas.DataFrame(list(rows.values()))
    draws = scores.draws(bootstrap, seed)
    values = {key: _number(draw[0]) for key, draw in draws.items()}
    return Evaluation(
        summary={key: values[key] for key in SCORES} | {"clips": len(rows)},
        groups={key: values[key] for key in ("miou_seen", "miou_unseen", "fscore_per_frame")},
        intervals={key: _interval(draw) for key, draw in draws.items()},
        draws=draws,
        per_clip=per_clip,
        per_class=_class_table(scores.semantic.class_scores(scores.semantic.all_indices), classes),
        per_source=_source_table(scores, per_clip, bootstrap, seed),
        confusion=scores.semantic.confusion(),
        pictures=list(pictures.values()),
    )


def negatives(results: Mapping[str, Evaluation], positive: str = "clean") -> pandas.DataFrame:
    """AVSBench-Robust's scores of the negatives among `results`: evaluations of the same clips, by condition.

    One row per negative and, where there are several, their mean ("all"): condition; fpr (`predicted_area`), fpr_frames
    (`predicted_frames`) and g_miou, as `qdformer.metrics.robustness` defines them, each with the ends of its 95 %
    interval. Empty without a negative or without the `positive` condition.
    """
    keys = ("fpr", "fpr_frames", "g_miou")
    rows = []
    if positive in results:
        heard = results[positive].draws["avsbench_j_sounding"]
        found = {name: results[name].draws for name in NEGATIVE_CONDITIONS if name in results}
        if len(found) > 1:
            found["all"] = {key: np.mean([draws[key] for draws in found.values()], axis=0) for key in _NEGATIVE_METRICS}
        for name, draws in found.items():
            marked, predicted_frames, unheard = (draws[key] for key in _NEGATIVE_METRICS)
            values = (marked, predicted_frames, g_miou(heard, unheard))
            rows.append({"condition": name} | _with_ends(dict(zip(keys, values, strict=True))))
    return pandas.DataFrame(rows, columns=["condition", *(key + end for key in keys for end in ("", "_low", "_high"))])


@dataclass
class _Scores:
    """The accumulators of all protocols."""

    classes: Classes
    video_batch: int

    def __post_init__(self) -> None:
        self.semantic = SemanticScores(len(self.classes.names) + 1)
        self.avsbench, self.davis, self.predicted_area = (
            AVSBenchScores(self.video_batch),
            DavisScores(),
            PredictedArea(),
        )

    def update(
        self,
        semantic_FHW: np.ndarray,
        soft_FHW: np.ndarray,
        truth_FHW: np.ndarray,
        sounding_FHW: np.ndarray,
        ignored_FHW: np.ndarray | None,
        place: int,
    ) -> dict[str, float]:
        mask_FHW = soft_FHW > 0.5
        return {
            **self.semantic.update(semantic_FHW, truth_FHW, index=place),
            **self.avsbench.update(soft_FHW, sounding_FHW, ignored_FHW, index=place),
            **self.davis.update(mask_FHW, sounding_FHW, ignored_FHW, index=place),
            **self.predicted_area.update(mask_FHW, ignored_FHW, index=place),
        }

    def sync(self) -> None:
        for scores in (self.semantic, self.avsbench, self.davis, self.predicted_area):
            scores.sync()

    def subset(self, indices: np.ndarray) -> _Scores:
        part = _Scores(self.classes, self.video_batch)
        for name in ("semantic", "avsbench", "davis", "predicted_area"):
            setattr(part, name, getattr(self, name).subset(indices))
        return part

    def draws(self, bootstrap: int, seed: int) -> dict[str, np.ndarray]:
        """Every figure of all clips, then of `bootstrap` resamples: float64 [1 + bootstrap]."""
        drawn = chain([self.davis.all_indices], bootstrap_indices(len(self.davis), bootstrap, seed))
        parts = [self._figures(indices_RN) for indices_RN in drawn]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _figures(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        iou_RK = self.semantic.class_scores(indices_RN)["iou"]
        unseen_K = np.array([False, *self.classes.unseen])
        seen_K = np.array([False, *(not value for value in self.classes.unseen)])
        return {
            **self.semantic.compute(indices_RN),
            **self.avsbench.compute(indices_RN),
            **self.davis.compute(indices_RN),
            **self.predicted_area.compute(indices_RN),
            "miou_seen": nanmean(iou_RK[:, seen_K]),
            "miou_unseen": nanmean(iou_RK[:, unseen_K]),
        }


def _checked(
    prediction: Prediction, uids: list[str], shape: tuple[int, ...], classes: Classes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The prediction as arrays on the CPU, if it can be scored."""
    semantic_BTHW, foreground_BTHW = _array(prediction.semantic_BTHW), _array(prediction.foreground_BTHW)
    class_probs_BTC = _array(prediction.class_probs_BTC)
    where = f"prediction for clips {', '.join(uids)}"
    wanted = {
        "semantic_BTHW": (semantic_BTHW, shape),
        "foreground_BTHW": (foreground_BTHW, shape),
        "class_probs_BTC": (class_probs_BTC, (*shape[:2], len(classes.names))),
    }
    for name, (values, expected) in wanted.items():
        if values.shape != expected:
            raise EvaluationError(f"{where}: {name} has shape {list(values.shape)}; expected {list(expected)}")
    if semantic_BTHW.dtype.kind not in "iu":
        raise EvaluationError(f"{where}: semantic_BTHW is {semantic_BTHW.dtype}; expected whole numbers")
    if semantic_BTHW.min() < 0 or semantic_BTHW.max() > len(classes.names):
        raise EvaluationError(f"{where}: semantic_BTHW has a class id outside 0..{len(classes.names)}")
    if not (foreground_BTHW.min() >= 0 and foreground_BTHW.max() <= 1):  # false for NaN as well
        raise EvaluationError(f"{where}: foreground_BTHW must lie in 0..1 and hold no NaN")
    return semantic_BTHW, foreground_BTHW, class_probs_BTC


def _array(values: torch.Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def _image_area(truth_FHW: np.ndarray) -> tuple[slice, slice, slice]:
    """The clip's own frames inside the batch's: what lies right of and below all labels is padding.

    Left in, padding would lend an object cut off by the frame's edge a boundary there, and change DAVIS's
    tolerance, according to which other clips are in the batch.
    """
    labeled_HW = (truth_FHW != IGNORE_INDEX).any(axis=0)
    height, width = (int(np.flatnonzero(labeled_HW.any(axis=axis))[-1]) + 1 for axis in (1, 0))
    return slice(None), slice(height), slice(width)


def _present_classes(truth_FHW: np.ndarray, ignored_FHW: np.ndarray, uid: str, classes: Classes) -> list[int]:
    seen = np.flatnonzero(np.bincount(truth_FHW[~ignored_FHW].astype(np.int64, copy=False)))
    if seen[-1] > len(classes.names):
        raise EvaluationError(
            f"clip {uid}: unknown class id {seen[-1]} in its labels; expected 0..{len(classes.names)}"
        )
    return [int(class_id) for class_id in seen if class_id]


def _picture(
    batch: Batch, index: int, semantic_THW: np.ndarray, class_probs_TC: np.ndarray, labeled_T: np.ndarray
) -> Picture:
    kept_T = _array(batch.valid_BT[index])
    truth_THW = np.where(labeled_T[:, None, None], _array(batch.labels_BTHW[index]), IGNORE_INDEX)
    area = _image_area(truth_THW) if (truth_THW != IGNORE_INDEX).any() else (slice(None),)
    return Picture(
        uid=batch.uids[index],
        images_THWC=np.moveaxis(_array(batch.images_BTCHW[index]), 1, -1)[kept_T][area].copy(),
        truth_THW=truth_THW[kept_T][area].astype(np.uint8),
        prediction_THW=semantic_THW[kept_T][area].astype(np.uint8),
        class_probs_TC=class_probs_TC[kept_T],
    )


def _source_table(scores: _Scores, per_clip: pandas.DataFrame, bootstrap: int, seed: int) -> pandas.DataFrame:
    sources = per_clip["sources"].map(lambda count: str(count) if count < MAX_SOURCE_GROUP else f"{MAX_SOURCE_GROUP}+")
    off_screen = per_clip["off_screen"].map({False: "no", True: "yes"})
    rows = []
    for by, groups in (("sources", sources), ("off_screen", off_screen)):
        for group in sorted(set(groups)):
            chosen = np.flatnonzero(groups == group)
            draws = scores.subset(chosen).draws(bootstrap, seed)
            if np.isnan(draws["avsbench_j_sounding"][0]):
                draws["avsbench_f"][:] = np.nan  # which AVSBench gives as 0 where nothing sounds
            row = {"by": by, "group": group, "clips": len(chosen)}
            rows.append(row | _with_ends({key: draws[key] for key in SCORES}))
    return pandas.DataFrame(rows)


def _with_ends(draws: dict[str, np.ndarray]) -> dict[str, float | None]:
    """The figures with the ends of their intervals, as columns."""
    columns = {}
    for key, draw in draws.items():
        around = _interval(draw)
        columns |= {key: around["value"], f"{key}_low": around["low"], f"{key}_high": around["high"]}
    return columns


def _interval(draw: np.ndarray) -> dict[str, float | None]:
    """The value of the whole set, and the ends of the 95 % interval of its resamples."""
    low, high = confidence_interval(draw[1:])
    return {"value": _number(draw[0]), "low": _number(low), "high": _number(high)}


def _class_table(scores: dict[str, np.ndarray], classes: Classes) -> pandas.DataFrame:
    counts = {key: scores[key][0].astype(np.int64) for key in ("frames", "intersection", "predicted", "truth", "union")}
    ratios = {key: scores[key][0] for key in ("iou", "iou_per_frame", "f_per_frame")}
    names, unseen = ("background", *classes.names), (False, *classes.unseen)
    return pandas.DataFrame({"id": range(len(names)), "name": names, "unseen": unseen} | counts | ratios)


def _number(value: float) -> float | None:
    """A plain float for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)
