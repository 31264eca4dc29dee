"""A video with the sounding objects marked and named, and its sound.

Shapes: H W pixels, C channels of the sound, S samples.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from qdformer.inference.masks import bounding_box, davis_palette
from qdformer.inference.segmenter import SecondResult
from qdformer.inference.video import decode_frames, open_sound, read_info, to_rgb
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.video.stream import VideoStream

    from qdformer.inference.sound import Sound

TINT = 0.5
"""Share of the class color inside of a mask."""
_TIME_BASE = Fraction(1, 60_000)  # exact for the usual frame rates; MPEG-4 Part 2 allows no finer one than 1/65535
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_H264, _FALLBACK = "libx264", "mpeg4"


class Overlay:
    """Draws the objects of one second into frames: a tint, an outline, and the name with its score.

    The name stands above the largest connected part of a mask.
    `colors_C3` holds a color in 0..1 for each class id, 0 included.
    """

    def __init__(self, result: SecondResult, colors_C3: np.ndarray) -> None:
        labels_HW = result.semantic_HW
        height, width = labels_HW.shape
        inside_HW = labels_HW > 0
        edge = max(1, round(min(height, width) / 360))
        core_HW = inside_HW.copy()
        for axis in (0, 1):
            for step in (edge, -edge):
                core_HW &= np.roll(labels_HW, step, axis) == labels_HW
        self._inside = np.flatnonzero(inside_HW)
        color_P3 = colors_C3[labels_HW.ravel()[self._inside]] * 255
        share_P1 = np.where(core_HW.ravel()[self._inside], TINT, 1.0)[:, None]
        self._added_P3, self._kept_P1 = color_P3 * share_P1, (1 - share_P1).astype(np.float32)
        self._labels = []
        for item in result.objects:
            picture = _label(f"{item.name} {item.score:.2f}", colors_C3[item.class_id], height)[:height, :width]
            left, top, _, _ = bounding_box(_largest_part(item.mask_HW))
            top -= picture.shape[0]
            left = min(max(left, 0), width - picture.shape[1])
            top = min(max(top, 0), height - picture.shape[0])
            self._labels.append((left, top, picture))

    def draw(self, image_HWC: np.ndarray) -> np.ndarray:
        """A copy of a frame (uint8, RGB, of the size of the masks) with the objects."""
        drawn = image_HWC.copy()
        pixels_N3 = drawn.reshape(-1, 3)
        pixels_N3[self._inside] = (pixels_N3[self._inside] * self._kept_P1 + self._added_P3).astype(np.uint8)
        for left, top, picture in self._labels:
            drawn[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        return drawn


def video_codec() -> str:
    """FFmpeg's encoder of the overlay: `libx264` (H.264) if PyAV has it, else `mpeg4` (MPEG-4 Part 2)."""
    return _H264 if _H264 in av.codecs_available else _FALLBACK


