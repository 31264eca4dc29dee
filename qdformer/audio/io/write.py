"""Write sounds without changing a sample: whole files only, in whole-number formats."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile

from qdformer.audio.io.read import AudioError
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.files import write_bytes

PCM16_MAX = 1.0 - 1.0 / 32768
"""The largest sample that a file of 16 bits holds; the smallest is -1."""


def check_waveform(what: str, samples: np.ndarray) -> None:
    """Raise `AudioError`, which names `what`, unless `samples` are finite floats [S] within -1..1."""
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"{what} is {samples.dtype} {list(samples.shape)}; expected float [samples]")
    peak = np.abs(samples).max(initial=0.0)  # NaN if any sample is
    if not peak <= 1.0:
        raise AudioError(f"{what} reaches {peak}; expected finite samples within -1..1")


def quantize(samples: np.ndarray, bits: int) -> np.ndarray:
    """The nearest samples that a file of `bits` holds, float32; what lies outside -1..1 is cut off. No dither."""
    steps = 2 ** (bits - 1)
    return (np.clip(np.round(samples * float(steps)), -steps, steps - 1) / steps).astype(np.float32)


def write_audio(path: str | Path, samples: np.ndarray, bits: int = 16, sample_rate: int = SAMPLE_RATE) -> None:
    """Write [samples] or [samples, channels], as `quantize` returns them for `bits` (16 or 24), as `.flac` or `.wav`.

    Raises:
        OSError: the disk is full or not writable; then `path` is as it was.
    """
    path = Path(path)
    # Whole numbers, because soundfile scales floats by 32767; of 32 bits it keeps the upper ones.
    whole = (samples.astype(np.float64) * 2**31).astype(np.int32)
    buffer = io.BytesIO()  # in memory, because soundfile hides why a disk cannot be written
    soundfile.write(buffer, whole, sample_rate, subtype=f"PCM_{bits}", format=path.suffix.removeprefix("."))
    write_bytes(path, buffer.getbuffer())
