"""Write sounds without changing a sample: whole files only, in whole-number formats."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from qdformer.audio.read import SAMPLE_RATE


def quantise(samples: np.ndarray, bits: int) -> np.ndarray:
    """The nearest samples that a file of `bits` holds, float32; what lies outside -1..1 is cut off. No dither."""
    steps = 2 ** (bits - 1)
    return (np.clip(np.round(samples * float(steps)), -steps, steps - 1) / steps).astype(np.float32)


def write_sound(path: str | Path, samples: np.ndarray, bits: int = 16, sample_rate: int = SAMPLE_RATE) -> None:
    """Write [samples] or [samples, channels], as `quantise` returns them for `bits` (16 or 24), as `.flac` or `.wav`.

    Raises:
        OSError: the disk is full or not writable; then `path` is as it was.
    """
    import soundfile

    path = Path(path)
    # whole numbers, for soundfile scales floats by 32767; of 32 bits it keeps the upper ones
    whole = (samples.astype(np.float64) * 2**31).astype(np.int32)
    buffer = io.BytesIO()  # in memory, for soundfile hides why a disk cannot be written
    soundfile.write(buffer, whole, sample_rate, subtype=f"PCM_{bits}", format=path.suffix.removeprefix("."))
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(buffer.getbuffer())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
