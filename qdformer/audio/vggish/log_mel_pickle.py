"""AVSBench's `audio_log_mel/*.pkl`: VGGish's input patches, as pickles of a tensor or an array.

A pickle can run any code when it is read. This reader admits what tensors and arrays of numbers are made of, and
nothing else.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdformer.audio.io.read import LOG_MEL_SUFFIX, AudioError
from qdformer.audio.vggish.log_mel import N_MELS, PATCH_FRAMES

_DTYPES = [np.dtype(kind) for kind in (np.float32, np.float64)]


def is_log_mel_file(path: Path) -> bool:
    """Whether the file holds a spectrogram, not sound."""
    return path.suffix == LOG_MEL_SUFFIX


def read_log_mel(path: Path) -> Tensor:
    """Patches [P, 1, 96, 64] float32 of a published log-mel file.

    Raises:
        AudioError: the file is missing, damaged, holds more than numbers, or has another shape.
    """
    try:
        with path.open("rb") as file:
            value = _Numbers(file).load()
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise AudioError(f"{path}: cannot be read as a log-mel spectrogram: {error}") from None
    if isinstance(value, np.ndarray) and value.dtype in _DTYPES:
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor) or value.shape[1:] != (1, PATCH_FRAMES, N_MELS) or not len(value):
        shape = list(value.shape) if isinstance(value, (Tensor, np.ndarray)) else type(value).__name__
        raise AudioError(f"{path}: holds {shape}; expected patches [P, 1, {PATCH_FRAMES}, {N_MELS}]")
    if not torch.isfinite(value).all():
        raise AudioError(f"{path}: holds numbers that are NaN or infinite")
    return value.detach().float()


def _load_storage(content: bytes) -> Any:
    """In place of torch's own, which would read the pickle inside without a guard."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _latin1(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does in pickles of the older protocols, which write bytes as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text as {encoding}; expected latin1")
    return text.encode(encoding)


class _Numbers(pickle.Unpickler):
    """Knows tensors and arrays only."""

    _KNOWN = {
        ("_codecs", "encode"): _latin1,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch.storage", "_load_from_bytes"): _load_storage,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy.core.numeric", "_frombuffer"): np._core.numeric._frombuffer,
        ("numpy._core.numeric", "_frombuffer"): np._core.numeric._frombuffer,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}; only tensors and arrays are read") from None