def write_overlay(
    path: str | Path,
    video: str | Path,
    results: Iterable[SecondResult],
    audio: str | Path | None = None,
    colors_C3: np.ndarray | None = None,
) -> None:
    """Write `video` with the objects of `results` as an MP4 file, at its own resolution and frame times.

    The results are read as the frames need them, so they may be those of `Segmenter.segment` while it works. A mask
    is drawn into all frames of its second. The sound is encoded as stereo AAC. An odd width or height gets one more
    row or column, which 4:2:0 video needs. `colors_C3` are the colors of the class ids in 0..1, by default DAVIS's.

    Raises `VideoError` or `AudioError` as `Segmenter.segment` does, and `InputError` if a frame cannot be encoded.
    """
    colors_C3 = davis_palette() / 255 if colors_C3 is None else colors_C3
    info = read_info(video)
    pending = iter(results)
    current = next(pending, None)
    if current is None:
        raise ValueError("an overlay needs the result of at least one second")
    sound = open_sound(info, audio, "stereo") if audio is not None or info.has_audio else None
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            height, width = current.semantic_HW.shape
            stream = _add_video(container, width, height, info.frame_rate)
            voice = _SoundWriter(container, sound) if sound is not None else None
            overlay, last = Overlay(current, colors_C3), -1
            for time, _, frame in decode_frames(video):
                while time >= current.index + 1 and (following := next(pending, None)) is not None:
                    current = following
                    overlay = Overlay(current, colors_C3)
                last = max(last + 1, round(time / _TIME_BASE))
                drawn_HWC = overlay.draw(to_rgb(frame, (width, height)))
                _encode(container, stream, drawn_HWC, last)
                if voice is not None:
                    voice.write_until(time)
            deque(pending, maxlen=0)  # a last second without a frame of its own
            container.mux(stream.encode(None))
            if voice is not None:
                voice.write_until(float(last * _TIME_BASE) + 1 / info.frame_rate)
                voice.close()
    except av.FFmpegError as error:
        raise InputError(f"{video}: the overlay cannot be encoded: {error.strerror or error}") from error
    finally:
        if sound is not None:
            sound.close()


def _add_video(container: OutputContainer, width: int, height: int, frame_rate: float) -> VideoStream:
    name = video_codec()
    if name == _FALLBACK:
        warnings.warn(f"PyAV has no {_H264}; the overlay is MPEG-4 Part 2, which browsers do not play", stacklevel=3)
    options = {"crf": "20", "preset": "veryfast"} if name == _H264 else {"q:v": "3"}
    rate = Fraction(frame_rate).limit_denominator(1001)
    stream: VideoStream = container.add_stream(name, rate=rate, options=options)  # type: ignore[assignment]
    stream.width, stream.height = width + width % 2, height + height % 2
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = _TIME_BASE
    return stream


def _encode(container: OutputContainer, stream: VideoStream, image_HWC: np.ndarray, pts: int) -> None:
    height, width = image_HWC.shape[:2]
    if height % 2 or width % 2:
        image_HWC = np.pad(image_HWC, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
    frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
    frame.pts, frame.time_base = pts, _TIME_BASE
    container.mux(stream.encode(frame))


class _SoundWriter:
    """Encodes a sound in step with the frames, so that little waits in the container."""

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        self._container, self._sound, self._done = container, sound, 0
        rate = sound.rate if sound.rate in _AAC_RATES else 48_000
        stream: AudioStream = container.add_stream("aac", rate=rate, layout="stereo")  # type: ignore[assignment]
        self._stream = stream

    def write_until(self, time: float) -> None:
        """Write the sound up to `time` seconds."""
        count = round(time * self._sound.rate) - self._done
        if count < 1:
            return
        samples_CS = self._sound.read(count).clip(-1, 1)
        frame = av.AudioFrame.from_ndarray(samples_CS, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = self._sound.rate, self._done, Fraction(1, self._sound.rate)
        self._done += count
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder holds."""
        self._container.mux(self._stream.encode(None))


def _largest_part(mask_HW: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask that is not empty."""
    parts_HW, _ = ndimage.label(mask_HW)
    sizes = np.bincount(parts_HW.ravel())
    sizes[0] = 0
    return parts_HW == sizes.argmax()


def _label(text: str, color_3: np.ndarray, height: int) -> np.ndarray:
    """A small picture of the text on the color, uint8 [h, w, 3]."""
    font = ImageFont.load_default(max(10, round(height / 30)))
    margin = max(2, round(height / 240))
    left, top, right, bottom = font.getbbox(text)
    size = (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin)
    background = tuple(int(value) for value in np.round(np.asarray(color_3) * 255))
    ink = "black" if np.dot(color_3, (0.299, 0.587, 0.114)) > 0.5 else "white"
    picture = Image.new("RGB", size, background)
    ImageDraw.Draw(picture).text((margin - left, margin - top), text, fill=ink, font=font)
    return np.asarray(picture)
