"""The result of an evaluation: scores with their resamples, tables, and pictures of selected clips.

Shapes: T frames, C object classes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas

from qdformer.metrics.decomposition import SOUNDING_METRICS, TOKEN_METRICS

SCORES = ("miou_dataset", "miou_per_frame", "avsbench_j", "avsbench_f", "davis_j", "davis_f", "davis_jf")
"""The scores of a summary in their order, each in 0..1. `qdformer.metrics` defines them."""
DECOMPOSITION = (*SOUNDING_METRICS, *TOKEN_METRICS)
"""The metrics of the decomposition in their order; `qdformer.metrics.decomposition` defines them."""
AUDIO_CONTROLS = ("probe", "probe_visible", "tracks")
"""The controls that score the classes by their sound alone, each the prefix of its `SOUNDING_METRICS`;
`qdformer.evaluation.probe` describes them.
"""
NEGATIVE_CONDITIONS = ("silence", "noise", "offscreen")
"""The conditions whose sound belongs to nothing in the picture."""


@dataclass(frozen=True)
class Picture:
    """One clip as the figures show it; unlabeled frames have truth 255, padding is cut off."""

    uid: str
    images_THWC: np.ndarray
    """uint8."""
    truth_THW: np.ndarray
    prediction_THW: np.ndarray
    class_probs_TC: np.ndarray
    """Probability that each object class sounds and is visible."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one predictor on one test set."""

    summary: dict[str, float | int | None]
    """`SCORES`, `DECOMPOSITION`, `SOUNDING_METRICS` of each control with its name as prefix, and `clips`, the number of
    evaluated clips. Binary scores treat all sounding objects as one.
    """
    groups: dict[str, float | None]
    """`miou_seen`, `miou_unseen`: dataset-level IoU averaged over the classes of that kind which occur, without the
    background, None if none occurs; `fscore_per_frame`: AVSS's F-score over all classes.
    """
    intervals: dict[str, dict[str, float | None]]
    """The `value` of each metric of `resamples` and the limits, `low` and `high`, of its 95 % interval over clips."""
    resamples: dict[str, np.ndarray]
    """The metrics of `summary` and `groups`, `avsbench_j_sounding`, `predicted_area` and `predicted_frames`: float64
    [1 + bootstrap], of the whole set and of every resample of it, NaN where undefined. Every resample is computed by
    the metric's own definition: pixel counts are added before they are divided, and AVSBench's F is taken over batches
    of resampled clips. Two evaluations of the same clips with the same seed have the same resamples.
    """
    per_clip: pandas.DataFrame
    """One row per clip: uid, subset, classes (those labeled in it, joined by '_'), sources (number of classes that
    sound and are visible), off_screen (something outside of the frame sounds), unseen (has an unseen class), frames
    (labeled), `SCORES` of this clip alone, the mIoUs over the classes that occur in it (`avsbench_f` is empty where
    nothing sounds), and predicted_area, the predicted share of its pixels.
    """
    per_class: pandas.DataFrame
    """One row per class, background first: id, name, unseen, frames (in which it is labeled or predicted), pixels
    (intersection, predicted, truth, union), iou, iou_per_frame, f_per_frame; empty if it never occurs.
    """
    per_source: pandas.DataFrame
    """One row per group of clips: by (the column that defines the groups), group, clips, and `SCORES` of these clips
    alone, each with the limits of its 95 % interval, SCORE_low and SCORE_high. The clips are grouped by their number
    of `sources` (0, 1, 2, 3+) and by `off_screen` (no, yes). Scores that a group does not define are empty.
    """
    source_resamples: dict[tuple[str, str], dict[str, np.ndarray]]
    """(by, group) of `per_source` -> `SCORES` of the group's clips and of every resample of them, as `resamples`."""
    confusion: np.ndarray
    """Pixels by true class (rows, background first) and predicted class (columns): int64 [C + 1, C + 1]."""
    pictures: list[Picture]
