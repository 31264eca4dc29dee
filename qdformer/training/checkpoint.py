"""Checkpoints: the trained model as a safetensors file, and the state from which a run is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file, save

from qdformer.config.model import parse_model_settings
from qdformer.config.renamed import rename_keys
from qdformer.data.manifest import Classes
from qdformer.models.backbones import BackboneError
from qdformer.models.registry import build_model
from qdformer.utils.digests import file_sha256
from qdformer.utils.errors import InputError
from qdformer.utils.files import write_bytes, write_text

if TYPE_CHECKING:
    from qdformer.config.methods.base import MethodSettings
    from qdformer.models import Method

METADATA = "qdformer"
MODEL, STATE, DIGESTS = "model.safetensors", "state.pt", "sha256.json"
RENAMED_TENSORS = {"quantizer.free_KD": "quantizer.codebook_weight"}
"""New name of each tensor in checkpoints from before a renaming."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or of another kind; the message names the file."""


def save_model(path: Path, model: Method, classes: Classes, settings: MethodSettings) -> None:
    """Write the weights, with the settings and classes to rebuild the model. The same weights give the same bytes."""
    write_bytes(path, model_bytes(model, classes, settings))


def model_bytes(model: Method, classes: Classes, settings: MethodSettings) -> bytes:
    """The content of the file that `save_model` writes."""
    about = {"model": settings.model_dump(), "classes": {"names": classes.names, "unseen": classes.unseen}}
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # All metadata is one entry, because safetensors does not keep the order of entries.
    return save(weights, {METADATA: json.dumps(about)})


def load_model(path: Path, *, trained: bool = True) -> tuple[Method, Classes]:
    """Rebuild a model in evaluation mode, with the names of its classes.

    With `trained=False` the model has its weights from before training, as a control: the backbone's pretrained weights
    are loaded from where `backbone_weights` names them. A trained model needs only its checkpoint. Checkpoints with
    settings and tensors named as before a renaming are accepted.

    Raises `CheckpointError` if the file is missing, damaged or no checkpoint of ours, and `BackboneError` if the
    backbone's pretrained weights are not available.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
        settings = parse_model_settings(rename_keys({"name": "qdformer", **about["model"]}, "train.model"))
        names = Classes(tuple(about["classes"]["names"]), tuple(about["classes"]["unseen"]))
        torch.manual_seed(0)
        model = build_model(settings.without_weights() if trained else settings, len(names.names))
        if trained:
            weights = load_file(path)
            model.load_state_dict({RENAMED_TENSORS.get(name, name): value for name, value in weights.items()})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except BackboneError:
        raise
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a usable QDFormer checkpoint: {error}") from error
    return model.eval(), names


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a run, and then the digests of all files in the folder, without which they are not valid."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / STATE)
    digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != DIGESTS}
    write_text(folder / DIGESTS, json.dumps(digests))


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; raise `CheckpointError` if a file of the checkpoint is missing or damaged."""
    check_checkpoint(folder)
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def check_checkpoint(folder: Path) -> None:
    """Raise `CheckpointError` if a file of a checkpoint is missing or damaged. An interrupted copy is such a folder."""
    try:
        digests = _read_digests(folder / DIGESTS)
        for name, expected in digests.items():
            if (found := file_sha256(folder / name)) != expected:
                raise CheckpointError(f"{folder / name}: damaged: SHA-256 is {found}, expected {expected}")
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: missing; the checkpoint is incomplete") from None


def _read_digests(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise CheckpointError(f"{path}: damaged: not a JSON file") from None


def usable_checkpoints(run: Path, warn: Callable[[str], None] = print) -> list[Path]:
    """The complete checkpoints below the folder of a run, newest first.

    The others are removed, after `warn` has been called with the reason.
    """
    usable = []
    for folder in sorted(run.glob("checkpoint_*/"), reverse=True):  # Ray names them by the time
        try:
            check_checkpoint(folder)
        except CheckpointError as error:
            warn(f"Training: {error}; an older checkpoint is used, if there is one")
            shutil.rmtree(folder)
        else:
            usable.append(folder)
    return usable
