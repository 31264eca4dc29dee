"""Fetch segments of AudioSet from YouTube with yt-dlp, an optional extra: `pip install --editable '.[audioset]'`.

One sound track at a time, at a limited rate, each cut to its segment and kept as FLAC in a cache:

    {cache}/clips/{id}_{start in ms}.flac   what was fetched; not asked for again
    {cache}/gone.txt                        id and reason of every video that is gone; not asked for again
    {cache}/tracks/                         what is under way; an interrupted download goes on from there

Three things can go wrong, and are told apart: a video that is gone (removed, private, blocked) is written down
and passed over; a network or a YouTube that turns us away is waited for, twice as long each time, and then ends the
fetch with a `FetchError`; any other failure of one video is passed over this time, and `FetchError` if many follow
one another, for then it is yt-dlp that no longer works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Literal

import numpy as np

from qdformer.audio.io.read import AudioError
from qdformer.audio.io.write import quantize, write_audio
from qdformer.audio.noise.audioset import AudioSetError, Segment

REQUEST_INTERVAL_SECONDS = 2.0
"""From the start of one request to YouTube to that of the next, at least."""
MAX_ATTEMPTS = 5
INITIAL_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 5.0, 120.0
"""Seconds before the second try, doubled before each further one up to the longest."""
MAX_CONSECUTIVE_FAILURES = 5

Outcome = Literal["fetched", "gone", "failed"]

# What YouTube says, in lower case. Being turned away is looked for first: its words contain some of the others.
_TURNED_AWAY = ("not a bot", "captcha", "rate-limit", "try again later", "too many requests")
_GONE = (
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
    """Nothing more can be fetched now; the message says why and what to do."""


class Fetcher:
    """Fetches segments into `cache`, one call for each.

    `now` and `sleep` are the clock, in seconds.
    """

    def __init__(
        self,
        cache: str | Path,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cache = Path(cache)
        self.gone = self._read_gone()
        self._now, self._sleep = now, sleep
        self._next_request = 0.0
        self._failures = 0

    def cached(self, segment: Segment) -> Path | None:
        """The segment's file, if it was fetched before."""
        path = self._path(segment)
        return path if path.is_file() else None

    def fetch(self, segment: Segment) -> tuple[Path | None, Outcome]:
        """Fetch a segment: its file and 'fetched', or None and 'gone' or 'failed'.

        Raises:
            FetchError: yt-dlp is not installed, the network is down, YouTube turns us away, or nothing works.
        """
        if segment.youtube_id in self.gone:
            return None, "gone"
        yt_dlp = _import_yt_dlp()
        wait = INITIAL_BACKOFF_SECONDS
        for attempt in range(1, MAX_ATTEMPTS + 1):
            self._keep_rate()
            try:
                track = self._download(yt_dlp, segment.youtube_id)
                _cut(track, segment, self._path(segment))
            except AudioError as error:
                return self._failed(segment, str(error))
            except yt_dlp.utils.YoutubeDLError as error:
                reason = " ".join(str(error).split())
                kind = _kind(yt_dlp, error)
                if kind == "gone":
                    self._write_gone(segment.youtube_id, reason)
                    return None, "gone"
                if attempt < MAX_ATTEMPTS:
                    self._sleep(wait)
                    wait = min(2 * wait, MAX_BACKOFF_SECONDS)
                elif kind == "network":
                    raise FetchError(
                        f"{segment.youtube_id}: YouTube cannot be reached after {MAX_ATTEMPTS} tries: {reason}."
                        " What was fetched is kept: the same command goes on from here"
                    ) from None
                else:
                    return self._failed(segment, reason)
            else:
                track.unlink()
                self._failures = 0
                return self._path(segment), "fetched"
        raise AssertionError("the last try returns or raises")

    def _download(self, yt_dlp: ModuleType, youtube_id: str) -> Path:
        folder = self.cache / "tracks"
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "format": "bestaudio/best",
            "outtmpl": {"default": str(folder / "%(id)s.%(ext)s")},
            "noplaylist": True,
            "noprogress": True,
            "quiet": True,
            "logger": _SILENT,  # what it has to say is in the exception
            "retries": 0,  # the tries and waits are ours
            "extractor_retries": 0,
            "socket_timeout": 30,
        }
        with yt_dlp.YoutubeDL(options) as downloader:
            info = downloader.extract_info(f"https://www.youtube.com/watch?v={youtube_id}", download=True)
        return Path(info["requested_downloads"][0]["filepath"])

    def _keep_rate(self) -> None:
        if (early := self._next_request - self._now()) > 0:
            self._sleep(early)
        self._next_request = self._now() + REQUEST_INTERVAL_SECONDS

    def _failed(self, segment: Segment, reason: str) -> tuple[None, Outcome]:
        self._failures += 1
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            raise FetchError(
                f"{self._failures} videos failed one after another, {segment.youtube_id} the last: {reason}."
                " A newer yt-dlp may help: pip install --upgrade yt-dlp"
            )
        return None, "failed"

    def _path(self, segment: Segment) -> Path:
        return self.cache / "clips" / f"{segment.name}.flac"

    def _read_gone(self) -> set[str]:
        path = self.cache / "gone.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return {line.split(maxsplit=1)[0] for line in lines if line.strip()}

    def _write_gone(self, youtube_id: str, reason: str) -> None:
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / "gone.txt").open("a", encoding="utf-8") as file:
            file.write(f"{youtube_id} {reason}\n")
        self.gone.add(youtube_id)


