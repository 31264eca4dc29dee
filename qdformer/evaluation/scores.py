"""The accumulators of all protocols, and the tables of their resampled metrics.

Shapes: F labeled frames of one clip, H W pixels, K classes (background first), R resamples, N clips of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pandas

from qdformer.evaluation.result import NEGATIVE_CONDITIONS, SCORES
from qdformer.metrics import (
    AVSBenchScores,
    DavisScores,
    PredictedArea,
    SemanticScores,
    bootstrap_indices,
    confidence_interval,
    g_miou,
)
from qdformer.metrics.semantic import nanmean

if TYPE_CHECKING:
    from qdformer.data.manifest import Classes
    from qdformer.evaluation.result import Evaluation

MAX_SOURCE_GROUP = 3
"""Clips with this number of sounding sources or more form one group."""
_NEGATIVE_METRICS = ("predicted_area", "predicted_frames", "avsbench_j_sounding")


class Scores:
    """The accumulators of all protocols: a few kilobytes per clip, and no pixels.

    `video_batch` is the number of clips over which AVSBench's F averages its curve.
    """

    def __init__(self, classes: Classes, video_batch: int) -> None:
        self.classes, self.video_batch = classes, video_batch
        self.semantic = SemanticScores(len(classes.names) + 1)
        self.avsbench = AVSBenchScores(video_batch)
        self.davis = DavisScores()
        self.predicted_area = PredictedArea()

    def update(
        self,
        semantic_FHW: np.ndarray,
        soft_FHW: np.ndarray,
        truth_FHW: np.ndarray,
        sounding_FHW: np.ndarray,
        ignored_FHW: np.ndarray | None,
        index: int,
    ) -> dict[str, float]:
        """Add the clip at position `index` of the test set; return its own scores."""
        mask_FHW = soft_FHW > 0.5
        return {
            **self.semantic.update(semantic_FHW, truth_FHW, index=index),
            **self.avsbench.update(soft_FHW, sounding_FHW, ignored_FHW, index=index),
            **self.davis.update(mask_FHW, sounding_FHW, ignored_FHW, index=index),
            **self.predicted_area.update(mask_FHW, ignored_FHW, index=index),
        }

    def sync(self) -> None:
        """Collect the clips of all processes of the default group of `torch.distributed`."""
        for scores in (self.semantic, self.avsbench, self.davis, self.predicted_area):
            scores.sync()

    def subset(self, indices: np.ndarray) -> Scores:
        """The accumulators of the clips at `indices` alone."""
        part = Scores(self.classes, self.video_batch)
        part.semantic = self.semantic.subset(indices)
        part.avsbench = self.avsbench.subset(indices)
        part.davis = self.davis.subset(indices)
        part.predicted_area = self.predicted_area.subset(indices)
        return part

    def resample(self, bootstrap: int, seed: int) -> dict[str, np.ndarray]:
        """Every metric of all clips, then of `bootstrap` resamples: float64 [1 + bootstrap]."""
        return resample(self._compute, len(self.davis), bootstrap, seed)

    def _compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
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


def resample(
    compute: Callable[[np.ndarray], dict[str, np.ndarray]], clips: int, bootstrap: int, seed: int
) -> dict[str, np.ndarray]:
    """What `compute` returns for all of `clips` clips, then for `bootstrap` resamples: float64 [1 + bootstrap]."""
    indices = chain([np.arange(clips)[None]], bootstrap_indices(clips, bootstrap, seed))
    parts = [compute(indices_RN) for indices_RN in indices]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def negatives(results: Mapping[str, Evaluation], positive: str = "clean") -> pandas.DataFrame:
    """The scores of AVSBench-Robust for the negative conditions among `results`, evaluations of the same clips.

    One row per negative condition and, if there are several, one for their mean ("all"): condition; fpr
    (`predicted_area`), fpr_frames (`predicted_frames`) and g_miou, as `qdformer.metrics.robustness` defines them, each
    with the limits of its 95 % interval. Empty without a negative condition or without the condition `positive`.
    """
    keys = ("fpr", "fpr_frames", "g_miou")
    rows = []
    if positive in results:
        positive_j = results[positive].resamples["avsbench_j_sounding"]
        found = {name: results[name].resamples for name in NEGATIVE_CONDITIONS if name in results}
        if len(found) > 1:
            parts = list(found.values())
            found["all"] = {key: np.mean([part[key] for part in parts], axis=0) for key in _NEGATIVE_METRICS}
        for name, resamples in found.items():
            area, frames, negative_j = (resamples[key] for key in _NEGATIVE_METRICS)
            values = (area, frames, np.asarray(g_miou(positive_j, negative_j)))
            rows.append({"condition": name} | _with_limits(dict(zip(keys, values, strict=True))))
    columns = [key + limit for key in keys for limit in ("", "_low", "_high")]
    return pandas.DataFrame(rows, columns=["condition", *columns])


def class_table(scores: Scores) -> pandas.DataFrame:
    """`Evaluation.per_class`."""
    values = scores.semantic.class_scores(scores.semantic.all_indices)
    counts = {key: values[key][0].astype(np.int64) for key in ("frames", "intersection", "predicted", "truth", "union")}
    ratios = {key: values[key][0] for key in ("iou", "iou_per_frame", "f_per_frame")}
    names, unseen = ("background", *scores.classes.names), (False, *scores.classes.unseen)
    return pandas.DataFrame({"id": range(len(names)), "name": names, "unseen": unseen} | counts | ratios)


def source_resamples(
    scores: Scores, per_clip: pandas.DataFrame, bootstrap: int, seed: int
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """`Evaluation.source_resamples`, from the scores and the table of the same clips."""
    groups_by = source_groups(per_clip)
    found = {}
    for by, groups in groups_by.items():
        for group in sorted(set(groups)):
            indices = np.flatnonzero(groups == group)
            resamples = scores.subset(indices).resample(bootstrap, seed)
            if np.isnan(resamples["avsbench_j_sounding"][0]):
                resamples["avsbench_f"][:] = np.nan  # AVSBench gives 0 if nothing sounds
            found[by, group] = {key: resamples[key] for key in SCORES}
    return found


def source_groups(per_clip: pandas.DataFrame) -> dict[str, pandas.Series]:
    """The group of each clip of `Evaluation.per_clip`, by each column that defines groups."""
    return {
        "sources": per_clip["sources"].map(
            lambda count: str(count) if count < MAX_SOURCE_GROUP else f"{MAX_SOURCE_GROUP}+"
        ),
        "off_screen": per_clip["off_screen"].map({False: "no", True: "yes"}),
    }


def source_table(
    resamples: Mapping[tuple[str, str], Mapping[str, np.ndarray]], per_clip: pandas.DataFrame
) -> pandas.DataFrame:
    """`Evaluation.per_source`, from `Evaluation.source_resamples` and the table of the same clips."""
    groups_by = source_groups(per_clip)
    return pandas.DataFrame(
        [
            {"by": by, "group": group, "clips": int((groups_by[by] == group).sum())} | _with_limits(values)
            for (by, group), values in resamples.items()
        ]
    )


def resampling_interval(values: np.ndarray) -> dict[str, float | None]:
    """`value` of the whole set, the first of `values`, and `low` and `high`: the 95 % interval of the resamples."""
    low, high = confidence_interval(values[1:])
    return {"value": number(values[0]), "low": number(low), "high": number(high)}


def number(value: float) -> float | None:
    """A plain float for JSON, None for NaN."""
    return None if np.isnan(value) else float(value)


def _with_limits(resamples: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Metrics and the limits of their intervals, by the names of their columns."""
    columns: dict[str, float | None] = {}
    for key, values in resamples.items():
        interval = resampling_interval(values)
        columns |= {key: interval["value"], f"{key}_low": interval["low"], f"{key}_high": interval["high"]}
    return columns
