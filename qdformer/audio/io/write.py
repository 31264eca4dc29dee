"""Write audio files atomically in integer formats, without changing a sample."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from qdformer.audio.io.read import AudioError
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.files import write_bytes

PCM16_MAX = 1.0 - 1.0 / 32768
"""The largest sample of a 16-bit file; the smallest is -1."""


def check_waveform(what: str, samples: np.ndarray) -> None:
    """Raise an `AudioError` that names `what`, unless `samples` are finite floats [samples] within -1..1."""
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{what} is {samples.dtype} {list(samples.shape)}; expected float [samples]")
    peak = np.abs(samples).max(initial=0.0)  # NaN if any sample is
    if not peak <= 1.0:
        raise AudioError(f"{what} reaches {peak}; expected finite samples within -1..1")


def quantize(samples: np.ndarray, bits: int) -> np.ndarray:
    """Round to the nearest samples of a file of `bits`, as float32, and clip to -1..1. No dither is added."""
    steps = 2 ** (bits - 1)
    return (np.clip(np.round(samples * float(steps)), -steps, steps - 1) / steps).astype(np.float32)


def write_audio(path: str | Path, samples: np.ndarray, bits: int = 16, sample_rate: int = SAMPLE_RATE) -> None:
    """Write quantized samples as `.flac` or `.wav`.

    Args:
        path: the file; its suffix gives the format.
        samples: [samples] or [samples, channels], as `quantize` returns them for `bits`.
        bits: 16 or 24.
        sample_rate: in Hz.

    Raises:
        OSError: the disk is full or not writable; `path` is unchanged.
    """
    import soundfile  # here, because it takes 50 ms

    path = Path(path)
    # Integers, because soundfile scales floats by 32767. It keeps the upper bits of 32-bit integers.
    integers = (samples.astype(np.float64) * 2**31).astype(np.int32)
    buffer = io.BytesIO()  # in memory, because soundfile hides the reason of a failed write
    soundfile.write(buffer, integers, sample_rate, subtype=f"PCM_{bits}", format=path.suffix.removeprefix("."))
    write_bytes(path, buffer.getbuffer())
