"""Random views of a recording for training: another equalizer and, half of the time, another room.

Both are computed by NumPy and SciPy in the frequency domain. The filters of torchaudio need its compiled extension;
without it they take a step of Python per sample.

Shapes: N samples at 16 kHz.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import fftconvolve

from qdformer.audio.io.level import db_to_amplitude, rms
from qdformer.utils.constants import SAMPLE_RATE

BAND_CENTERS_HZ = (60, 150, 350, 800, 1600, 3200, 5500, 7800)
BAND_GAIN_DB = 6.0  # standard deviation of the gain of a band
MAX_BAND_GAIN_DB = 12.0
LOW_PASS_P, LOW_PASS_RANGE_HZ = 0.25, (3500, 6500)  # old recordings lack high frequencies
REVERB_P = 0.5
REVERB_SECONDS = (0.1, 0.4)  # until it has fallen by 60 dB
REVERB_LEVEL_DB = (-18.0, -8.0)  # RMS of the reverberation relative to the recording


def random_view(audio_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The recording through a random equalizer and, with `REVERB_P`, a random room: float32 [N] of the same RMS."""
    view_N = _reverberate(_equalize(audio_N, generator), generator)
    level = rms(view_N)
    return (view_N * (rms(audio_N) / level if level else 0.0)).astype(np.float32)


def _equalize(audio_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random gain for each band, interpolated over the logarithm of the frequency."""
    gain_db = np.clip(generator.normal(0, BAND_GAIN_DB, len(BAND_CENTERS_HZ)), -MAX_BAND_GAIN_DB, MAX_BAND_GAIN_DB)
    frequency = np.fft.rfftfreq(len(audio_N), 1 / SAMPLE_RATE)
    curve_db = np.interp(np.log(np.maximum(frequency, 1.0)), np.log(BAND_CENTERS_HZ), gain_db)
    if generator.random() < LOW_PASS_P:
        curve_db -= 24 * np.clip(np.log2(np.maximum(frequency, 1.0) / generator.uniform(*LOW_PASS_RANGE_HZ)), 0, None)
    return np.fft.irfft(np.fft.rfft(audio_N) * 10 ** (curve_db / 20), len(audio_N))


def _reverberate(audio_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Noise that decays exponentially serves as the response of the room."""
    if generator.random() >= REVERB_P:
        return audio_N
    time = np.arange(int(generator.uniform(*REVERB_SECONDS) * SAMPLE_RATE)) / SAMPLE_RATE
    response = generator.normal(0, 1, len(time)) * 10 ** (-3 * time / time[-1])
    echo_N = fftconvolve(audio_N, response)[: len(audio_N)]
    level = rms(echo_N)
    if not level:
        return audio_N
    return audio_N + echo_N * (rms(audio_N) * db_to_amplitude(generator.uniform(*REVERB_LEVEL_DB)) / level)
