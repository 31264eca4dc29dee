"""Checkpoints: the trained model as a safetensors file, and the state from which a run is resumed."""

from __future__ import annotations

import json
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
from qdformer.utils.files import write_bytes

if TYPE_CHECKING:
    from qdformer.config.model import ModelSettings
    from qdformer.models import Method

METADATA = "qdformer"
RENAMED_TENSORS = {"quantizer.free_KD": "quantizer.codebook_weight"}
"""New name of each tensor in checkpoints from before a renaming."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or of another kind; the message names the file."""


def save_model(path: Path, model: Method, classes: Classes, settings: ModelSettings) -> None:
    """Write the weights, with the settings and classes to rebuild the model. The same weights give the same bytes."""
    about = {"model": settings.model_dump(), "classes": {"names": classes.names, "unseen": classes.unseen}}
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # All metadata is one entry, because safetensors does not keep the order of entries.
    write_bytes(path, save(weights, {METADATA: json.dumps(about)}))


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
        random = {"backbone_weights": None, "backbone_sha256": None}
        model = build_model(settings.model_copy(update=random) if trained else settings, len(names.names))
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
    """Write the state of a run, and then its digest, without which the state is not valid."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "state.pt")
    (folder / "state.sha256").write_text(file_sha256(folder / "state.pt"), encoding="ascii")


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; raise `CheckpointError` if the file is missing or damaged."""
    path = folder / "state.pt"
    try:
        expected = (folder / "state.sha256").read_text(encoding="ascii")
        found = file_sha256(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: missing; the checkpoint is incomplete") from None
    if found != expected:
        raise CheckpointError(f"{path}: damaged: SHA-256 is {found}, expected {expected}")
    return torch.load(path, map_location="cpu", weights_only=True)
