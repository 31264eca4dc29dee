"""Measure a predictor on a test set under every published protocol at once.

Shapes: B clips, T frames, C object classes, H W pixels, F labelled frames of one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas
import torch

from qdformer.errors import InputError
from qdformer.metrics import AVSBenchScores, DavisScores, SemanticScores, interval, resamples
from qdformer.metrics.semantic import IGNORE, mean_defined

if TYPE_CHECKING:
    from qdformer.data.dataset import Batch
    from qdformer.data.manifest import Classes
    from qdformer.model import Prediction

SCORES = ("miou_dataset", "miou_per_frame", "avsbench_j", "avsbench_f", "davis_j", "davis_f", "davis_jf")
"""The summary's scores, 0..1, in its order. `qdformer.metrics` defines them."""


class EvaluationError(InputError):
    """A prediction or a label map cannot be scored; the message names the clip."""


@dataclass(frozen=True)
class Picture:
    """What the picture grid shows of one clip; unlabelled frames have truth 255, padding is cut off."""

    uid: str
    images_THWC: np.ndarray
    """uint8."""
    truth_THW: np.ndarray
    prediction_THW: np.ndarray
    heard_TC: np.ndarray
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
    """For each figure of `summary` and `groups` its `value` and the ends `low` and `high` of its 95 % bootstrap
    interval over clips. Every resample goes through the figure's own definition: pixel counts are added before
    they are divided, and AVSBench's F is taken over batches of drawn clips.
    """
    per_clip: pandas.DataFrame
    """One row per clip: uid, subset, classes (labelled in it, joined by '_'), unseen (holds an unseen class),
    frames (labelled), and `SCORES` of this clip alone, its mIoUs over the classes that occur in it; `avsbench_f` is
    empty where nothing sounds.
    """
    per_class: pandas.DataFrame
    """One row per class, background first: id, name, unseen, frames (in which it is labelled or predicted), pixels
    (intersection, predicted, truth, union), iou, iou_per_frame, f_per_frame; empty where it never occurs.
    """
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
    """Score `predict` on every labelled frame of `batches`.

    Padding, frames without ground truth and pixels labelled 255 are left out; a clip with nothing left is not
    counted. Batches may be of any size: only a few kilobytes per clip are kept, and the result depends on the
    order of the clips alone, through AVSBench's F over `video_batch` clips at a time.

    `progress` is told after each batch how many clips it held. `manifest` gives the per-clip table its `subset`.
    `picture_uids` are the clips to keep pictures of. Raises `EvaluationError` for a prediction of the wrong
    shape, type or range, for an unknown class id, and if no clip has a labelled frame.
    """
    semantic, avsbench, davis = SemanticScores(len(classes.names) + 1), AVSBenchScores(video_batch), DavisScores()
    subsets = {} if manifest is None else dict(zip(manifest["uid"], manifest["subset"], strict=True))
    rows, pictures = [], []
    for batch in batches:
        with torch.no_grad():
            prediction = predict(batch)
        labels_BTHW = _array(batch.labels_BTHW)
        semantic_BTHW, foreground_BTHW, heard_BTC = _checked(prediction, batch.uids, labels_BTHW.shape, classes)
        valid_BT = _array(batch.valid_BT)
        labelled_BT = valid_BT & _array(batch.labelled_BT)
        for index, uid in enumerate(batch.uids):
            if uid in picture_uids:
                pictures.append(_picture(batch, index, semantic_BTHW[index], heard_BTC[index], labelled_BT[index]))
            kept_F = np.flatnonzero(labelled_BT[index])
            kept_F = kept_F[(labels_BTHW[index, kept_F] != IGNORE).any(axis=(1, 2))]
            if not kept_F.size:
                continue
            area = _image_area(labels_BTHW[index, kept_F])
            truth_FHW = labels_BTHW[index, kept_F][area]
            ignored_FHW = truth_FHW == IGNORE
            present = _present_classes(truth_FHW, ignored_FHW, uid, classes)
            sounding_FHW = (truth_FHW > 0) & ~ignored_FHW
            ignored_FHW = ignored_FHW if ignored_FHW.any() else None
            soft_FHW = foreground_BTHW[index, kept_F][area]
            rows.append(
                {
                    "uid": uid,
                    "subset": subsets.get(uid, ""),
                    "classes": "_".join(classes.names[class_id - 1] for class_id in present),
                    "unseen": any(classes.unseen[class_id - 1] for class_id in present),
                    "frames": len(kept_F),
                    **semantic.update(semantic_BTHW[index, kept_F][area], truth_FHW),
                    **avsbench.update(soft_FHW, sounding_FHW, ignored_FHW),
                    **davis.update(soft_FHW > 0.5, sounding_FHW, ignored_FHW),
                }
            )
        if progress is not None:
            progress(len(batch.uids))
    if not rows:
        raise EvaluationError("nothing to evaluate: no clip has a labelled frame")

    def figures(indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        iou_RK = semantic.class_scores(indices_RN)["iou"]
        unseen_K = np.array([False, *classes.unseen])
        seen_K = np.array([False, *(not value for value in classes.unseen)])
        return {
            **semantic.compute(indices_RN),
            **avsbench.compute(indices_RN),
            **davis.compute(indices_RN),
            "miou_seen": mean_defined(iou_RK[:, seen_K]),
            "miou_unseen": mean_defined(iou_RK[:, unseen_K]),
        }

    everything = np.arange(len(rows))[None]
    values = {key: _number(value_R[0]) for key, value_R in figures(everything).items()}
    spread = {key: interval(value_R) for key, value_R in figures(resamples(len(rows), bootstrap, seed)).items()}
    return Evaluation(
        summary={key: values[key] for key in SCORES} | {"clips": len(rows)},
        groups={key: values[key] for key in ("miou_seen", "miou_unseen", "fscore_per_frame")},
        intervals={
            key: {"value": value, "low": _number(spread[key][0]), "high": _number(spread[key][1])}
            for key, value in values.items()
        },
        per_clip=pandas.DataFrame(rows),
        per_class=_class_table(semantic.class_scores(everything), classes),
        pictures=pictures,
    )


def _checked(
    prediction: Prediction, uids: list[str], shape: tuple[int, ...], classes: Classes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The prediction as arrays on the CPU, if it can be scored."""
    semantic_BTHW, foreground_BTHW = _array(prediction.semantic_BTHW), _array(prediction.foreground_BTHW)
    heard_BTC = _array(prediction.heard_BTC)
    where = f"prediction for clips {', '.join(uids)}"
    wanted = {
        "semantic_BTHW": (semantic_BTHW, shape),
        "foreground_BTHW": (foreground_BTHW, shape),
        "heard_BTC": (heard_BTC, (*shape[:2], len(classes.names))),
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
    return semantic_BTHW, foreground_BTHW, heard_BTC


def _array(values: torch.Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def _image_area(truth_FHW: np.ndarray) -> tuple[slice, slice, slice]:
    """The clip's own frames inside the batch's: what lies right of and below all labels is padding.

    Left in, padding would lend an object cut off by the frame's edge a boundary there, and change DAVIS's
    tolerance, according to which other clips are in the batch.
    """
    labelled_HW = (truth_FHW != IGNORE).any(axis=0)
    height, width = (int(np.flatnonzero(labelled_HW.any(axis=axis))[-1]) + 1 for axis in (1, 0))
    return slice(None), slice(height), slice(width)


def _present_classes(truth_FHW: np.ndarray, ignored_FHW: np.ndarray, uid: str, classes: Classes) -> list[int]:
    seen = np.flatnonzero(np.bincount(truth_FHW[~ignored_FHW].astype(np.int64, copy=False)))
    if seen[-1] > len(classes.names):
        raise EvaluationError(
            f"clip {uid}: unknown class id {seen[-1]} in its labels; expected 0..{len(classes.names)}"
        )
    return [int(class_id) for class_id in seen if class_id]


def _picture(
    batch: Batch, index: int, semantic_THW: np.ndarray, heard_TC: np.ndarray, labelled_T: np.ndarray
) -> Picture:
    kept_T = _array(batch.valid_BT[index])
    truth_THW = np.where(labelled_T[:, None, None], _array(batch.labels_BTHW[index]), IGNORE)
    area = _image_area(truth_THW) if (truth_THW != IGNORE).any() else (slice(None),)
    return Picture(
        uid=batch.uids[index],
        images_THWC=np.moveaxis(_array(batch.images_BTCHW[index]), 1, -1)[kept_T][area].copy(),
        truth_THW=truth_THW[kept_T][area].astype(np.uint8),
        prediction_THW=semantic_THW[kept_T][area].astype(np.uint8),
        heard_TC=heard_TC[kept_T],
    )


def _class_table(scores: dict[str, np.ndarray], classes: Classes) -> pandas.DataFrame:
    counts = {key: scores[key][0].astype(np.int64) for key in ("frames", "intersection", "predicted", "truth", "union")}
    ratios = {key: scores[key][0] for key in ("iou", "iou_per_frame", "f_per_frame")}
    names, unseen = ("background", *classes.names), (False, *classes.unseen)
    return pandas.DataFrame({"id": range(len(names)), "name": names, "unseen": unseen} | counts | ratios)


def _number(value: float) -> float | None:
    """A plain float for JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)
