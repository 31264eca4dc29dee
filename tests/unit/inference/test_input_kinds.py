"""Every kind of file that a user may have: it is segmented, or one line says what is wrong and nothing is written."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.predict import predict
from qdformer.audio.io.read import AudioError
from qdformer.data.manifest import Classes
from qdformer.inference import ClipPrediction, Segmenter
from qdformer.inference.video import VideoError, iter_seconds, read_info
from tests.helpers.video import frame_of, write_video


class Loud:
    """In place of a predictor: everything is a bell if there is sound."""

    classes = Classes(("bell",), (False,))

    def predict(self, frames, waveform, sample_rate):
        loud = np.abs(waveform.reshape(len(frames), -1)).max(axis=1) > 0.05
        semantic = np.broadcast_to(loud[:, None, None], frames.shape[:3]).astype(np.uint8)
        return ClipPrediction(self.classes.names, semantic, semantic.astype(np.float32), loud[:, None].astype("f4"))


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(Loud(), clip_frames=2, hop=2)


def sounding(segmenter: Segmenter, video: Path, audio: Path | None = None) -> list[bool]:
    """Segment a video into a folder beside it; which seconds have a mask."""
    folder = predict(segmenter, video, video.parent / "out" / video.stem, audio)
    names = {path.name for path in folder.iterdir()}
    assert names == {"masks", "overlay.mp4", "result.json", "sounding.vtt", "timeline.png"}
    return [bool(result.objects) for result in segmenter.segment(video, audio)]


def encode(path: Path, codec: str, pix_fmt: str, size=(64, 48), seconds=2, interlaced=False, **options: str) -> Path:
    """A silent video of another encoder or pixel format."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for index in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(frame_of(index / 10, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_sound_of_one_to_six_channels(segmenter, tmp_path, layout):
    assert sounding(segmenter, write_video(tmp_path / "a.mp4", 2, layout=layout, rate=48000)) == [True, True]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "size", "options"),
    [
        ("422.mp4", "libx264", "yuv422p", (64, 48), {}),
        ("444.mp4", "libx264", "yuv444p", (64, 48), {}),
        ("10bit.mkv", "ffv1", "yuv420p10le", (64, 48), {}),
        ("interlaced.mp4", "libx264", "yuv420p", (64, 48), {"x264-params": "tff=1"}),
        ("gray.mkv", "ffv1", "gray", (64, 48), {}),
        ("odd.mkv", "ffv1", "yuv444p", (37, 21), {}),
        ("tiny.mkv", "ffv1", "yuv444p", (2, 2), {}),
        ("alpha.mkv", "ffv1", "yuva420p", (64, 48), {}),
    ],
)
def test_pixel_formats_interlacing_and_odd_sizes(segmenter, tmp_path, name, codec, pix_fmt, size, options):
    video = encode(tmp_path / name, codec, pix_fmt, size, **options)
    with pytest.warns(UserWarning, match="has no audio track"):
        assert sounding(segmenter, video) == [False, False]
    with pytest.warns(UserWarning, match="has no audio track"):
        seconds = list(iter_seconds(video))
    assert all(second.frame_HWC.shape == (*size[::-1], 3) for second in seconds)
    right = [second.frame_HWC[:, size[0] // 2 :].mean() for second in seconds]
    assert right[1] > right[0] + 20  # frames tell their second by their brightness


def test_a_rotated_phone_video_and_a_variable_frame_rate(segmenter, tmp_path):
    assert sounding(segmenter, write_video(tmp_path / "a.mp4", 2, rotation=90)) == [True, True]
    video = write_video(tmp_path / "b.mkv", 4, times=[0.0, 0.05, 1.7, 3.9])
    assert sounding(segmenter, video) == [True] * 4


def test_sound_that_starts_later_or_is_shorter_than_the_picture(segmenter, tmp_path):
    assert sounding(segmenter, write_video(tmp_path / "late.mkv", 4, sound_start=2.0)) == [False, False, True, True]
    short = write_video(tmp_path / "short.mkv", 1)
    long = write_video(tmp_path / "long.mkv", 4, sound=False)
    assert sounding(segmenter, long, short) == [True, False, False, False]


@pytest.mark.parametrize("stated", [0.1, 2000.0])
def test_a_header_that_states_a_wrong_length(segmenter, tmp_path, stated):
    """Matroska states the length as a float in milliseconds, and nothing checks it."""
    content = bytearray(write_video(tmp_path / "a.mkv", 2).read_bytes())
    place = content.index(b"\x44\x89\x88")  # Duration, 8 bytes
    struct.pack_into(">d", content, place + 3, 1000 * stated)
    (tmp_path / "a.mkv").write_bytes(content)
    assert read_info(tmp_path / "a.mkv").seconds == pytest.approx(stated, abs=0.01)
    assert sounding(segmenter, tmp_path / "a.mkv") == [True, True]


def test_a_file_that_breaks_off_gives_what_is_left(segmenter, tmp_path):
    content = write_video(tmp_path / "cut.mkv", 6).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    assert 1 <= len(sounding(segmenter, tmp_path / "cut.mkv")) <= 6


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


def no_frames(path: Path) -> Path:
    """A video whose index is complete and whose track is empty."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: sound_only(path), "has no video track"),
        (lambda path: no_frames(path), "no frames that can be decoded|no video track|cannot be read"),
        (lambda path: path.write_text("notes\n" * 500), "cannot be read as a video|has no video track"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (
            lambda path: path.write_bytes(np.random.default_rng(0).bytes(4096)),
            "cannot be read|no video track|no frames",
        ),
        (lambda path: path.write_bytes(write_video(path, 2).read_bytes()[:3000]), "cannot be read as a video"),
        (lambda path: path.mkdir(), "a folder"),
    ],
    ids=["no video", "no frames", "text", "empty", "noise", "truncated", "folder"],
)
def test_what_cannot_be_segmented_is_one_line_and_writes_nothing(segmenter, tmp_path, make, words):
    make(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=rf"a\.mp4: .*({words})") as error:
        predict(segmenter, tmp_path / "a.mp4", tmp_path / "out" / "a")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_sound_that_breaks_in_the_middle_writes_nothing(segmenter, tmp_path, monkeypatch):
    video = write_video(tmp_path / "a.mp4", 4)
    monkeypatch.setattr("qdformer.inference.sound.Sound._decode", broken)
    with pytest.raises(AudioError, match="holds samples that are NaN"):
        predict(segmenter, video, tmp_path / "out" / "a")
    assert not list((tmp_path / "out").iterdir())


def broken(self):
    yield 0.0, np.zeros((self.channels, 2 * self.rate), np.float32)
    yield None, np.full((self.channels, 10), np.nan, np.float32)


def test_three_hours_are_read_in_bounded_memory(tmp_path):
    """One picture per second for three hours: the seconds come one by one, and nothing is kept of them."""
    path, hours = tmp_path / "long.mkv", 3
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), format="rgb24")
        for second in range(hours * 3600):
            frame.pts, frame.time_base = second, Fraction(1, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.warns(UserWarning, match="has no audio track"):
        count = sum(1 for _ in iter_seconds(path))
    assert count == hours * 3600
