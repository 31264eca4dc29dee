"""The interface that all methods share.

Shapes: B clips, T frames (one per second), A audio features (128), H W pixels, C object classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdformer.utils.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from qdformer.config.methods.base import MethodSettings
    from qdformer.models.backbones import Backbone


@dataclass
class Prediction:
    """The segmentation of a batch of clips, at the size of the input frames."""

    semantic_BTHW: torch.Tensor
    """Class of each pixel, int64: 0 is background, 1..C are the classes."""
    foreground_BTHW: torch.Tensor
    """Probability that the pixel belongs to a sounding object."""
    class_probs_BTC: torch.Tensor
    """Probability that an object of the class is visible and sounds in the frame."""
    output: Any
    """The method's own output, as `forward` returned it."""


def check_inputs(images_BTCHW: torch.Tensor, audio_BTA: torch.Tensor, signals: int | None = None) -> tuple[int, int]:
    """The number of clips and frames; raises `ValueError` for shapes that do not fit.

    `signals`: largest number of separated tracks V, for a model whose audio features are [B, T, V, A].
    """
    if images_BTCHW.ndim != 5 or images_BTCHW.shape[2] != 3:
        raise ValueError(f"images have shape {list(images_BTCHW.shape)}; expected [clips, frames, 3, height, width]")
    B, T = images_BTCHW.shape[:2]
    shape = list(audio_BTA.shape)
    if signals is None and shape != [B, T, EMBEDDING_SIZE]:
        raise ValueError(f"audio has shape {shape}; expected {[B, T, EMBEDDING_SIZE]} as the images")
    if signals is not None and (shape not in [[B, T, tracks, EMBEDDING_SIZE] for tracks in range(1, signals + 1)]):
        raise ValueError(
            f"audio has shape {shape}; expected [{B}, {T}, tracks, {EMBEDDING_SIZE}] with 1 to {signals} separated "
            "tracks, no more than prototypes (train.model.separate)"
        )
    return B, T


class Method(nn.Module, ABC):
    """A method for audio-visual segmentation: the interface between a model and training, evaluation and cost.

    To add a method:

    1. Settings. In `config/methods/mymethod.py`, derive a class from `MethodSettings` with `name: Literal["mymethod"]`
       and, as `losses`, the section of its loss weights. Add it to the union `ModelSettings` in `config/model.py`.
       `train.model` and `train.loss` then take its keys, and no others. Defaults are the published values.
    2. Model. In `models/mymethod/`, derive a class from `Method`. Its constructor takes `(settings, num_classes)` and
       sets `backbone` (from `build_backbone(settings)`), `settings` and `num_classes`. Implement:

       - `forward(images_BTCHW, audio_BTA, valid_BT, maps)`: frames with pixel values 0..255 and one VGGish embedding
         per frame; `valid_BT` is false for padding frames, which must not influence other frames; `maps` are what
         `backbone_maps` returned for the frames, if they have been computed before. It returns any object; only the
         method's own code reads it.
       - `build_criterion(loss)`, where `loss` is the section of its loss weights: a module called with `(output,
         labels_BTHW, valid_BT, labeled_BT)`, which returns the weighted losses by name and their sum as `total`. Labels
         are class ids 0..C or 255 (ignored).
       - `decode(output, frame_size)`: the `Prediction` from what `forward` returned in evaluation mode.

    3. Registry. Add the class to `METHODS` in `models/registry.py`.

    4. Preset. Write `pipelines/presets/mymethod.yaml` with `train: {model: {name: mymethod}}` and its recipe.

    The tests of `tests/unit/models/test_methods.py` then run over the method. If its output has fields of
    `QDFormerOutput` (tokens, codes, class logits of queries), the evaluation measures the decomposition; otherwise
    these metrics are empty.

    The rest has defaults: `parameter_groups` (parameters named in `no_decay` have no weight decay) and the hooks
    `on_epoch_start`, `on_step_end` and `on_epoch_end`, by which a method takes part in training beyond its gradient and
    adds its own metrics to the history. `epoch_state` and `load_epoch_state` save and restore what these hooks keep
    during an epoch. Parameters must be created in a fixed order: the seed determines their values.

    With several ranks (`qdformer.utils.distributed`), losses and statistics are those of the global batch: the losses
    of a rank are its share of the sum, divided by counts over all ranks. A rank that has no clip of a step gets one
    without a valid frame, which must not influence the losses or the statistics.
    """

    settings: MethodSettings
    num_classes: int
    backbone: Backbone
    no_decay: tuple[str, ...] = ()
    """Last parts of the names of further parameters without weight decay."""

    @abstractmethod
    def forward(
        self,
        images_BTCHW: torch.Tensor,
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor | None = None,
        maps: dict[int, torch.Tensor] | None = None,
    ) -> Any:
        """Frames and audio features -> the method's output. Raises `ValueError` for shapes that do not fit."""

    @abstractmethod
    def build_criterion(self, loss: Any) -> nn.Module:
        """The training objective with these loss weights, a section of the type `settings.losses`."""

    @abstractmethod
    def decode(self, output: Any, frame_size: tuple[int, int]) -> Prediction:
        """The segmentation at the size of the frames, from what `forward` returned in evaluation mode."""

    @torch.inference_mode()
    def predict(
        self,
        images_BTCHW: torch.Tensor,
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor | None = None,
        maps: dict[int, torch.Tensor] | None = None,
    ) -> Prediction:
        """The segmentation of a batch of clips; the model must be in evaluation mode. Arguments: see `forward`."""
        height, width = images_BTCHW.shape[-2:]
        return self.decode(self(images_BTCHW, audio_BTA, valid_BT, maps), (height, width))

    def backbone_maps(self, images_BTCHW: torch.Tensor) -> dict[int, torch.Tensor]:
        """The backbone's maps of the frames by stride, [B * T, C, h, w]."""
        self.backbone.frames_per_clip = images_BTCHW.shape[1]
        return self.backbone(images_BTCHW.flatten(0, 1))

    def parameter_groups(
        self, learning_rate: float, backbone_lr_mult: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Parameter groups for AdamW; the group with the plain `learning_rate` comes first.

        The backbone's learning rate is multiplied by `backbone_lr_mult`. Vectors (biases, norms) and the parameters of
        `no_decay` have no weight decay. Frozen parameters are left out.
        """
        backbone = {id(parameter) for parameter in self.backbone.parameters()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and not name.endswith(self.no_decay)
                groups.setdefault((id(parameter) in backbone, not decays), []).append(parameter)
        return [
            {
                "params": groups[in_backbone, no_decay],
                "lr": learning_rate * (backbone_lr_mult if in_backbone else 1),
                "weight_decay": 0.0 if no_decay else weight_decay,
            }
            for in_backbone, no_decay in sorted(groups)
        ]

    # Hooks of the training loop that a method may leave as they are.

    def on_epoch_start(self) -> None:  # noqa: B027
        """Called before the first step of an epoch."""

    def on_step_end(self, output: Any, step: int, total_steps: int) -> None:  # noqa: B027
        """Called after the optimizer's step with the output it was computed from; `step` steps are done."""

    def on_epoch_end(self, step: int, total_steps: int) -> dict[str, float]:
        """Called after the last step of an epoch; returns the method's metrics of that epoch."""
        return {}

    def epoch_state(self) -> dict[str, Any]:
        """What the hooks have kept since the epoch's start, for all ranks; tensors are on the CPU."""
        return {}

    def load_epoch_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue an epoch from what `epoch_state` returned, on any number of ranks."""
