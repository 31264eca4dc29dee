"""Writing audio: the file holds exactly the given samples, or it is not written."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qdformer.audio.io.write import quantize, write_audio


@pytest.mark.parametrize("bits", [16, 24])
def test_a_file_holds_the_samples_exactly(tmp_path, bits):
    steps = 2 ** (bits - 1)
    samples = np.array([-steps, -1, 0, 1, 3, steps - 1] * 100) / steps
    for suffix in ("flac", "wav"):
        write_audio(tmp_path / f"a.{suffix}", samples, bits)
        assert np.array_equal(soundfile.read(tmp_path / f"a.{suffix}", dtype="float64")[0], samples)
        assert soundfile.info(tmp_path / f"a.{suffix}").subtype == f"PCM_{bits}"


def test_stereo_at_another_rate(tmp_path):
    samples = quantize(np.random.default_rng(0).uniform(-1, 1, (500, 2)), 16)
    write_audio(tmp_path / "a.flac", samples, sample_rate=44100)
    read, rate = soundfile.read(tmp_path / "a.flac")
    assert rate == 44100 and np.array_equal(read, samples)


def test_quantize_rounds_to_the_nearest_and_clips():
    samples = np.array([0.4, 0.6, -1.4, 32768, 40000, -40000]) / 32768
    assert (quantize(samples, 16) * 32768).tolist() == [0, 1, -1, 32767, 32767, -32768]


def test_a_full_disk_raises_and_leaves_the_file_unchanged(tmp_path, monkeypatch):
    def write_bytes(self: Path, data) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    write_audio(tmp_path / "a.flac", np.zeros(10))
    before = (tmp_path / "a.flac").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        write_audio(tmp_path / "a.flac", np.ones(10) / 2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.flac"]
    assert (tmp_path / "a.flac").read_bytes() == before
