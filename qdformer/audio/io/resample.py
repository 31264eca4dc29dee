"""Resample audio as the public VGGish port does, as a few matrix products.

The port uses resampy's `kaiser_best` filter (resampy 0.4.3, ISC license): a sinc with 50 zero crossings under a Kaiser
window. Its taps repeat after `new_rate / gcd` output samples, so they are computed once and kept as small matrices. The
result equals resampy's to float32 accuracy.

Shapes: C channels, S samples, N periods, K taps, P phases of a period.
"""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import numpy as np
import torch

# resampy's filter table: zero crossings, entries between two zero crossings, roll-off, beta of the window
_ZEROS, _TABLE, _ROLLOFF, _BETA = 50, 8192, 0.9173473712608761, 12.984585247040012
_MIN_PHASES, _MAX_PHASES = 64, 256  # per matrix: a balance of speed and memory


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample `samples` [S] or [S, channels] from `rate` to `new_rate` Hz.

    Returns float32 [floor(S * new_rate / rate)], or the same with channels. Samples beyond both ends count as 0.
    """
    divisor = math.gcd(rate, new_rate)
    repeats = -(-_MIN_PHASES // (new_rate // divisor))
    old, new = repeats * rate // divisor, repeats * new_rate // divisor
    length = len(samples) * new // old
    periods = -(-length // new)
    # enough zeros after the end for the last period, which may be incomplete
    reach = _reach(old, new)
    # float64, because the rounding of a float32 sum shows in the logarithm of a quiet mel band
    channels_CS = torch.from_numpy(np.ascontiguousarray(np.atleast_2d(samples.T), dtype=np.float64))
    padded_CS = torch.nn.functional.pad(channels_CS, (reach, (periods + 1) * old + reach - len(samples)))
    parts = []
    for start, taps_KP in _kernels(old, new):
        windows_CNK = padded_CS[:, start:].unfold(1, len(taps_KP), old)[:, :periods]
        parts.append(windows_CNK @ taps_KP)
    resampled_CS = torch.cat(parts, dim=2).flatten(1)[:, :length].float().numpy()
    return resampled_CS[0] if samples.ndim == 1 else resampled_CS.T


def _reach(old: int, new: int) -> int:
    """Number of input samples that the filter covers on either side."""
    return math.ceil(_ZEROS / min(1.0, new / old)) + 1


@functools.lru_cache(maxsize=8)
def _kernels(old: int, new: int) -> list[tuple[int, torch.Tensor]]:
    """For each group of phases P of one period: its first (padded) input sample, and its taps [K, P] float64."""
    reach, scale = _reach(old, new), min(1.0, new / old)
    step = int(scale * _TABLE) / _TABLE  # between two taps, in zero crossings; rounded as in resampy
    kernels = []
    for first, last in pairwise([*range(0, new, _MAX_PHASES), new]):
        times = np.arange(first, last) * old
        nearest = times // new  # input sample at or before each output sample
        after = (times % new) / new
        inputs = np.arange(nearest[0] - reach, nearest[-1] + reach + 1)[:, None]
        left = scale * after + (nearest - inputs) * step
        right = scale * (1.0 - after) + (inputs - nearest - 1) * step
        crossings = np.where(inputs <= nearest, left, right)
        kernels.append((int(nearest[0]), torch.from_numpy(scale * _filter(crossings))))
    return kernels


def _filter(crossings: np.ndarray) -> np.ndarray:
    inside = np.clip(1.0 - (crossings / _ZEROS) ** 2, 0.0, None)
    window = np.where(crossings <= _ZEROS, np.i0(_BETA * np.sqrt(inside)) / np.i0(_BETA), 0.0)
    return _ROLLOFF * np.sinc(_ROLLOFF * crossings) * window
