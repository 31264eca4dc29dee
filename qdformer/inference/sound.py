"""The sound of a video, decoded step by step and aligned with its frames.

Shapes: S samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from qdformer.audio.io.container import open_container
from qdformer.audio.io.read import AudioError

LARGEST_GAP = 0.1
"""Seconds by which time stamps may differ from the number of samples; a larger gap is filled, a larger overlap cut."""
_STEP = 65536  # samples of silence that are made at a time


class SoundStream:
    """Sound that comes as arrays, as from a microphone; it begins with the first frame of the video.

    Args:
        blocks: float arrays [samples] or [samples, channels] in -1..1 of any lengths; channels are averaged.
        rate: their sample rate in Hz.
    """

    def __init__(self, blocks: Iterable[np.ndarray], rate: int) -> None:
        if rate != int(rate) or rate < 1:
            raise ValueError(f"rate is {rate}; expected a positive integer, in Hz")
        self.rate = int(rate)
        self._blocks = iter(blocks)
        self._rest_CS = np.zeros((1, 0), np.float32)

    def read(self, count: int) -> np.ndarray:
        """The next `count` samples, float32 [1, S]; waits for blocks; zeros follow the end of the stream."""
        taken_CS, self._rest_CS = _take((self._mono(block) for block in self._blocks), self._rest_CS, count)
        return taken_CS

    @staticmethod
    def _mono(block: np.ndarray) -> np.ndarray:
        if block.ndim not in (1, 2) or not np.issubdtype(block.dtype, np.floating) or not np.isfinite(block).all():
            raise AudioError(
                f"a block of sound is {block.dtype} {list(block.shape)}; expected finite float [samples] or "
                "[samples, channels]"
            )
        return np.asarray(block if block.ndim == 1 else block.mean(axis=1), np.float32)[None]

    def close(self) -> None:
        """There is nothing to close: the blocks are the caller's."""


class Sound:
    """The first audio track of a file, in bounded memory.

    Args:
        path: an audio file, or a video with sound, that FFmpeg reads.
        origin: time in the file, in seconds, of the first sample that `read` returns; sound before it is left out, and
            silence precedes a track that begins later. None: the track's own beginning.
        layout: `mono` averages the channels, `stereo` mixes them to two.

    Raises:
        AudioError: the file is missing or unreadable or has no audio track.
    """

    def __init__(self, path: str | Path, origin: float | None = None, layout: str = "mono") -> None:
        self.path, self._origin, self._layout = Path(path), origin, layout
        self._open = ExitStack()
        self._container = self._open.enter_context(open_container(self.path, "audio", AudioError))
        if not self._container.streams.audio or not self._container.streams.audio[0].rate:
            self.close()
            raise AudioError(f"{path}: has no audio track")
        self.rate: int = self._container.streams.audio[0].rate
        """Sample rate in Hz."""
        self._blocks = self._aligned()
        self._rest_CS = np.zeros((self.channels, 0), np.float32)

    @property
    def channels(self) -> int:
        return 1 if self._layout == "mono" else 2

    def __enter__(self) -> Sound:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def read(self, count: int) -> np.ndarray:
        """The next `count` samples, float32 [channels, S]; zeros follow the end of the track.

        Raises `AudioError` for a sample that is NaN or infinite.
        """
        taken_CS, self._rest_CS = _take(self._blocks, self._rest_CS, count)
        return taken_CS

    def _aligned(self) -> Iterator[np.ndarray]:
        """The decoded blocks, with gaps of the time stamps filled by silence and overlaps cut."""
        done, tolerance = 0, 0.0  # the first block is placed exactly
        for time, block_CS in self._decode():
            if not np.isfinite(block_CS).all():
                raise AudioError(f"{self.path}: holds samples that are NaN or infinite")
            if time is not None:
                if self._origin is None:
                    self._origin = time
                offset = round((time - self._origin) * self.rate) - done
                if offset > tolerance:
                    for start in range(0, offset, _STEP):
                        yield np.zeros((self.channels, min(_STEP, offset - start)), np.float32)
                    done += offset
                elif offset < -tolerance:
                    block_CS = block_CS[:, -offset:]
            done += block_CS.shape[1]
            if done > 0:
                tolerance = LARGEST_GAP * self.rate
            yield block_CS

    def _decode(self) -> Iterator[tuple[float | None, np.ndarray]]:
        """Time and samples [channels, S] of each decoded frame; packets that cannot be decoded are left out."""
        stream = self._container.streams.audio[0]
        resampler, form = None, None
        layout = None if self._layout == "mono" else self._layout
        try:
            for packet in self._container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue
                for frame in frames:
                    if form != (own := (frame.format.name, frame.layout.name, frame.sample_rate)) or resampler is None:
                        resampler, form = av.AudioResampler("fltp", layout, self.rate), own
                    time = frame.time
                    for part in resampler.resample(frame):
                        samples_CS = part.to_ndarray()
                        if self._layout == "mono":
                            samples_CS = samples_CS.mean(axis=0, keepdims=True, dtype=np.float32)
                        yield time, samples_CS
                        time = None
        except (av.FFmpegError, OSError) as error:
            raise AudioError(f"{self.path}: cannot be read as audio: {error.strerror or error}") from None


def _take(blocks: Iterator[np.ndarray], rest_CS: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The next `count` samples of `rest_CS` and the blocks that follow it, and the new rest; zeros follow the end."""
    parts, length = [rest_CS], rest_CS.shape[1]
    while length < count:
        block_CS = next(blocks, None)
        if block_CS is None:
            block_CS = np.zeros((len(rest_CS), count - length), np.float32)
        parts.append(block_CS)
        length += block_CS.shape[1]
    joined_CS = np.concatenate(parts, axis=1)
    return np.ascontiguousarray(joined_CS[:, :count]), joined_CS[:, count:].copy()
