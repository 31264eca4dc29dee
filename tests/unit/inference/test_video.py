"""Frames and sound of videos: one frame per second, upright, with its sound; unusable files are named."""

from __future__ import annotations

import av
import numpy as np
import pytest
import soundfile

from qdformer.audio.io.read import AudioError
from qdformer.inference.sound import Sound
from qdformer.inference.video import VideoError, decode_frames, iter_frames, iter_seconds, read_info
from qdformer.inference.writer import VideoWriter
from tests.helpers.video import HEIGHT, WIDTH, frame_of, write_video


def brightness(frames) -> list[int]:
    """The second that each frame tells."""
    return [round(frame[:, WIDTH // 2 + 4 :].mean() / 40) - 1 for frame in frames]


def level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def test_every_second_has_its_frame_and_its_sound(tmp_path):
    seconds = list(iter_seconds(write_video(tmp_path / "a.mp4")))
    assert [second.index for second in seconds] == [0, 1, 2]
    assert brightness(second.frame_HWC for second in seconds) == [0, 1, 2]
    assert all(second.frame_HWC.shape == (HEIGHT, WIDTH, 3) for second in seconds)
    assert all(second.sound_S.shape == (16000,) and second.sample_rate == 16000 for second in seconds)
    assert [level(second.sound_S) for second in seconds] == pytest.approx([0.177] * 3, abs=0.02)


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mov"])
def test_other_containers(tmp_path, suffix):
    seconds = list(iter_seconds(write_video(tmp_path / f"a.{suffix}", rate=44100, layout="stereo")))
    if suffix == "avi":  # FFmpeg's writer delays all frames but the first by one
        seconds = seconds[:3]
    assert brightness(second.frame_HWC for second in seconds) == [0, 1, 2]
    assert all(second.sound_S.shape == (44100,) for second in seconds)
    assert level(seconds[1].sound_S) == pytest.approx(0.177, abs=0.02)


@pytest.mark.parametrize(("seconds", "count"), [(0.1, 1), (1.0, 1), (3.1, 4), (3.9, 4)])
def test_a_last_part_of_a_second_counts(tmp_path, seconds, count):
    frames = list(iter_frames(write_video(tmp_path / "a.mp4", seconds)))
    assert brightness(frames) == list(range(count))


def test_variable_frame_rate_holds_frames(tmp_path):
    video = write_video(tmp_path / "a.mkv", 6, times=[0.0, 0.1, 3.2, 3.3, 5.0, 5.1])
    assert brightness(iter_frames(video)) == [0, 0, 0, 3, 3, 5]
    assert brightness(iter_frames(video, frame_at=0.0)) == [0, 0, 0, 0, 3, 5]


def test_a_written_video_of_variable_frame_rate_states_its_whole_length(tmp_path):
    times = [0.0, 0.04, 0.08, 0.9, 1.7, 1.72, 1.74, 3.2, 4.4, 5.9]
    with VideoWriter(tmp_path / "a.mp4", (64, 48), 25.0) as writer:
        for time in times:
            writer.write_frame(frame_of(time), time)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(5.94, abs=0.05)
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(times)


def test_rotation_is_applied(tmp_path):
    turned = next(iter_frames(write_video(tmp_path / "a.mp4", 1, rotation=90)))
    assert turned.shape == (WIDTH, HEIGHT, 3)  # the dark left half is turned counterclockwise to the bottom
    assert turned[WIDTH // 2 + 4 :].mean() < 10 < turned[: WIDTH // 2 - 4].mean()
    turned = next(iter_frames(write_video(tmp_path / "b.mp4", 1, rotation=-90)))
    assert turned[: WIDTH // 2 - 4].mean() < 10 < turned[WIDTH // 2 + 4 :].mean()


def test_sound_that_begins_later_or_ends_earlier_is_filled_with_silence(tmp_path):
    late = [second.sound_S for second in iter_seconds(write_video(tmp_path / "a.mkv", sound_start=1.0))]
    assert level(late[0][:15000]) < 0.01 and level(late[1][2000:]) == pytest.approx(0.177, abs=0.02)
    soundfile.write(tmp_path / "short.wav", np.full(24000, 0.5, np.float32), 16000)
    short = [second.sound_S for second in iter_seconds(tmp_path / "a.mkv", tmp_path / "short.wav")]
    assert level(short[0]) == pytest.approx(0.5, abs=0.01)
    assert not short[1][8000:].any() and not short[2].any() and len(short[2]) == 16000


def test_sound_blocks_join_to_the_file(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (30000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 22050, subtype="FLOAT")
    with Sound(tmp_path / "a.wav") as mono, Sound(tmp_path / "a.wav", layout="stereo") as stereo:
        joined = np.concatenate([mono.read(count)[0] for count in (1, 10000, 19000, 2000)])
        assert np.allclose(joined[:30000], samples.mean(axis=1), atol=1e-6) and not joined[30000:].any()
        assert np.allclose(stereo.read(30000), samples.T, atol=1e-6)


def test_no_sound_is_silence_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"a\.mp4: has no audio track"):
        seconds = list(iter_seconds(write_video(tmp_path / "a.mp4", sound=False)))
    assert len(seconds) == 3 and not any(second.sound_S.any() for second in seconds)
    assert not read_info(tmp_path / "a.mp4").has_audio


def test_a_truncated_video_gives_the_seconds_that_are_left(tmp_path):
    content = write_video(tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) // 2])
    assert 1 <= len(list(iter_seconds(tmp_path / "a.mkv"))) <= 3


def test_unusable_files_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video\n" * 300)
    (tmp_path / "text.txt").write_text("no video\n" * 300)
    (tmp_path / "empty.mp4").touch()
    content = write_video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    soundfile.write(tmp_path / "sound.wav", np.zeros(1600, np.float32), 16000)
    for name, words in (
        ("none.mp4", "no such file"),
        ("", "a folder"),
        ("empty.mp4", "empty"),
        ("text.mp4", "cannot be read as a video|has no video track"),
        ("text.txt", "cannot be read as a video|has no video track"),
        ("cut.mp4", "cannot be read as a video"),
        ("sound.wav", "has no video track"),
    ):
        for use in (read_info, lambda path: list(decode_frames(path)), lambda path: list(iter_seconds(path))):
            with pytest.raises(VideoError, match=rf"{name}: .*({words})"):
                use(tmp_path / name)


def test_a_device_is_no_video():
    with pytest.raises(VideoError, match="/dev/null: a device or a pipe; expected a file"):
        read_info("/dev/null")


def test_unusable_sounds_are_named(tmp_path):
    video = write_video(tmp_path / "a.mp4", sound=False)
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(1600, np.nan, np.float32), 16000, subtype="FLOAT")
    for name, words in (("none.wav", "no such"), ("text.wav", "cannot be"), ("a.mp4", "no audio"), ("nan.wav", "NaN")):
        with pytest.raises(AudioError, match=rf"{name}: .*{words}"):
            list(iter_seconds(video, tmp_path / name))
