"""A video with the sounding objects marked and named, and its sound.

Shapes: H W pixels, C channels of the sound, S samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from qdformer.inference.masks import bounding_box, davis_palette
from qdformer.inference.segmenter import SecondResult
from qdformer.inference.video import decode_frames, open_sound, read_info, to_rgb
from qdformer.inference.writer import VideoWriter
from qdformer.utils.errors import InputError

TINT = 0.5
"""Share of the class color inside of a mask."""


class Overlay:
    """Draws classes into frames: a tint, an outline, and a text above the largest connected part of the mask.

    Args:
        labels_HW: class of each pixel, 0 for none.
        texts: a text for each class id that is to have one and has at least one pixel.
        colors_C3: a color in 0..1 for each class id, 0 included.
    """

    def __init__(self, labels_HW: np.ndarray, texts: Mapping[int, str], colors_C3: np.ndarray) -> None:
        height, width = labels_HW.shape
        inside_HW = labels_HW > 0
        edge = max(1, round(min(height, width) / 240))
        core_HW = inside_HW.copy()
        for axis in (0, 1):
            for step in (edge, -edge):
                core_HW &= np.roll(labels_HW, step, axis) == labels_HW
        self._inside = np.flatnonzero(inside_HW)
        color_P3 = colors_C3[labels_HW.ravel()[self._inside]] * 255
        share_P1 = np.where(core_HW.ravel()[self._inside], TINT, 1.0)[:, None]
        self._added_P3, self._kept_P1 = color_P3 * share_P1, (1 - share_P1).astype(np.float32)
        self._labels: list[tuple[int, int, np.ndarray]] = []
        taken_HW = np.zeros((height, width), bool)
        for class_id, text in texts.items():
            picture = _label(text, colors_C3[class_id], min(height, width))[:height, :width]
            left, top, _, _ = bounding_box(_largest_part(labels_HW == class_id))
            left = min(left, width - picture.shape[1])
            top = _free_top(taken_HW[:, left : left + picture.shape[1]], top - picture.shape[0], picture.shape[0])
            taken_HW[top : top + picture.shape[0], left : left + picture.shape[1]] = True
            self._labels.append((left, top, picture))

    @classmethod
    def of(cls, result: SecondResult, colors_C3: np.ndarray) -> Overlay:
        """The objects of one second, with names and scores."""
        texts = {item.class_id: f"{item.name} {item.score:.2f}" for item in result.objects}
        return cls(result.semantic_HW, texts, colors_C3)

    def draw(self, image_HWC: np.ndarray) -> np.ndarray:
        """A copy of a frame (uint8, RGB, of the size of the masks) with the objects."""
        drawn = image_HWC.copy()
        pixels_N3 = drawn.reshape(-1, 3)
        pixels_N3[self._inside] = (pixels_N3[self._inside] * self._kept_P1 + self._added_P3).astype(np.uint8)
        for left, top, picture in self._labels:
            drawn[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        return drawn


def write_overlay(
    path: str | Path,
    video: str | Path,
    results: Iterable[SecondResult],
    audio: str | Path | None = None,
    colors_C3: np.ndarray | None = None,
) -> None:
    """Write `video` with the objects of `results` as an MP4 file, at its own resolution and frame times.

    The results are read as the frames need them, so they may be those of `Segmenter.segment` while it works. A mask
    is drawn into all frames of its second. `colors_C3` are the colors of the class ids in 0..1, by default DAVIS's.

    Raises `VideoError` or `AudioError` as `Segmenter.segment` does, and `InputError` if a frame cannot be encoded.
    """
    colors_C3 = davis_palette() / 255 if colors_C3 is None else colors_C3
    info = read_info(video)
    pending = iter(results)
    current = next(pending, None)
    if current is None:
        raise ValueError("an overlay needs the result of at least one second")
    with ExitStack() as stack:
        sound = None
        if audio is not None or info.has_audio:
            sound = stack.enter_context(open_sound(info, audio, "stereo"))
        height, width = current.semantic_HW.shape
        try:
            with VideoWriter(path, (width, height), info.frame_rate, sound.rate if sound else None) as writer:
                overlay = Overlay.of(current, colors_C3)
                for time, _, frame in decode_frames(video):
                    while time >= current.index + 1 and (following := next(pending, None)) is not None:
                        current = following
                        overlay = Overlay.of(current, colors_C3)
                    writer.write_frame(overlay.draw(to_rgb(frame, (width, height))), time)
                    if sound is not None:
                        writer.write_sound(sound.read(writer.samples_until(time)))
                deque(pending, maxlen=0)  # a last second without a frame of its own
                if sound is not None:
                    writer.write_sound(sound.read(writer.samples_until(writer.end)))
        except av.FFmpegError as error:
            raise InputError(f"{video}: the overlay cannot be encoded: {error.strerror or error}") from error


def _largest_part(mask_HW: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask that is not empty."""
    parts_HW, _ = ndimage.label(mask_HW)
    sizes = np.bincount(parts_HW.ravel())
    sizes[0] = 0
    return parts_HW == sizes.argmax()


def _free_top(taken_Hw: np.ndarray, wanted: int, height: int) -> int:
    """The row nearest to `wanted` at which a label of this height fits into the columns and covers no other label.

    If there is none, the nearest at which it fits.
    """
    tops = np.arange(len(taken_Hw) - height + 1)
    covered = np.concatenate([[0], taken_Hw.any(axis=1).cumsum()])
    free = tops[covered[tops + height] == covered[tops]]
    choice = free if len(free) else tops
    return int(choice[np.abs(choice - wanted).argmin()])


def _label(text: str, color_3: np.ndarray, side: int) -> np.ndarray:
    """A small picture, uint8 [h, w, 3], of the text on the color, for frames whose shorter side has `side` pixels."""
    font = ImageFont.load_default(max(10, round(side / 30)))
    margin = max(2, round(side / 240))
    left, top, right, bottom = font.getbbox(text)
    size = (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin)
    background = tuple(int(value) for value in np.round(np.asarray(color_3) * 255))
    ink = "black" if np.dot(color_3, (0.299, 0.587, 0.114)) > 0.5 else "white"
    picture = Image.new("RGB", size, background)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=ink, font=font)
    return np.asarray(picture)
