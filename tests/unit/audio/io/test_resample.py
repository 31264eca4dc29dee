"""Resampling: tones, frequencies above half the new rate, channels and lengths."""

from __future__ import annotations

import numpy as np
import pytest

from qdformer.audio.io.resample import resample


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 22051, 32000, 44056, 44100, 48000, 96000])
def test_a_tone_is_preserved(rate):
    resampled = resample(tone(1000, rate), rate, 16000)
    assert resampled.dtype == np.float32 and resampled.shape == (16000,)
    # resampy rounds the distance of its taps, which changes the gain by up to 0.001
    np.testing.assert_allclose(resampled[1000:-1000], tone(1000, 16000)[1000:-1000], atol=2e-3)


def test_frequencies_above_half_the_new_rate_are_removed():
    assert np.abs(resample(tone(9000, 44100), 44100, 16000)[1000:-1000]).max() < 1e-4


def test_channels_are_resampled_independently():
    stereo = np.stack([tone(440, 48000), tone(880, 48000)], axis=1)
    resampled = resample(stereo, 48000, 16000)
    assert resampled.shape == (16000, 2)
    assert np.array_equal(resampled[:, 1], resample(stereo[:, 1], 48000, 16000))


@pytest.mark.parametrize(("samples", "expected"), [(0, 0), (1, 0), (3, 1), (441, 160), (442, 160), (44_099, 15_999)])
def test_length(samples, expected):
    assert len(resample(np.ones(samples, np.float32), 44100, 16000)) == expected


def test_the_signal_is_zero_beyond_its_ends():
    """A constant is preserved in the middle and falls to one half at the ends."""
    resampled = resample(np.ones(44100, np.float32), 44100, 16000)
    np.testing.assert_allclose(resampled[1000:-1000], 1.0, atol=1e-3)
    np.testing.assert_allclose(resampled[0], 0.6, atol=0.15)
