"""Read AVSBench's `audio_log_mel/*.pkl`: VGGish's input patches as a pickled tensor or array.

Loading a pickle can run any code. This reader allows only the globals that tensors and arrays of numbers need.
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

_numpy_core: Any = np._core  # type: ignore[attr-defined]
_DTYPES = [np.dtype(kind) for kind in (np.float32, np.float64)]


def is_log_mel_file(path: Path) -> bool:
    """Whether the file holds a spectrogram instead of audio, according to its suffix."""
    return path.suffix == LOG_MEL_SUFFIX


def read_log_mel(path: Path) -> Tensor:
    """Read the patches [P, 1, 96, 64] float32 of a published log-mel file.

    Raises:
        AudioError: the file is missing or damaged, holds other objects than numbers, or has another shape.
    """
    try:
        with path.open("rb") as file:
            value = _Numbers(file).load()
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except Exception as error:  # a damaged pickle can raise any class of exception
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
    """Replacement of torch's own function, which loads the inner pickle without restrictions."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _latin1(text: str, encoding: str) -> bytes:
    """Replacement of `_codecs.encode`, which older pickle protocols call because they store bytes as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file holds text in the encoding {encoding}; expected latin1")
    return text.encode(encoding)


class _Numbers(pickle.Unpickler):
    """Loads tensors and arrays only."""

    _ALLOWED = {
        ("_codecs", "encode"): _latin1,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch.storage", "_load_from_bytes"): _load_storage,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _numpy_core.multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _numpy_core.multiarray._reconstruct,
        ("numpy.core.numeric", "_frombuffer"): _numpy_core.numeric._frombuffer,
        ("numpy._core.numeric", "_frombuffer"): _numpy_core.numeric._frombuffer,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the file needs {module}.{name}; only tensors and arrays are read") from None
