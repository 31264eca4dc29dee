"""Checkpoints of the authors' code (https://github.com/OpenNLPLab/AVSBench): names and shapes of their tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdformer.models.backbones.avsbench import build_from_checkpoint
from qdformer.models.backbones.weights import Weights, read_weights
from qdformer.models.common.published_tensors import Renaming, Tensor, load_tensors, rename
from qdformer.models.tpavi.model import TPAVI

if TYPE_CHECKING:
    from qdformer.config.methods.tpavi import TPAVISettings

BACKBONES = ("resnet.", "encoder_backbone.")
"""How the names of a ResNet's and a PVT's tensors begin."""
UNUSED = "path4.resConfUnit1."
"""A part that the authors' code builds and does not use."""
RENAMED: tuple[Renaming, ...] = (
    (r"^conv(\d)\.conv2d_list\.", lambda found: f"aspp.{int(found[1]) - 1}.branches."),
    (r"^path(\d)\.", lambda found: f"decoder.blocks.{int(found[1]) - 1}."),
    (r"\.resConfUnit1\.", ".lateral."),
    (r"\.resConfUnit2\.", ".refine."),
    (r"\.conv1\.", ".first."),
    (r"\.conv2\.", ".second."),
    (r"^tpavi_b(\d)\.", r"interactions.\1."),
    (r"\.align_channel\.", ".align."),
    (r"\.norm_layer\.", ".layer_norm."),
    (r"\.W_z\.0\.", ".mu."),
    (r"\.W_z\.1\.", ".batch_norm."),
    (r"^output_conv\.0\.", "decoder.reduce."),
    (r"^output_conv\.2\.", "decoder.smooth."),
    (r"^output_conv\.4\.", "decoder.classify."),
)
"""Patterns in the names of the authors' code, and what each becomes here; all are applied in this order."""


def load_published(path: str, settings: TPAVISettings, num_classes: int) -> TPAVI:
    """The model with the weights of a checkpoint of the authors' code, backbone included.

    `settings` must be those of the checkpoint: a published recipe, such as the preset s4-tpavi. The file is read
    without running code in it. Raises `BackboneError`, which names the file and tensor, if a tensor is missing, has
    another shape, or belongs to no part of the model.
    """
    weights = read_weights(path)
    model = TPAVI(settings.without_weights(), num_classes)
    prefix = BACKBONES[settings.backbone.startswith("pvt")]
    model.backbone = build_from_checkpoint(settings.backbone, weights, prefix)
    load_tensors(model, convert(weights), weights, settings.title)
    return model


def convert(weights: Weights) -> dict[str, Tensor]:
    """The tensors of a checkpoint of the authors' code, but those of the backbone, under this model's names."""
    converted = {}
    for name, x in weights.tensors.items():
        if not name.startswith((*BACKBONES, UNUSED)):
            # 1x1x1 convolutions of the authors' code are linear layers here.
            converted[rename(name, RENAMED)] = Tensor(name, x.flatten(1) if x.ndim == 5 else x)
    return converted
