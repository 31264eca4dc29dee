"""Checkpoints: the finished model as safetensors, and the state of a run that may be resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file

from qdformer.config.model import Model
from qdformer.data.manifest import Classes
from qdformer.models.backbones import BackboneError
from qdformer.models.qdformer.model import QDFormer
from qdformer.utils.digests import file_sha256
from qdformer.utils.errors import InputError

METADATA = "qdformer"


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or not ours; the message names the file."""


def save_model(path: Path, model: QDFormer, classes: Classes, settings: Model) -> None:
    """Write the weights with what is needed to rebuild the model; the same weights give the same bytes."""
    about = {"model": settings.model_dump(), "classes": {"names": classes.names, "unseen": classes.unseen}}
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(weights, partial, {METADATA: json.dumps(about)})  # one entry: their order is not kept
    os.replace(partial, path)


def load_model(path: Path, *, trained: bool = True) -> tuple[QDFormer, Classes]:
    """Rebuild a model in evaluation mode and the classes it names.

    `trained=False` gives the same architecture as it was before training, as a control: with the backbone's pretrained
    weights, which must be where they were then. A trained model needs nothing but its checkpoint.
    Raises `CheckpointError` if the file is missing, damaged or holds something else, and `BackboneError` if those
    weights are gone.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[METADATA])
        settings = Model.model_validate(about["model"])
        names = Classes(tuple(about["classes"]["names"]), tuple(about["classes"]["unseen"]))
        torch.manual_seed(0)
        random = {"backbone_weights": None, "backbone_sha256": None}
        model = QDFormer(settings.model_copy(update=random) if trained else settings, len(names.names))
        if trained:
            model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except BackboneError:  # of the weights that the training began with
        raise
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a usable QDFormer checkpoint: {error}") from error
    return model.eval(), names


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a resumable state and, after it, the digest that makes it valid."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "state.pt")
    (folder / "state.sha256").write_text(file_sha256(folder / "state.pt"), encoding="ascii")


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; raise `CheckpointError` if its bytes are not those that were written."""
    path = folder / "state.pt"
    try:
        expected = (folder / "state.sha256").read_text(encoding="ascii")
        found = file_sha256(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: missing; the checkpoint is incomplete") from None
    if found != expected:
        raise CheckpointError(f"{path}: damaged: SHA-256 is {found}, expected {expected}")
    return torch.load(path, map_location="cpu", weights_only=True)
