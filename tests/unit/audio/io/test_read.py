"""Reading audio: formats, resampling, and files that are refused."""

from __future__ import annotations

import av
import numpy as np
import pytest
import soundfile

from qdformer.audio.io.read import AudioError, read_audio


def tone(rate: int, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate).astype(np.float32)
    return wave if channels == 1 else np.stack([wave * (i + 1) / channels for i in range(channels)], axis=1)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(16000), 16000)
    audio = read_audio(path)
    assert audio.dtype == np.float32 and audio.shape == (16000,)
    np.testing.assert_allclose(audio[4000:12000], tone(16000)[4000:12000], atol=0.03)


def test_stereo_is_averaged_and_resampled(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(44100, channels=2), 44100, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav")
    assert audio.shape == (16000,)
    np.testing.assert_allclose(audio[500:-500], 0.75 * tone(16000)[500:-500], atol=1e-3)


def test_channels_and_rate_can_be_kept(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(8000, channels=2), 8000)
    assert read_audio(tmp_path / "a.wav", sample_rate=None, mono=False).shape == (8000, 2)


def test_the_audio_of_a_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(tone(48000, channels=2).T.copy(), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    audio = read_audio(path)
    assert audio.dtype == np.float32 and abs(len(audio) - 16000) < 1000
    assert audio[4000:12000].std() == pytest.approx(0.375 / np.sqrt(2), rel=0.02)


def test_a_video_without_audio(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(AudioError, match="a.mp4: has no audio track"):
        read_audio(path)


def test_missing_file(tmp_path):
    with pytest.raises(AudioError, match="none.wav: no such file"):
        read_audio(tmp_path / "none.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.mp4"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(AudioError, match=rf"{name}: the file is empty"):
        read_audio(tmp_path / name)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp4"])
def test_not_audio(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is no sound at all" * 100)
    with pytest.raises(AudioError, match=rf"{name}: cannot be read as audio"):
        read_audio(tmp_path / name)


def test_no_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(AudioError, match="a.wav: holds no samples"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 32000)
    soundfile.write(path, noise, 16000)
    whole = path.read_bytes()
    for share in (0.3, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(AudioError, match=rf"a.{suffix}: (truncated|cannot be read)"):
            read_audio(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_nan_or_infinite(tmp_path, bad):
    samples = tone(16000)
    samples[123] = bad
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="a.wav: sample 123 is NaN or infinite"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["list.ffconcat", "list.mp4"])
def test_a_playlist_opens_no_other_file(tmp_path, name):
    """FFmpeg reads the files that such a list names; the list of a stranger must not choose what is read."""
    soundfile.write(tmp_path / "secret.wav", tone(16000), 16000)
    (tmp_path / name).write_text("ffconcat version 1.0\nfile secret.wav\n")
    with av.open(str(tmp_path / name)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == 16000
    with pytest.raises(AudioError, match=rf"{name}: cannot be read as audio"):
        read_audio(tmp_path / name)
