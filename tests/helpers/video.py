"""Small videos, written with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FRAME_RATE = 64, 48, 10


def frame_of(time: float, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A frame that tells its second by its brightness (40 (second + 1)) and has a dark left half."""
    image = np.full((height, width, 3), min(255, 40 * (int(time) + 1)), np.uint8)
    image[:, : width // 2] = 0
    return image


def write_video(
    path: Path,
    seconds: float = 3,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    sound: bool = True,
    rate: int = 16000,
    layout: str = "mono",
    rotation: int = 0,
    sound_start: float = 0.0,
    times: list[float] | None = None,
) -> Path:
    """Write frames of `frame_of` at FRAME_RATE, or at `times`, with a tone of 440 Hz and amplitude 0.25.

    The codec is MPEG-4, for an odd width or height FFV1, which needs mkv.
    `sound_start`: seconds by which the sound begins after the first frame.
    """
    width, height = size
    with av.open(str(path), "w") as container:
        even = width % 2 == height % 2 == 0
        stream = container.add_stream("mpeg4" if even else "ffv1", rate=FRAME_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p" if even else "yuv444p"
        stream.codec_context.options = {"q:v": "2"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        voice = container.add_stream("aac", rate=rate, layout=layout) if sound else None
        for time in times or [index / FRAME_RATE for index in range(round(seconds * FRAME_RATE))]:
            frame = av.VideoFrame.from_ndarray(frame_of(time, width, height), format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(time * 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if voice is not None:
            count = round((seconds - sound_start) * rate)
            tone = (0.25 * np.sin(2 * np.pi * 440 * np.arange(count) / rate)).astype(np.float32)
            channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
            frame = av.AudioFrame.from_ndarray(np.tile(tone, (channels, 1)), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, round(sound_start * rate)
            frame.time_base = Fraction(1, rate)
            container.mux(voice.encode(frame))
            container.mux(voice.encode(None))
    return path
