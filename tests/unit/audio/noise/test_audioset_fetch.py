"""Fetching from YouTube, with a fake yt-dlp and a fake clock."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from qdformer.audio.noise.audioset import Segment
from qdformer.audio.noise.audioset_fetch import (
    INITIAL_BACKOFF_SECONDS,
    MAX_ATTEMPTS,
    MAX_BACKOFF_SECONDS,
    MAX_CONSECUTIVE_FAILURES,
    REQUEST_INTERVAL_SECONDS,
    Fetcher,
    FetchError,
)
from tests.helpers.audioset import write_tone, youtube_id


class Clock:
    """Time passes only in `sleep` and in requests."""

    def __init__(self) -> None:
        self.time = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


class YouTube:
    """The server of the fake yt-dlp: `answers` has, by id, an exception or None (the audio track) for each request."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answers: dict[str, list[BaseException | None]] = {}
        self.requests: list[tuple[str, float]] = []
        self.seconds = 60.0
        self.duration = 0.5

    def failure(self, words: str, cause: Exception | None = None) -> Exception:
        error = sys.modules["yt_dlp"].utils.DownloadError(f"ERROR: [youtube] {words}")
        error.exc_info = (type(cause), cause, None) if cause else None
        return error

    def http(self, status: int) -> Exception:
        cause = sys.modules["yt_dlp"].networking.exceptions.HTTPError()
        cause.status = status
        return self.failure(f"HTTP Error {status}", cause)

    def offline(self) -> Exception:
        words = "Unable to download API page: Name or service not known"
        return self.failure(words, sys.modules["yt_dlp"].networking.exceptions.TransportError())

    def serve(self, youtube_id: str, template: str) -> Path:
        self.requests.append((youtube_id, self.clock.time))
        self.clock.time += self.duration
        answer = (self.answers.get(youtube_id) or [None]).pop(0)
        track = Path(template.replace("%(id)s", youtube_id).replace("%(ext)s", "wav"))
        if answer is not None:
            track.with_suffix(".wav.part").write_bytes(b"a part")  # as yt-dlp leaves it, to resume from
            raise answer
        track.with_suffix(".wav.part").unlink(missing_ok=True)
        return write_tone(track, self.seconds, rate=8000, channels=2)


@pytest.fixture
def youtube(monkeypatch) -> YouTube:
    server = YouTube(Clock())
    names = ("yt_dlp", "yt_dlp.utils", "yt_dlp.networking", "yt_dlp.networking.exceptions")
    package, utils, networking, exceptions = modules = [ModuleType(name) for name in names]
    package.utils, package.networking, networking.exceptions = utils, networking, exceptions
    utils.YoutubeDLError = type("YoutubeDLError", (Exception,), {})
    utils.DownloadError = type("DownloadError", (utils.YoutubeDLError,), {})
    exceptions.RequestError = type("RequestError", (Exception,), {})
    exceptions.HTTPError = type("HTTPError", (exceptions.RequestError,), {})
    exceptions.TransportError = type("TransportError", (exceptions.RequestError,), {})

    class YoutubeDL:
        def __init__(self, options):
            assert options["retries"] == options["extractor_retries"] == 0
            self.template = options["outtmpl"]["default"]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def extract_info(self, url, download):
            assert download and url.startswith("https://www.youtube.com/watch?v=")
            return {"requested_downloads": [{"filepath": str(server.serve(url.split("=")[1], self.template))}]}

    package.YoutubeDL = YoutubeDL
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    return server


def fetcher(cache: Path, youtube: YouTube) -> Fetcher:
    return Fetcher(cache, youtube.clock.now, youtube.clock.sleep)


def segment(number: int, start: float = 30.0) -> Segment:
    return Segment(youtube_id(number), start, start + 10, ("/m/03m9d0z",))


def test_the_segment_is_cut_and_the_track_is_removed(tmp_path, youtube):
    path, outcome = fetcher(tmp_path, youtube).fetch(segment(1))
    assert outcome == "fetched" and path == tmp_path / "clips" / f"{youtube_id(1)}_30000.flac"
    whole = soundfile.read(write_tone(tmp_path / "whole.wav", 60, rate=8000, channels=2))[0]
    cut, rate = soundfile.read(path)
    assert rate == 8000
    np.testing.assert_allclose(cut, whole[30 * 8000 : 40 * 8000], atol=1 / 30000)
    assert not list((tmp_path / "tracks").iterdir())


def test_a_segment_at_the_end_of_a_shorter_video_is_what_there_is(tmp_path, youtube):
    youtube.seconds = 36.5
    path, _ = fetcher(tmp_path, youtube).fetch(segment(1))
    assert soundfile.info(path).frames == pytest.approx(6.5 * 8000, abs=1)


def test_what_was_fetched_is_not_asked_for_again(tmp_path, youtube):
    first = fetcher(tmp_path, youtube)
    assert first.cached(segment(1)) is None
    path, _ = first.fetch(segment(1))
    (tmp_path / "clips" / f".{youtube_id(2)}_30000.flac.partial").touch()  # as a killed run leaves it
    later = fetcher(tmp_path, youtube)
    assert later.cached(segment(1)) == path
    assert later.cached(segment(2)) is None
    assert later.cached(segment(1, start=50)) is None


