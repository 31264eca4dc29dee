"""Writes MP4 files: frames at any times, with sound.

Shapes: H W pixels, C channels of the sound, S samples.
"""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import av
import numpy as np

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.video.stream import VideoStream

_TIME_BASE = Fraction(1, 60_000)  # exact for the usual frame rates; MPEG-4 Part 2 allows no finer one than 1/65535
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_H264, _FALLBACK = "libx264", "mpeg4"


def video_codec() -> str:
    """FFmpeg's encoder of the videos: `libx264` (H.264) if PyAV has it, else `mpeg4` (MPEG-4 Part 2)."""
    return _H264 if _H264 in av.codecs_available else _FALLBACK


class VideoWriter:
    """An MP4 file for the duration of a `with` block; the moving of the index to its front comes last.

    Args:
        path: the file.
        size: width and height; an odd one gets one more column or row, which 4:2:0 video needs.
        frame_rate: mean frames per second.
        sound_rate: sample rate of the sound in Hz, None for no sound. It is encoded as stereo AAC, at 48 kHz if AAC
            does not have this rate.
    """

    def __init__(
        self, path: str | Path, size: tuple[int, int], frame_rate: float, sound_rate: int | None = None
    ) -> None:
        self.size, self.frame_rate, self.sound_rate = size, frame_rate, sound_rate
        self.end = 0.0
        """Time at which the last frame ends."""
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "faststart"})
        self._video, self._last = self._add_video(), -1
        self._audio: AudioStream | None = None
        self._written = 0
        if sound_rate is not None:
            rate = sound_rate if sound_rate in _AAC_RATES else 48_000
            self._audio = self._container.add_stream("aac", rate=rate, layout="stereo")  # type: ignore[assignment]

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._container.mux(self._video.encode(None))
                if self._audio is not None:
                    self._container.mux(self._audio.encode(None))
        finally:
            self._container.close()

    def write_frame(self, image_HWC: np.ndarray, time: float) -> None:
        """Write a frame (uint8, RGB) that is displayed from `time` on, in seconds; times rise."""
        height, width = image_HWC.shape[:2]
        if height % 2 or width % 2:
            image_HWC = np.pad(image_HWC, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        self._last = max(self._last + 1, round(time / _TIME_BASE))
        frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
        frame.pts, frame.time_base = self._last, _TIME_BASE
        self._container.mux(self._video.encode(frame))
        self.end = float(self._last * _TIME_BASE) + 1 / self.frame_rate

    def samples_until(self, time: float) -> int:
        """The number of samples from the end of the written sound to a time in seconds."""
        return max(0, round(time * (self.sound_rate or 0)) - self._written)

    def write_sound(self, samples_CS: np.ndarray) -> None:
        """Write the samples, float32 [1 or 2, S], that follow those written before."""
        if self._audio is None or not samples_CS.size:
            return
        stereo_CS = np.broadcast_to(samples_CS, (2, samples_CS.shape[1])).clip(-1, 1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(stereo_CS), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = self.sound_rate or 0, self._written
        frame.time_base = Fraction(1, self.sound_rate or 1)
        self._written += samples_CS.shape[1]
        self._container.mux(self._audio.encode(frame))

    def _add_video(self) -> VideoStream:
        name = video_codec()
        if name == _FALLBACK:
            warnings.warn(f"PyAV has no {_H264}; the video is MPEG-4 Part 2, which browsers do not play", stacklevel=4)
        # With B-frames, FFmpeg states a too short track for frames at irregular times, and players stop early.
        options = {"crf": "20", "preset": "veryfast", "bf": "0"} if name == _H264 else {"q:v": "3"}
        rate = Fraction(self.frame_rate).limit_denominator(1001)
        stream: VideoStream = self._container.add_stream(name, rate=rate, options=options)  # type: ignore[assignment]
        width, height = self.size
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = _TIME_BASE
        return stream