def _import_yt_dlp() -> ModuleType:
    try:
        import yt_dlp
        import yt_dlp.networking.exceptions
        import yt_dlp.utils
    except ImportError:
        raise FetchError("noise.fetch needs yt-dlp, an optional extra: pip install --editable '.[audioset]'") from None
    return yt_dlp


def _kind(yt_dlp: ModuleType, error: Exception) -> Literal["gone", "network", "other"]:
    reason = str(error).lower()
    cause = (getattr(error, "exc_info", None) or (None, None))[1]
    if any(words in reason for words in _TURNED_AWAY):
        return "network"
    if isinstance(cause, yt_dlp.networking.exceptions.HTTPError):  # 403 and 404 are about one video
        return "network" if cause.status == 429 or cause.status >= 500 else "other"
    if isinstance(cause, yt_dlp.networking.exceptions.RequestError):
        return "network"
    return "gone" if any(words in reason for words in _GONE) else "other"


def _cut(track: Path, segment: Segment, target: Path) -> None:
    """Write a segment of a sound track as FLAC, at the track's own rate and with its channels.

    Raises:
        AudioError: the track cannot be read, or ends before the segment starts.
    """
    import av

    blocks = []
    try:
        with av.open(str(track)) as container:
            stream = container.streams.audio[0]
            rate = stream.rate
            container.seek(int(segment.start / stream.time_base), stream=stream)  # at the segment or before
            to_float = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                if frame.time >= segment.end:
                    break
                for part in to_float.resample(frame):
                    first = max(0, round((segment.start - frame.time) * rate))
                    last = max(0, round((segment.end - frame.time) * rate))
                    blocks.append(part.to_ndarray()[:, first:last])
    except (av.FFmpegError, IndexError) as error:
        track.unlink()
        raise AudioError(f"{track.name}: cannot be read as audio: {error}") from None
    samples = np.concatenate(blocks, axis=1).T if blocks else np.zeros((0, 1), np.float32)
    if not len(samples):
        track.unlink()
        raise AudioError(f"{track.name}: ends before {segment.start} s, where the segment starts")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_audio(target, quantize(samples, 16), sample_rate=rate)


def _say_nothing(message: str) -> None:
    pass


_SILENT = SimpleNamespace(debug=_say_nothing, info=_say_nothing, warning=_say_nothing, error=_say_nothing)
