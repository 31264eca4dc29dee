"""A trained model on videos of any length, second by second.

Shapes: T frames (one per second), H W pixels, C object classes, S samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qdformer.inference.masks import RunLengths, bounding_box, encode_rle
from qdformer.inference.predictor import Predictor
from qdformer.inference.video import FRAME_AT, Second, iter_seconds


@dataclass(frozen=True)
class SoundingObject:
    """The area of one class in one second."""

    class_id: int
    """1..C."""
    name: str
    score: float
    """Probability that the class sounds and is visible in this second."""
    mask_HW: np.ndarray
    """bool, at the video's resolution; at least one pixel is set."""
    box: tuple[int, int, int, int]
    """Left, top, width and height in pixels, as in COCO."""

    @property
    def rle(self) -> RunLengths:
        """The mask as uncompressed COCO RLE."""
        return encode_rle(self.mask_HW)


@dataclass(frozen=True)
class SecondResult:
    """The prediction for one second of a video, and what it was made from."""

    index: int
    """The second from `index` to `index` + 1 after the first frame."""
    objects: tuple[SoundingObject, ...]
    """The classes with at least one pixel, in the order of their ids."""
    semantic_HW: np.ndarray
    """Class of each pixel, uint8: 0 background, 1..C."""
    class_probs_C: np.ndarray
    """Probability of every class, float32, also of those without a pixel."""
    second: Second
    """The frame and the sound."""

    @property
    def time(self) -> float:
        """Beginning of the second, in seconds after the first frame."""
        return float(self.index)


class Segmenter:
    """Marks and names the sounding objects of a video of any length.

    The model sees clips of the length that it was trained with. A longer video is divided into windows of `clip_frames`
    seconds, each beginning `clip_frames` - `overlap` seconds after the one before. The last window ends with the video
    and has the full length, so it may overlap more. A second in several windows is taken from the one in which it is
    farther from the window's ends (of equally far ones, from the earlier), and in the last window from the first second
    that no earlier window has given. Only the frames and the sound of one window are in memory.

    Args:
        predictor: the model with the input rules of its training.
        clip_frames: seconds of a training clip.
        overlap: seconds that neighboring windows share.
        frame_at: which moment of a second its frame shows, 0 (beginning) to 1 (end).
    """

    def __init__(
        self, predictor: Predictor, clip_frames: int = 5, overlap: int = 0, frame_at: float = FRAME_AT
    ) -> None:
        if clip_frames < 1:
            raise ValueError(f"clip_frames is {clip_frames}; expected at least 1")
        if not 0 <= overlap < clip_frames:
            raise ValueError(f"overlap is {overlap}; expected 0 to clip_frames - 1 = {clip_frames - 1}")
        if not 0 <= frame_at <= 1:
            raise ValueError(f"frame_at is {frame_at}; expected 0 to 1")
        self.predictor = predictor
        self.clip_frames, self.overlap, self.frame_at = clip_frames, overlap, frame_at

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        vggish: str | Path,
        *,
        clip_frames: int = 5,
        overlap: int = 0,
        **input_rules: Any,
    ) -> Segmenter:
        """Load a model and VGGish from the files that training wrote.

        `input_rules` are the keyword arguments of `Predictor.from_checkpoint`: `image_size`, `resize`, `short_clips`,
        `center` and `device`. A checkpoint stores neither them nor `clip_frames`; they are those of the model's
        training. Raises `CheckpointError` or `WeightsError` if a file cannot be used.
        """
        return cls(Predictor.from_checkpoint(checkpoint, vggish, **input_rules), clip_frames, overlap)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the object classes 1..C."""
        return self.predictor.classes.names

    def segment(self, video: str | Path, audio: str | Path | None = None) -> Iterator[SecondResult]:
        """Yield the result of every second of a video file, each once and in order, as soon as it is known.

        Any container, resolution, frame rate and rotation that FFmpeg reads is accepted. The sound is the video's own
        or that of the file `audio`, which begins with the first frame. A video without sound is segmented for silence,
        with a warning.

        Raises:
            VideoError: the video is missing, unreadable, not a video, or has no frames.
            AudioError: the sound is missing or unreadable.
        """
        return self.segment_seconds(iter_seconds(video, audio, self.frame_at))

    def segment_seconds(self, seconds: Iterable[Second]) -> Iterator[SecondResult]:
        """Yield the results of a stream of seconds, which may come from anywhere, as a camera and a microphone.

        Frames must have one size and sounds one rate.
        """
        for window, first, end in windows(seconds, self.clip_frames, self.overlap):
            prediction = self.predictor.predict(
                np.stack([second.frame_HWC for second in window]),
                np.concatenate([second.sound_S for second in window]),
                window[0].sample_rate,
            )
            for place in range(first, end):
                yield self._result(window[place], prediction.semantic_THW[place], prediction.class_probs_TC[place])

    def _result(self, second: Second, semantic_HW: np.ndarray, class_probs_C: np.ndarray) -> SecondResult:
        objects = []
        for class_id in np.unique(semantic_HW[semantic_HW > 0]).tolist():
            mask_HW = semantic_HW == class_id
            score = float(class_probs_C[class_id - 1])
            objects.append(SoundingObject(class_id, self.classes[class_id - 1], score, mask_HW, bounding_box(mask_HW)))
        return SecondResult(second.index, tuple(objects), semantic_HW, class_probs_C, second)


def windows(seconds: Iterable[Second], length: int, overlap: int) -> Iterator[tuple[list[Second], int, int]]:
    """Divide seconds into windows as `Segmenter` states.

    Yields each window, and the places in it from which and up to which (exclusive) its results are used.
    """
    recent: deque[Second] = deque(maxlen=length)
    total = used = 0
    end = length
    for second in seconds:
        if total == end:  # more follows: the later half of the overlap is left to the next window
            stop = length - overlap // 2
            yield list(recent), used - (total - length), stop
            used, end = total - length + stop, end + length - overlap
        recent.append(second)
        total += 1
    if total:
        yield list(recent), used - (total - len(recent)), len(recent)
