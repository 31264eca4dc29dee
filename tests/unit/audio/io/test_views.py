"""Random views of recordings."""

from __future__ import annotations

import numpy as np
import pytest

from qdformer.audio.io.level import rms
from qdformer.audio.io.views import random_view

NOISE = np.random.default_rng(0).normal(0, 0.1, 20000).astype(np.float32)


def test_a_view_repeats_exactly_and_keeps_length_and_level() -> None:
    views = [random_view(NOISE, np.random.default_rng(seed)) for seed in range(20)]
    for seed, view in enumerate(views):
        assert view.shape == NOISE.shape and view.dtype == np.float32 and np.isfinite(view).all()
        assert rms(view) == pytest.approx(rms(NOISE), rel=1e-3)
        assert np.array_equal(view, random_view(NOISE, np.random.default_rng(seed)))
    assert len({view.tobytes() for view in views}) == 20


def test_views_change_the_spectrum_and_some_reverberate() -> None:
    burst = NOISE.copy()
    burst[4000:] = 0
    tails = [rms(random_view(burst, np.random.default_rng(seed))[4500:]) for seed in range(40)]
    assert 8 < sum(tail > 1e-3 for tail in tails) < 32
    spectra = [np.abs(np.fft.rfft(random_view(NOISE, np.random.default_rng(seed)))) for seed in range(10)]
    low_to_high = [np.log(spectrum[:2000].mean() / spectrum[6000:].mean()) for spectrum in spectra]
    assert np.std(low_to_high) > 0.3


def test_silence_stays_silent() -> None:
    assert not random_view(np.zeros(5000, np.float32), np.random.default_rng(1)).any()
