"""Fetch segments of AudioSet from YouTube with yt-dlp, an optional extra: `pip install --editable '.[audioset]'`.

Audio tracks are downloaded one at a time and at a limited rate. Each is cut to its segment and kept as FLAC in a cache:

    {cache}/clips/{id}_{start in ms}.flac   fetched segments; they are not requested again
    {cache}/gone.txt                        id and reason of each unavailable video; they are not requested again
    {cache}/tracks/                         downloads in progress; an interrupted download is resumed

Three kinds of failure are distinguished. An unavailable video (removed, private, blocked) is recorded and skipped.
An unreachable network, or YouTube rejecting requests, is retried with exponential backoff and finally raises a
`FetchError`. After any other failure the video is skipped in this run; many of them in a row raise a `FetchError`,
because they mean that yt-dlp no longer works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from qdformer.audio.io.read import AudioError
from qdformer.audio.io.write import quantize, write_audio
from qdformer.audio.noise.audioset import AudioSetError, Segment

REQUEST_INTERVAL_SECONDS = 2.0
"""Minimum time between the starts of two requests to YouTube."""
MAX_ATTEMPTS = 5
INITIAL_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 5.0, 120.0
"""Delay before the second attempt; it doubles with each further attempt, up to the maximum."""
MAX_CONSECUTIVE_FAILURES = 5

Outcome = Literal["fetched", "unavailable", "failed"]

# Parts of YouTube's messages, in lower case. Rejections are tested first, because they contain some of the others.
_REJECTED = ("not a bot", "captcha", "rate-limit", "try again later", "too many requests")
_UNAVAILABLE = (
    "video unavailable",
    "video is unavailable",
    "video is not available",
    "private video",
    "video is private",
    "has been removed",
    "has been terminated",
    "no longer available",
    "not made this video available in your country",
    "members-only",
    "join this channel",
    "confirm your age",
    "copyright",
)


class FetchError(AudioSetError):
    """Nothing more can be fetched in this run; the message gives the reason and what to do."""


class Fetcher:
    """Fetches segments into the folder `cache`.

    `now` and `sleep` are the clock, in seconds.
    """

    def __init__(
        self,
        cache: str | Path,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cache = Path(cache)
        self.unavailable = self._read_unavailable()
        self._now, self._sleep = now, sleep
        self._next_request = 0.0
        self._failures = 0

    def cached(self, segment: Segment) -> Path | None:
        """The file of a segment that was fetched before, otherwise None."""
        path = self._path(segment)
        return path if path.is_file() else None

    def fetch(self, segment: Segment) -> tuple[Path | None, Outcome]:
        """Fetch a segment and return its file and 'fetched', or None and 'unavailable' or 'failed'.

        Raises:
            FetchError: yt-dlp is not installed, the network is down, YouTube rejects requests, or many videos failed.
        """
        if segment.youtube_id in self.unavailable:
            return None, "unavailable"
        yt_dlp = _import_yt_dlp()
        wait = INITIAL_BACKOFF_SECONDS
        for attempt in range(1, MAX_ATTEMPTS + 1):
            self._limit_rate()
            try:
                track = self._download_track(yt_dlp, segment.youtube_id)
                _cut(track, segment, self._path(segment))
            except AudioError as error:
                return self._failed(segment, str(error))
            except yt_dlp.utils.YoutubeDLError as error:
                reason = " ".join(str(error).split())
                kind = _failure_kind(yt_dlp, error)
                if kind == "unavailable":
                    self._record_unavailable(segment.youtube_id, reason)
                    return None, "unavailable"
                if attempt < MAX_ATTEMPTS:
                    self._sleep(wait)
                    wait = min(2 * wait, MAX_BACKOFF_SECONDS)
                elif kind == "network":
                    raise FetchError(
                        f"{segment.youtube_id}: YouTube cannot be reached after {MAX_ATTEMPTS} attempts: {reason}."
                        " Fetched segments are kept, and the same command resumes from them"
                    ) from None
                else:
                    return self._failed(segment, reason)
            else:
                track.unlink()
                self._failures = 0
                return self._path(segment), "fetched"
        raise AssertionError("the last attempt returns or raises")

    def _download_track(self, yt_dlp: ModuleType, youtube_id: str) -> Path:
        folder = self.cache / "tracks"
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "format": "bestaudio/best",
            "outtmpl": {"default": str(folder / "%(id)s.%(ext)s")},
            "noplaylist": True,
            "noprogress": True,
            "quiet": True,
            "logger": _NullLogger(),  # all messages are in the exception
            "retries": 0,  # `fetch` retries
            "extractor_retries": 0,
            "socket_timeout": 30,
        }
        with yt_dlp.YoutubeDL(options) as downloader:
            info = downloader.extract_info(f"https://www.youtube.com/watch?v={youtube_id}", download=True)
        return Path(info["requested_downloads"][0]["filepath"])

    def _limit_rate(self) -> None:
        wait = self._next_request - self._now()
        if wait > 0:
            self._sleep(wait)
        self._next_request = self._now() + REQUEST_INTERVAL_SECONDS

    def _failed(self, segment: Segment, reason: str) -> tuple[None, Outcome]:
        self._failures += 1
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise FetchError(
                f"{self._failures} videos failed in a row, the last one was {segment.youtube_id}: {reason}."
                " A newer yt-dlp may help: pip install --upgrade yt-dlp"
            )
        return None, "failed"

    def _path(self, segment: Segment) -> Path:
        return self.cache / "clips" / f"{segment.name}.flac"

    def _read_unavailable(self) -> set[str]:
        path = self.cache / "gone.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return {line.split(maxsplit=1)[0] for line in lines if line.strip()}

    def _record_unavailable(self, youtube_id: str, reason: str) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / "gone.txt").open("a", encoding="utf-8") as file:
            file.write(f"{youtube_id} {reason}\n")
        self.unavailable.add(youtube_id)


def _import_yt_dlp() -> ModuleType:
    try:
        import yt_dlp
        import yt_dlp.networking.exceptions
        import yt_dlp.utils
    except ImportError:
        raise FetchError("noise.fetch needs yt-dlp, an optional extra: pip install --editable '.[audioset]'") from None
    return yt_dlp


def _failure_kind(yt_dlp: ModuleType, error: Exception) -> Literal["unavailable", "network", "other"]:
    reason = str(error).lower()
    cause = (getattr(error, "exc_info", None) or (None, None))[1]
    if any(words in reason for words in _REJECTED):
        return "network"
    if isinstance(cause, yt_dlp.networking.exceptions.HTTPError):  # 403 and 404 concern one video
        return "network" if cause.status == 429 or cause.status >= 500 else "other"
    if isinstance(cause, yt_dlp.networking.exceptions.RequestError):
        return "network"
    return "unavailable" if any(words in reason for words in _UNAVAILABLE) else "other"


def _cut(track: Path, segment: Segment, target: Path) -> None:
    """Write a segment of an audio track as FLAC, with the rate and channels of the track.

    Raises:
        AudioError: the track cannot be read, or ends before the segment starts.
    """
    import av

    blocks = []
    try:
        with av.open(str(track)) as container:
            stream = container.streams.audio[0]
            rate = stream.rate
            container.seek(int(segment.start / (stream.time_base or 1)), stream=stream)
            to_float = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                time = frame.time or 0.0
                if time >= segment.end:
                    break
                for part in to_float.resample(frame):
                    first = max(0, round((segment.start - time) * rate))
                    last = max(0, round((segment.end - time) * rate))
                    blocks.append(part.to_ndarray()[:, first:last])
    except (av.FFmpegError, IndexError) as error:
        track.unlink()
        raise AudioError(f"{track.name}: cannot be read as audio: {error}") from None
    samples = np.concatenate(blocks, axis=1).T if blocks else np.zeros((0, 1), np.float32)
    if not len(samples):
        track.unlink()
        raise AudioError(f"{track.name}: ends before the start of the segment, {segment.start} s")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_audio(target, quantize(samples, 16), sample_rate=rate)


class _NullLogger:
    """A logger for yt-dlp that discards all messages."""

    def debug(self, message: str) -> None:
        pass

    def info(self, message: str) -> None:
        pass

    def warning(self, message: str) -> None:
        pass

    def error(self, message: str) -> None:
        pass
