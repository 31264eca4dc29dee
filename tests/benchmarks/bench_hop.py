"""Windows that overlap: scores over time, flicker and cost on long composed videos with known masks.

The model and VGGish are those of `models/`, the videos films of the test split of `stamps` with all default properties,
`FILMS` of `SECONDS` seconds. The masks of a second are held for the whole second and compared with the truth at
`MOMENTS` moments of it.

- J: IoU of the sounding objects as one mask, 1 where truth and prediction are both empty, mean over all moments.
- mIoU: IoU of each class, intersections and unions summed over all moments, mean over the classes of the films.
- false switches: a class appears in the prediction, or disappears, from one second to the next, and does not in the
  truth of the segmented frames; per minute of video. A class is present with at least `LEAST_AREA` of the frame.
- change: mean 1 - IoU of the segmented area of neighboring seconds. That of the truth is printed beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipelines.environment import PROJECT
from pipelines.predict import load_segmenter
from pipelines.settings import preset_settings
from qdformer.data.film import Film, load_film_assets
from qdformer.inference import ClipPrediction
from qdformer.inference.segmenter import Merge
from qdformer.inference.video import Second
from qdformer.utils.constants import SAMPLE_RATE

FILMS, SECONDS, SIZE = 6, 60, (320, 240)
MOMENTS = (0.1, 0.3, 0.5, 0.7, 0.9)
LEAST_AREA = 0.002


@dataclass
class Scores:
    """Sums over the films of one setting."""

    j: list[float] = field(default_factory=list)
    inter_C: np.ndarray | int = 0
    union_C: np.ndarray | int = 0
    switches: int = 0
    changes: list[float] = field(default_factory=list)
    truth_changes: list[float] = field(default_factory=list)

    def add(self, predicted_THW: np.ndarray, truth_TMHW: np.ndarray, classes: int) -> None:
        for labels_HW, truth_MHW in zip(predicted_THW, truth_TMHW, strict=True):
            for truth_HW in truth_MHW:
                self.j.append(iou(labels_HW > 0, truth_HW > 0))
                both = np.where(labels_HW == truth_HW, labels_HW, 0)
                inter, *areas = (np.bincount(x.ravel(), minlength=classes + 1) for x in (both, labels_HW, truth_HW))
                self.inter_C = self.inter_C + inter
                self.union_C = self.union_C + areas[0] + areas[1] - inter
        shown, true = presence(predicted_THW, classes), presence(truth_TMHW[:, len(MOMENTS) // 2], classes)
        self.switches += int(((shown[1:] != shown[:-1]) & (true[1:] == true[:-1])).sum())
        self.changes += changes(predicted_THW)
        self.truth_changes += changes(truth_TMHW[:, len(MOMENTS) // 2])

    @property
    def miou(self) -> float:
        inter_C, union_C = np.asarray(self.inter_C)[1:], np.asarray(self.union_C)[1:]
        return float((inter_C[union_C > 0] / union_C[union_C > 0]).mean())


def run() -> None:
    """Measure, and print the table."""
    settings = preset_settings()
    segmenter = load_segmenter(settings, PROJECT)
    segmenter.predictor.predict = remembered(segmenter.predictor.predict)  # type: ignore[method-assign]
    assets = load_film_assets(PROJECT / ".cache" / "stamps")
    hops = range(segmenter.clip_frames, 0, -1)
    rules = [
        (hop, merge) for hop in hops for merge in get_args(Merge) if hop < segmenter.clip_frames or merge == "center"
    ]
    scores = {rule: Scores() for rule in rules}
    for seed in tqdm(range(FILMS), desc="films", leave=False):
        film = Film(assets, SECONDS, seed, size=SIZE)
        seconds = list(film_seconds(film))
        truth_TMHW = np.stack([[film.draw(second + at)[1] for at in MOMENTS] for second in range(SECONDS)])
        for hop, merge in rules:
            segmenter.merge = merge
            labels_THW = np.stack([result.semantic_HW for result in segmenter.segment_seconds(seconds, hop)])
            scores[hop, merge].add(labels_THW, truth_TMHW, len(film.classes))
    print_table(scores, segmenter.clip_frames)


def film_seconds(film: Film) -> Iterator[Second]:
    """The seconds of a film without the detour of a file: the frame in the middle, and the sound."""
    sound_S = film.sound()
    for index in range(int(film.seconds)):
        own_S = sound_S[index * SAMPLE_RATE : (index + 1) * SAMPLE_RATE]
        yield Second(index, film.draw(index + 0.5)[0], own_S, SAMPLE_RATE)


def remembered(predict: Callable[..., ClipPrediction]) -> Callable[..., ClipPrediction]:
    """The rules share windows; each is computed once."""
    known: dict[int, ClipPrediction] = {}

    def look_up(frames: np.ndarray, waveform: np.ndarray, sample_rate: int) -> ClipPrediction:
        key = hash(frames.tobytes())
        if key not in known:
            known[key] = predict(frames, waveform, sample_rate)
        return known[key]

    return look_up


def iou(a_HW: np.ndarray, b_HW: np.ndarray) -> float:
    union = int((a_HW | b_HW).sum())
    return int((a_HW & b_HW).sum()) / union if union else 1.0


def presence(labels_THW: np.ndarray, classes: int) -> np.ndarray:
    """Whether a class covers at least `LEAST_AREA` of a frame, bool [T, C + 1]; column 0 is always false."""
    counts = np.stack([np.bincount(labels_HW.ravel(), minlength=classes + 1) for labels_HW in labels_THW])
    shown = counts >= LEAST_AREA * labels_THW[0].size
    shown[:, 0] = False
    return shown


def changes(labels_THW: np.ndarray) -> list[float]:
    return [1 - iou(before > 0, after > 0) for before, after in zip(labels_THW, labels_THW[1:], strict=False)]


def print_table(scores: dict[tuple[int, Merge], Scores], clip_frames: int) -> None:
    minutes = FILMS * SECONDS / 60
    truth = float(np.mean(next(iter(scores.values())).truth_changes))
    title = f"{FILMS} films of {SECONDS} s, windows of {clip_frames} s; change of the truth: {truth:.3f}"
    table = Table("hop, s", "merge", "J", "mIoU", "false switches / min", "change", "windows / s", title=title)
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for (hop, merge), own in scores.items():
        table.add_row(
            str(hop),
            merge if hop < clip_frames else "no overlap",
            f"{np.mean(own.j):.3f}",
            f"{own.miou:.3f}",
            f"{own.switches / minutes:.1f}",
            f"{np.mean(own.changes):.3f}",
            f"{1 / hop:.2f}",
        )
    Console().print(table)
