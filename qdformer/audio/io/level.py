"""Signal levels: root mean square (RMS), decibels, and the threshold of silence.

Samples are in -1..1, and 0 dB is full scale.
"""

from __future__ import annotations

import math

import numpy as np

SILENCE_RMS = 1e-4
"""RMS of -80 dB, three 16-bit steps: a signal at or below it holds nothing but the dither of a recording."""


def rms(samples: np.ndarray) -> float:
    """Root mean square, computed in float64; 0 for an empty array."""
    return math.sqrt(float(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def db_to_amplitude(decibels: float) -> float:
    """Amplitude ratio of a level in dB."""
    return 10.0 ** (decibels / 20.0)


def amplitude_to_db(amplitude: float) -> float:
    """Level in dB of an amplitude ratio greater than 0."""
    return 20.0 * math.log10(amplitude)
