"""The frames of a video file, one per second with its sound, in bounded memory.

Shapes: H W pixels, S samples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from qdformer.audio.io.container import open_container
from qdformer.inference.sound import Sound, SoundStream
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

FRAME_AT = 0.5
"""Which moment of a second its frame shows: 0 the beginning, 0.5 the middle, 1 the end.

The mask of a second is held for the whole second, so that the middle keeps the distance to the moment it was computed
for below half a second.
"""


class VideoError(InputError):
    """A video is not usable; the message names the file and the problem."""


@dataclass(frozen=True)
class VideoInfo:
    """What the header of a video says. A header can be wrong: only decoding tells the true length."""

    path: Path
    frame_rate: float
    """Mean frames per second; 25 if unknown."""
    start: float
    """Time of the first frame in the file, in seconds."""
    seconds: float | None
    """Duration, None if unknown."""
    has_audio: bool
    width: int
    height: int
    """Of the stored frames in pixels, before a rotation."""


@dataclass(frozen=True)
class Second:
    """One second of a video: a frame (RGB) and the mono sound of this second at the rate of its file."""

    index: int
    frame_HWC: np.ndarray
    sound_S: np.ndarray
    sample_rate: int


def read_info(path: str | Path) -> VideoInfo:
    """Read the header of a video and its first frame. Raises `VideoError` if the file is not usable."""
    with _open(Path(path)) as (container, stream):
        start = next(_decode(container, stream, Path(path)), (None, None))[0]
        if start is None:
            raise VideoError(f"{path}: holds no frames that can be decoded")
        seconds = None
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / av.time_base
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(
            path=Path(path),
            frame_rate=float(rate) if rate else 25.0,
            start=start,
            seconds=seconds,
            has_audio=bool(container.streams.audio),
            width=stream.width,
            height=stream.height,
        )


def decode_frames(path: str | Path) -> Iterator[tuple[float, float, VideoFrame]]:
    """Time, duration (seconds) and picture of each frame, the first at 0, in the order and at the times of display.

    Packets that cannot be decoded are left out, with one warning. Raises `VideoError` if the file is not usable.
    """
    path = Path(path)
    with _open(path) as (container, stream):
        step = float(1 / stream.average_rate) if stream.average_rate else 0.04
        first: float | None = None
        last = -step
        for time, frame in _decode(container, stream, path):
            if time is None:
                time = (first or 0.0) + last + step  # no time stamp
            first = time if first is None else first
            last = max(time - first, last)
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            yield last, length, frame
        if first is None:
            raise VideoError(f"{path}: holds no frames that can be decoded")


def to_rgb(frame: VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """The picture as it is to be displayed, uint8 [H, W, 3]: rotated as the file says.

    A frame whose (width, height) after rotation differs from `size` is scaled to it.
    """
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    width, height = frame.width, frame.height
    if size is not None:
        width, height = size if turns % 2 == 0 else size[::-1]
    image_HWC = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(image_HWC, turns))


def iter_frames(path: str | Path, frame_at: float = FRAME_AT) -> Iterator[np.ndarray]:
    """One frame per second, uint8 [H, W, 3], all of the size of the first.

    Second i has the frame that is displayed at i + `frame_at`. A last, shorter second counts if a frame begins in it;
    it has the last frame if the video ends before i + `frame_at`.
    """
    index, held, end = 0, None, 0.0
    size: tuple[int, int] | None = None
    for time, length, frame in decode_frames(path):
        while held is not None and time > index + frame_at:
            image_HWC = to_rgb(held, size)
            yield image_HWC
            size, index = (image_HWC.shape[1], image_HWC.shape[0]), index + 1
        held, end = frame, max(math.floor(time) + 1, round(time + length))
    while held is not None and index < end:
        yield to_rgb(held, size)
        index += 1


def iter_seconds(
    video: str | Path, audio: str | Path | SoundStream | None = None, frame_at: float = FRAME_AT
) -> Iterator[Second]:
    """The seconds of a video with its own sound, or with that of another file or of a stream.

    The sound of a file or stream begins with the first frame. The start offsets of a video's own tracks are respected.
    Where there is no sound, the samples are zeros; a video without an audio track gives a warning. Raises `VideoError`
    or `AudioError` for a file that cannot be used.
    """
    info = read_info(video)
    if audio is None and not info.has_audio:
        warnings.warn(f"{video}: has no audio track; the prediction is that for silence", stacklevel=2)
        for index, frame_HWC in enumerate(iter_frames(video, frame_at)):
            yield Second(index, frame_HWC, np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
        return
    with closing(audio if isinstance(audio, SoundStream) else open_sound(info, audio)) as sound:
        for index, frame_HWC in enumerate(iter_frames(video, frame_at)):
            yield Second(index, frame_HWC, sound.read(sound.rate)[0], sound.rate)


def open_sound(info: VideoInfo, audio: str | Path | None = None, layout: str = "mono") -> Sound:
    """The sound from the video's first frame on, or that of another file from its beginning."""
    return Sound(info.path, info.start, layout) if audio is None else Sound(audio, None, layout)


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise VideoError(f"{path}: a device or a pipe; expected a file")
    with open_container(path, "a video", VideoError) as container:
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams or container.format.name == "tty":  # FFmpeg draws text files as videos
            raise VideoError(f"{path}: has no video track")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


def _is_cover(stream: VideoStream) -> bool:
    """Whether the stream is a picture that belongs to a sound file."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _decode(container: InputContainer, stream: VideoStream, path: Path) -> Iterator[tuple[float | None, VideoFrame]]:
    damaged = 0
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                damaged += 1
                continue
            for frame in frames:
                yield frame.time, frame
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be read as a video: {error.strerror or error}") from None
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged packets are left out", stacklevel=2)
