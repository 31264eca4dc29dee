"""Evaluate a predictor on a test set under every published protocol at once.

Shapes: B clips, T frames, C object classes, H W pixels, F labeled frames of one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
import torch

from qdformer.evaluation.decomposition import DecompositionScores
from qdformer.evaluation.result import SCORES, Evaluation, Picture
from qdformer.evaluation.scores import (
    Scores,
    class_table,
    number,
    resampling_interval,
    source_resamples,
    source_table,
)
from qdformer.evaluation.tokens import BatchTokens, to_array
from qdformer.metrics.clips import all_gather, gather_by_index
from qdformer.metrics.decomposition import frame_sources
from qdformer.utils.constants import IGNORE_INDEX
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from qdformer.data.dataset import Batch
    from qdformer.data.manifest import Classes
    from qdformer.evaluation.decomposition import ClassScores
    from qdformer.models import Prediction


class EvaluationError(InputError):
    """A prediction or a label map cannot be scored; the message names the clip."""


def evaluate(
    predict: Callable[[Batch], Prediction],
    batches: Iterable[Batch],
    classes: Classes,
    progress: Callable[[int], object] | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Evaluation:
    """Score `predict` on every labeled frame of `batches`.

    Args:
        predict: returns the prediction for a batch, at the size of its images.
        progress: called after each batch with its number of clips.
        bootstrap, seed: as for `Evaluator.result`.
        options: of `Evaluator`.

    Raises:
        EvaluationError: as `Evaluator.update` and `Evaluator.result`.
    """
    evaluator = Evaluator(classes, **options)
    for batch in batches:
        with torch.no_grad():
            evaluator.update(batch, predict(batch))
        if progress is not None:
            progress(len(batch.uids))
    return evaluator.result(bootstrap, seed)


class Evaluator:
    """Collects the scores of predictions, batch by batch.

    Padding, frames without ground truth and pixels labeled 255 are left out; a clip without any other pixel is not
    counted. Batches may be of any size: the result depends on the order of the clips alone, which matters for
    AVSBench's F over `video_batch` clips at a time. The order is that of `manifest`, or, without one, that of the
    batches. With `torch.distributed` initialized, each process evaluates its share of the clips, and every process
    returns the result of all.

    Args:
        classes: the object classes of the label maps.
        manifest: tells the `subset` of the clips and which classes sound in them. For a data set without class names,
            such as MS3, everything labeled counts as one source.
        picture_uids: the clips whose pictures are kept.
        class_scores: scores of the classes that do not come from the predictions, by the name of the control. Their
            metrics of the sounding classes become part of the result, with the name as prefix.

    Raises:
        ValueError: there are several processes, and no manifest.
    """

    def __init__(
        self,
        classes: Classes,
        *,
        manifest: pandas.DataFrame | None = None,
        picture_uids: Collection[str] = (),
        class_scores: Mapping[str, ClassScores] = MappingProxyType({}),
        video_batch: int = 4,
    ) -> None:
        if manifest is None and len(all_gather(None)) > 1:
            raise ValueError("several processes need the manifest to agree on the order of the clips")
        self.classes = classes
        self.manifest = manifest
        self.picture_uids = picture_uids
        self._clips: dict[str, tuple[int, Any]] = {}
        if manifest is not None:
            self._clips = {clip.uid: (position, clip) for position, clip in enumerate(manifest.itertuples())}
        self._scores = Scores(classes, video_batch)
        self._decomposition = DecompositionScores(len(classes.names), class_scores)
        self._rows: dict[int, dict[str, object]] = {}
        self._pictures: dict[int, Picture] = {}

    def update(self, batch: Batch, prediction: Prediction) -> None:
        """Score the prediction for a batch.

        Raises:
            EvaluationError: the prediction has a wrong shape, type or range; a class id or clip is unknown.
        """
        labels_BTHW = to_array(batch.labels_BTHW)
        semantic_BTHW, foreground_BTHW, class_probs_BTC = _checked(
            prediction, batch.uids, labels_BTHW.shape, self.classes
        )
        tokens = BatchTokens.of(prediction.output)
        labeled_BT = to_array(batch.valid_BT) & to_array(batch.labeled_BT)
        for index, uid in enumerate(batch.uids):
            position, clip = self._find(uid)
            if uid in self.picture_uids:
                self._pictures[position] = _picture(
                    batch, index, semantic_BTHW[index], class_probs_BTC[index], labeled_BT[index]
                )
            kept_F = np.flatnonzero(labeled_BT[index])
            kept_F = kept_F[(labels_BTHW[index, kept_F] != IGNORE_INDEX).any(axis=(1, 2))]
            if not kept_F.size:
                continue
            area = _image_area(labels_BTHW[index, kept_F])
            truth_FHW = labels_BTHW[index, kept_F][area]
            ignored_FHW = truth_FHW == IGNORE_INDEX
            present = _present_classes(truth_FHW, ignored_FHW, uid, self.classes)
            present_FC = frame_sources(truth_FHW, len(self.classes.names))
            self._decomposition.update(uid, class_probs_BTC[index], tokens, index, kept_F, present_FC, position)
            own = self._scores.update(
                semantic_BTHW[index, kept_F][area],
                foreground_BTHW[index, kept_F][area],
                truth_FHW,
                (truth_FHW > 0) & ~ignored_FHW,
                ignored_FHW if ignored_FHW.any() else None,
                position,
            )
            self._rows[position] = {
                "uid": uid,
                "subset": clip.subset if clip else "",
                "classes": "_".join(self.classes.names[class_id - 1] for class_id in present),
                "sources": max(len(clip.classes) if clip else 0, len(present)),
                "off_screen": bool(clip and clip.off_screen),
                "unseen": any(self.classes.unseen[class_id - 1] for class_id in present),
                "frames": len(kept_F),
                **{key: own[key] for key in (*SCORES, "predicted_area")},
            }

    def result(self, bootstrap: int = 1000, seed: int = 0) -> Evaluation:
        """The metrics of all clips, of all processes, with intervals from `bootstrap` resamples of the clips.

        Raises:
            EvaluationError: no clip has a labeled frame.
        """
        scores, decomposition = self._scores, self._decomposition
        scores.sync()
        decomposition.sync()
        rows, pictures = gather_by_index(self._rows), gather_by_index(self._pictures)
        if not rows:
            raise EvaluationError("nothing to evaluate: no clip has a labeled frame")

        per_clip = pandas.DataFrame(list(rows.values()))
        decomposed = decomposition.resample(bootstrap, seed)
        resamples = scores.resample(bootstrap, seed) | decomposed
        by_sources = source_resamples(scores, per_clip, bootstrap, seed)
        values = {key: number(resampled[0]) for key, resampled in resamples.items()}
        return Evaluation(
            summary={key: values[key] for key in (*SCORES, *decomposed)} | {"clips": len(rows)},
            groups={key: values[key] for key in ("miou_seen", "miou_unseen", "fscore_per_frame")},
            intervals={key: resampling_interval(resampled) for key, resampled in resamples.items()},
            resamples=resamples,
            per_clip=per_clip,
            per_class=class_table(scores),
            per_source=source_table(by_sources, per_clip),
            source_resamples=by_sources,
            confusion=scores.semantic.confusion(),
            pictures=list(pictures.values()),
        )

    def _find(self, uid: str) -> tuple[int, Any]:
        """Position of a clip, and its row of the manifest."""
        if self.manifest is not None and uid not in self._clips:
            raise EvaluationError(f"clip {uid}: not in the manifest; expected one of its {len(self.manifest)} clips")
        return self._clips.setdefault(uid, (len(self._clips), None))


def _checked(
    prediction: Prediction, uids: list[str], shape: tuple[int, ...], classes: Classes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The prediction as arrays on the CPU; raise `EvaluationError` if it cannot be scored."""
    semantic_BTHW, foreground_BTHW = to_array(prediction.semantic_BTHW), to_array(prediction.foreground_BTHW)
    class_probs_BTC = to_array(prediction.class_probs_BTC)
    where = f"prediction for clips {', '.join(uids)}"
    expected_shapes = {
        "semantic_BTHW": (semantic_BTHW, shape),
        "foreground_BTHW": (foreground_BTHW, shape),
        "class_probs_BTC": (class_probs_BTC, (*shape[:2], len(classes.names))),
    }
    for name, (values, expected) in expected_shapes.items():
        if values.shape != expected:
            raise EvaluationError(f"{where}: {name} has shape {list(values.shape)}; expected {list(expected)}")
    if semantic_BTHW.dtype.kind not in "iu":
        raise EvaluationError(f"{where}: semantic_BTHW is {semantic_BTHW.dtype}; expected integers")
    if semantic_BTHW.min() < 0 or semantic_BTHW.max() > len(classes.names):
        raise EvaluationError(f"{where}: semantic_BTHW has a class id outside 0..{len(classes.names)}")
    for name, values in {"foreground_BTHW": foreground_BTHW, "class_probs_BTC": class_probs_BTC}.items():
        if not (values.min() >= 0 and values.max() <= 1):  # also false for NaN
            raise EvaluationError(f"{where}: {name} must lie in 0..1 and hold no NaN")
    return semantic_BTHW, foreground_BTHW, class_probs_BTC


def _image_area(truth_FHW: np.ndarray) -> tuple[slice, slice, slice]:
    """The area of the clip's own frames in the batch: everything right of and below all labels is padding.

    With the padding, an object at the frame's edge would have a boundary there, and DAVIS's tolerance, which depends
    on the size, would depend on the other clips of the batch.
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
    kept_T = to_array(batch.valid_BT[index])
    truth_THW = np.where(labeled_T[:, None, None], to_array(batch.labels_BTHW[index]), IGNORE_INDEX)
    area = _image_area(truth_THW) if (truth_THW != IGNORE_INDEX).any() else (slice(None),)
    return Picture(
        uid=batch.uids[index],
        images_THWC=np.moveaxis(to_array(batch.images_BTCHW[index]), 1, -1)[kept_T][area].copy(),
        truth_THW=truth_THW[kept_T][area].astype(np.uint8),
        prediction_THW=semantic_THW[kept_T][area].astype(np.uint8),
        class_probs_TC=class_probs_TC[kept_T],
    )