def test_an_interrupted_fetch_goes_on_where_it_was(tmp_path, youtube):
    youtube.answers[youtube_id(2)] = [KeyboardInterrupt()]
    first = fetcher(tmp_path, youtube)
    with pytest.raises(KeyboardInterrupt):
        for number in range(4):
            first.fetch(segment(number))
    later = fetcher(tmp_path, youtube)
    left = [number for number in range(4) if not later.cached(segment(number))]
    assert left == [2, 3]
    assert (tmp_path / "tracks" / f"{youtube_id(2)}.wav.part").exists()
    assert [later.fetch(segment(number))[1] for number in left] == ["fetched"] * 2
    assert not list((tmp_path / "tracks").iterdir())


def test_an_unavailable_video_is_recorded_and_not_requested_again(tmp_path, youtube):
    words = ["Private video. Sign in", "Video unavailable", "This video has been removed by the uploader"]
    words += ["The uploader has not made this video available in your country", "Sign in to confirm your age"]
    for number, reason in enumerate(words):
        youtube.answers[youtube_id(number)] = [youtube.failure(reason)]
    first = fetcher(tmp_path, youtube)
    for number in range(len(words)):
        assert first.fetch(segment(number)) == (None, "unavailable")
    assert first.fetch(segment(9))[1] == "fetched"
    lines = (tmp_path / "gone.txt").read_text().splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == [youtube_id(number) for number in range(len(words))]
    assert "Private video" in lines[0]

    asked = len(youtube.requests)
    assert asked == len(words) + 1  # each once
    later = fetcher(tmp_path, youtube)
    assert later.fetch(segment(0)) == later.fetch(segment(0, start=50)) == (None, "unavailable")
    assert len(youtube.requests) == asked


def test_network_failures_are_retried_with_exponential_backoff(tmp_path, youtube):
    youtube.answers[youtube_id(1)] = [youtube.offline(), youtube.http(503), youtube.http(429), None]
    path, outcome = fetcher(tmp_path, youtube).fetch(segment(1))
    assert outcome == "fetched" and path.is_file()
    assert youtube.clock.slept == [INITIAL_BACKOFF_SECONDS, 2 * INITIAL_BACKOFF_SECONDS, 4 * INITIAL_BACKOFF_SECONDS]
    assert not (tmp_path / "gone.txt").exists()


@pytest.mark.parametrize(
    "words",
    ["", "Sign in to confirm you're not a bot", "This content isn't available, try again later. Video unavailable"],
)
def test_a_lasting_network_failure_raises_and_marks_no_video_as_unavailable(tmp_path, youtube, words):
    def answer() -> Exception:
        return youtube.failure(words) if words else youtube.offline()

    youtube.answers[youtube_id(1)] = [answer() for _ in range(MAX_ATTEMPTS)]
    with pytest.raises(FetchError, match=r"cannot be reached after 5 attempts: .*the same command resumes from them"):
        fetcher(tmp_path, youtube).fetch(segment(1))
    assert len(youtube.requests) == MAX_ATTEMPTS
    assert not (tmp_path / "gone.txt").exists()
    assert (tmp_path / "tracks" / f"{youtube_id(1)}.wav.part").exists()  # the next run resumes from it
    assert fetcher(tmp_path, youtube).fetch(segment(1))[1] == "fetched"


def test_the_backoff_is_limited(tmp_path, youtube, monkeypatch):
    monkeypatch.setattr("qdformer.audio.noise.audioset_fetch.MAX_ATTEMPTS", 9)
    youtube.answers[youtube_id(1)] = [youtube.offline() for _ in range(9)]
    with pytest.raises(FetchError):
        fetcher(tmp_path, youtube).fetch(segment(1))
    assert max(youtube.clock.slept) == MAX_BACKOFF_SECONDS and len(youtube.clock.slept) == 8


def test_a_failed_video_is_skipped_in_this_run(tmp_path, youtube):
    youtube.answers[youtube_id(1)] = [youtube.http(403) for _ in range(MAX_ATTEMPTS)]
    first = fetcher(tmp_path, youtube)
    assert first.fetch(segment(1)) == (None, "failed")
    assert first.fetch(segment(2))[1] == "fetched"
    assert first.fetch(segment(1))[1] == "fetched"


def test_a_track_that_ends_before_its_segment_fails_without_a_retry(tmp_path, youtube):
    youtube.seconds = 20
    assert fetcher(tmp_path, youtube).fetch(segment(1)) == (None, "failed")
    assert len(youtube.requests) == 1
    assert not list((tmp_path / "tracks").iterdir())


def test_many_failures_in_a_row_raise(tmp_path, youtube):
    session = fetcher(tmp_path, youtube)
    for number in range(MAX_CONSECUTIVE_FAILURES):
        youtube.answers[youtube_id(number)] = [youtube.failure("Requested format is not available")] * MAX_ATTEMPTS
    for number in range(MAX_CONSECUTIVE_FAILURES - 1):
        assert session.fetch(segment(number)) == (None, "failed")
    with pytest.raises(FetchError, match="5 videos failed in a row, .*format.*: pip install --upgrade yt-dlp"):
        session.fetch(segment(MAX_CONSECUTIVE_FAILURES - 1))


def test_requests_are_limited_in_rate(tmp_path, youtube):
    session = fetcher(tmp_path, youtube)
    for number in range(4):
        session.fetch(segment(number))
    youtube.duration = 10.0  # longer than the interval, so there is no wait
    session.fetch(segment(4))
    session.fetch(segment(5))
    times = [time for _, time in youtube.requests]
    assert np.diff(times).tolist() == pytest.approx([REQUEST_INTERVAL_SECONDS] * 4 + [10.0])


def test_without_yt_dlp_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(
        FetchError, match=r"noise.fetch needs yt-dlp, an optional extra: pip install --editable '\.\[audioset\]'"
    ):
        Fetcher(tmp_path).fetch(segment(1))
