"""VGGish's front end (Hershey et al., ICASSP 2017): log-mel spectrograms and their cutting into input patches.

The numbers equal those of the public PyTorch port: 16 kHz mono, 25 ms windows every 10 ms, 64 mel bands,
patches of 0.96 s.

Shapes: P patches, F = 96 frames of 10 ms, M = 64 mel bands.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from qdformer.audio.io.resample import resample
from qdformer.utils.constants import SAMPLE_RATE

WIN_LENGTH, HOP_LENGTH, N_FFT = 400, 160, 512  # samples; 25 ms and 10 ms
N_MELS, F_MIN, F_MAX = 64, 125.0, 7500.0
LOG_OFFSET = 0.01
PATCH_FRAMES = 96
PATCH_SAMPLES = WIN_LENGTH + (PATCH_FRAMES - 1) * HOP_LENGTH
PATCH_SECONDS = PATCH_FRAMES * HOP_LENGTH / SAMPLE_RATE
_FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH


def _hertz_to_mel(hertz: float | np.ndarray) -> np.ndarray:
    return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)


@functools.cache
def mel_filter_bank() -> Tensor:
    """HTK mel filters [N_FFT // 2 + 1, N_MELS] float64, triangular on the mel scale, without the DC bin.

    VGGish was not trained with the filters of `torchaudio.functional.melscale_fbanks`, which are triangular in Hz.
    """
    bins = _hertz_to_mel(np.linspace(0.0, SAMPLE_RATE / 2, N_FFT // 2 + 1))[:, None]
    edges = np.linspace(_hertz_to_mel(F_MIN), _hertz_to_mel(F_MAX), N_MELS + 2)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.maximum(0.0, np.minimum((bins - low) / (center - low), (high - bins) / (high - center)))
    weights[0] = 0.0
    return torch.from_numpy(weights)


def mel_spectrogram(waveforms: Tensor) -> Tensor:
    """Mel magnitudes [..., frames, N_MELS] of 16 kHz waveforms [..., samples], without padding at the ends.

    Computed in the precision of `waveforms`. In float32 the spectral leakage of a loud pure tone causes errors of up to
    5e-4 in the logarithm.
    """
    window = torch.hann_window(WIN_LENGTH, periodic=True, dtype=waveforms.dtype)
    frames = waveforms.unfold(-1, WIN_LENGTH, HOP_LENGTH) * window
    return torch.fft.rfft(frames, n=N_FFT).abs() @ mel_filter_bank().to(waveforms.dtype)


def log_mel(waveform: np.ndarray | Tensor, sample_rate: int) -> Tensor:
    """VGGish's log-mel spectrogram, log(mel + 0.01).

    Args:
        waveform: [samples] or [samples, channels] in -1..1; channels are averaged.
        sample_rate: its rate in Hz; it is resampled if this is not 16 kHz.

    Returns:
        [frames, 64] float32, one frame per 10 ms; no frame for a waveform shorter than 25 ms.
    """
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if samples.ndim != 1:
        raise ValueError(f"waveform must be [samples] or [samples, channels], not {list(samples.shape)}")
    if sample_rate != SAMPLE_RATE:
        samples = resample(samples, sample_rate, SAMPLE_RATE)
    if len(samples) < WIN_LENGTH:
        return torch.zeros(0, N_MELS)
    return torch.log(mel_spectrogram(torch.from_numpy(samples.astype(np.float64))) + LOG_OFFSET).float()


def log_mel_patches(waveform: np.ndarray | Tensor, sample_rate: int) -> Tensor:
    """Cut a waveform, given as to `log_mel`, into VGGish's input patches.

    Returns:
        [P, 1, 96, 64] float32: complete, non-overlapping patches of 0.96 s. The rest at the end is dropped; P = 0 for a
        waveform shorter than one patch (15600 samples).
    """
    log_mel_FM = log_mel(waveform, sample_rate)
    patches = len(log_mel_FM) // PATCH_FRAMES
    return log_mel_FM[: patches * PATCH_FRAMES].reshape(patches, 1, PATCH_FRAMES, N_MELS)


def centered_patches(waveform: np.ndarray | Tensor, sample_rate: int) -> Tensor:
    """Cut a waveform, given as to `log_mel`, into patches centered on its seconds: patch i on i + 0.5 s.

    The last frame is repeated if a patch extends beyond the spectrogram.

    Returns:
        [P, 1, 96, 64] float32, one patch for each second whose center lies in the waveform; one for a waveform of less
        than half a second, none for less than 25 ms.
    """
    log_mel_FM = log_mel(waveform, sample_rate)
    if not len(log_mel_FM):
        return torch.zeros(0, 1, PATCH_FRAMES, N_MELS)
    seconds = max(1, round(len(waveform) / sample_rate))
    starts_P = torch.arange(seconds) * _FRAMES_PER_SECOND + (_FRAMES_PER_SECOND - PATCH_FRAMES) // 2
    frames_PF = starts_P[:, None] + torch.arange(PATCH_FRAMES)
    return log_mel_FM[frames_PF.clamp(max=len(log_mel_FM) - 1)][:, None]
