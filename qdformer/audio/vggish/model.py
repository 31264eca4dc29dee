"""VGGish (Hershey et al., ICASSP 2017): the network, its PCA step, and their weights files.

The embeddings equal those of the public PyTorch port without its PCA step, as audio-visual segmentation methods use
them: 128 non-negative numbers per patch of 0.96 s. The PCA step (`load_pca`) gives the numbers in the format in which
AudioSet's embeddings were released.

Shapes: P patches, F = 96 frames of 10 ms, M = 64 mel bands, A = 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from qdformer.utils.constants import EMBEDDING_SIZE
from qdformer.utils.digests import file_sha256
from qdformer.utils.errors import InputError
from qdformer.utils.files import write_bytes

_Module = TypeVar("_Module", bound=nn.Module)
_PCA_LIMIT, _PCA_STEPS = 2.0, 255  # -2..2 as 8-bit integers


class WeightsError(InputError):
    """A weights file is not usable; the message names the file and, where it applies, the key and shape."""


def channels_last(module: _Module) -> _Module:
    """Move the parameters of a module to channels-last memory, in place, and return it."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


class VGGish(nn.Module):
    """The network: [P, 1, 96, 64] log-mel patches to [P, 128] embeddings, after the last ReLU, no PCA.

    The state dict has the names and shapes of the public port (`features.0.weight` to `embeddings.4.bias`). The
    network uses channels-last memory, which is also the order of the inputs of the first fully connected layer.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for block in ((64,), (128,), (256, 256), (512, 512)):
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = channels_last(nn.Sequential(*layers))
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, EMBEDDING_SIZE),
            nn.ReLU(inplace=True),
        )

    def forward(self, patches_P1FM: Tensor) -> Tensor:
        maps = self.features(patches_P1FM.contiguous(memory_format=torch.channels_last))
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))


class PCA(nn.Module):
    """The published post-processing: PCA with whitening, clipping to -2..2, and quantization to 8 bits.

    Maps embeddings [P, 128] to [P, 128] float32, integers from 0 to 255.
    """

    eigen_vectors: Tensor
    means: Tensor

    def __init__(self, eigen_vectors: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("eigen_vectors", eigen_vectors)
        self.register_buffer("means", means)

    def forward(self, embeddings_PA: Tensor) -> Tensor:
        projected_PA = (embeddings_PA - self.means) @ self.eigen_vectors.T
        return torch.round((projected_PA.clamp(-_PCA_LIMIT, _PCA_LIMIT) + _PCA_LIMIT) * (_PCA_STEPS / (2 * _PCA_LIMIT)))


def load_vggish(path: str | Path, sha256: str | None = None) -> VGGish:
    """Load weights from a safetensors file, or from a PyTorch file without running any code in it.

    Args:
        path: `.safetensors`, or a state dict written by `torch.save`.
        sha256: hex digest that the file must have, or its first digits.

    Returns:
        The network in evaluation mode, its parameters frozen.

    Raises:
        WeightsError: the file is missing or damaged, has another digest, or a key or shape is wrong.
    """
    state = read_state(Path(path), sha256)
    with torch.device("meta"):  # without initial values, which the file replaces
        model = VGGish()
    _check_state(Path(path), state, {key: list(value.shape) for key, value in model.state_dict().items()})
    model.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    channels_last(model.features)
    return model.eval().requires_grad_(False)


def load_pca(path: str | Path, sha256: str | None = None) -> PCA:
    """Load the public port's `vggish_pca_params-970ea276.pth` without running any code in it.

    The arguments and exceptions are those of `load_vggish`. The file holds `pca_eigen_vectors` [128, 128] and
    `pca_means` [128, 1], as tensors or NumPy arrays.
    """
    state = {
        key: torch.as_tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in read_state(Path(path), sha256).items()
    }
    if isinstance(means := state.get("pca_means"), Tensor) and means.numel() == EMBEDDING_SIZE:
        state["pca_means"] = means.reshape(EMBEDDING_SIZE)  # published as a column
    _check_state(
        Path(path), state, {"pca_eigen_vectors": [EMBEDDING_SIZE, EMBEDDING_SIZE], "pca_means": [EMBEDDING_SIZE]}
    )
    return PCA(state["pca_eigen_vectors"].float(), state["pca_means"].float())


def save_vggish(vggish: VGGish, path: str | Path) -> str:
    """Write the weights as safetensors, atomically, and return the SHA-256 of the file."""
    from safetensors.torch import save

    write_bytes(Path(path), save({key: value.contiguous() for key, value in vggish.state_dict().items()}))
    return file_sha256(path)


def read_state(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a weights file by name, read without running code in it; see `load_vggish` for the arguments.

    Raises `WeightsError` if the file is missing or damaged, has another digest, or is no state dict.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if sha256 is not None and not (found := file_sha256(path)).startswith(sha256):
        raise WeightsError(f"{path}: SHA-256 is {found}, expected {sha256}")
    try:
        if path.suffix in (".safetensors", ""):  # DVC's cache has no suffixes
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_numpy_globals()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many classes of exceptions
        raise WeightsError(f"{path}: not a readable weights file: {error}") from None
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: expected a state dict, found {type(state).__name__}")
    return state


def _numpy_globals() -> list:
    """The globals in a pickled NumPy array of numbers, which run no code. The public PCA file may hold such arrays."""
    core: Any = np._core  # type: ignore[attr-defined]
    rebuild = core.multiarray._reconstruct
    dtypes = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    return [(rebuild, "numpy.core.multiarray._reconstruct"), rebuild, np.ndarray, np.dtype, *dtypes]


def _check_state(path: Path, state: dict[str, Tensor], expected: dict[str, list[int]]) -> None:
    for key, shape in expected.items():
        if key not in state:
            raise WeightsError(f"{path}: key {key} is missing, expected shape {shape}")
        found = list(state[key].shape) if isinstance(state[key], Tensor) else type(state[key]).__name__
        if found != shape:
            raise WeightsError(f"{path}: key {key} has shape {found}, expected {shape}")
    if unknown := sorted(set(state) - set(expected)):
        raise WeightsError(f"{path}: key {unknown[0]} is not one of {', '.join(list(expected)[:2])}, ...")
