"""ResNet-18, ResNet-50, Swin-T and PVT-v2 from transformers. Importing this module imports transformers.

The layers are transformers' own. Only what the feature maps need is computed.

Shapes: F frames, H W pixels, S tokens of a map in row order, C channels.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PvtV2Backbone,
    PvtV2Config,
    ResNetBackbone,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
)
from transformers.models.swin.modeling_swin import SwinDropPath
from transformers.utils import logging

from qdformer.models.backbones.base import Backbone
from qdformer.models.backbones.weights import BackboneError, Weights
from qdformer.utils.distributed import own_clips, rank, world_size

Network = TypeVar("Network", bound=PreTrainedModel)

STRIDES = (4, 8, 16, 32)
STAGE_NAMES = ["stage1", "stage2", "stage3", "stage4"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet's color channels, for pixel values 0..1."""

TORCHVISION_TO_TRANSFORMERS = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.convolution."),
    (r"\.bn(\d)\.", lambda found: f".layer.{int(found[1]) - 1}.normalization."),
    (r"^layer(\d)\.", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers."),
)
"""Patterns in the tensor names of torchvision's (and timm's) ResNet, and the names in transformers."""
UNUSED_PREFIXES = ("classifier.", "fc.", "layernorm.")
"""Prefixes of tensors in published files that the feature maps do not need."""


def build(name: str, weights: Weights | None = None) -> Backbone:
    """The backbone `name` with these weights or random ones; raises `BackboneError` if the weights do not fit."""
    return _BUILDERS[name](weights)


class _TransformersBackbone(Backbone):
    """A network with one feature map per stage; images are normalized by ImageNet's mean and standard deviation."""

    scale_311: torch.Tensor
    shift_311: torch.Tensor

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.channels = dict(zip(STRIDES, channels, strict=True))
        scale_3 = 1 / (255 * torch.tensor(STD))
        self.register_buffer("scale_311", scale_3[:, None, None], persistent=False)
        shift_3 = -torch.tensor(MEAN) / torch.tensor(STD)
        self.register_buffer("shift_311", shift_3[:, None, None], persistent=False)

    def normalize(self, images_F3HW: torch.Tensor) -> torch.Tensor:
        """Pixel values 0..255 -> values normalized as in pretraining, channels-last."""
        images_F3HW = images_F3HW.contiguous(memory_format=torch.channels_last).float()
        return torch.addcmul(self.shift_311, images_F3HW, self.scale_311)


class ResNet(_TransformersBackbone):
    """ResNet-18 and ResNet-50 (He et al., 2016). A block's stride is in its first 3x3 convolution, as in transformers,
    torchvision and timm.

    Batch normalization is folded into the convolutions: as in DETR, its statistics stay as pretrained.
    """

    def __init__(self, network: ResNetBackbone) -> None:
        super().__init__(network.channels)
        network.eval()  # `fuse_conv_bn_eval` requires evaluation mode
        for module in network.modules():
            convolution, norm = getattr(module, "convolution", None), getattr(module, "normalization", None)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module.convolution = fuse_conv_bn_eval(convolution, norm)
                module.normalization = nn.Identity()
            elif isinstance(module, nn.ReLU):
                module.inplace = True  # the backward pass of a convolution does not need its output
        network.requires_grad_(True)  # including the new biases
        self.stem = network.embedder
        self.stages = network.encoder.stages

    def forward(self, images_F3HW: torch.Tensor) -> dict[int, torch.Tensor]:
        x = self.stem(self.normalize(images_F3HW))
        maps = {}
        for stride, stage in zip(STRIDES, self.stages, strict=True):
            maps[stride] = x = stage(x)
        return maps


class StochasticDepth(SwinDropPath):
    """Drops a residual branch of a frame with probability `drop_prob`, alike for any number of ranks.

    Every rank draws one seed from torch's random state, which must be the same on all ranks, and from it the numbers of
    the global batch up to its own last frame.
    """

    def __init__(self, drop_prob: float, backbone: Backbone) -> None:
        super().__init__(drop_prob)
        self._frames_per_clip = lambda: backbone.frames_per_clip  # an attribute would make the backbone a submodule

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        frames = self._frames_per_clip()
        clips = len(hidden_states) // frames
        last = rank() + world_size() * (clips - 1)
        numbers_F = own_clips(torch.rand(last + 1, frames, generator=generator)).flatten().to(hidden_states)
        keep = 1 - self.drop_prob
        kept_F = torch.floor(numbers_F + keep)
        return hidden_states.div(keep) * kept_F.view(-1, *[1] * (hidden_states.ndim - 1))


class SwinTiny(_TransformersBackbone):
    """Swin-T (Liu et al., 2021) with windows of 7 x 7.

    Each map has its own layer normalization, which is not pretrained. In training mode, stochastic depth drops each
    residual branch with a probability that grows to 0.1 in the last block, as in pretraining.
    """

    def __init__(self, network: SwinBackbone) -> None:
        super().__init__(network.channels)
        for module in network.modules():
            if isinstance(drop_path := getattr(module, "drop_path", None), SwinDropPath):
                module.drop_path = StochasticDepth(drop_path.drop_prob, self)
        self.stem = network.swin.embeddings
        self.stages = network.swin.encoder.layers
        self.norms = nn.ModuleList(network.hidden_states_norms[name] for name in STAGE_NAMES)

    def freeze_maps_except(self, strides: Sequence[int]) -> None:
        for stride, norm in zip(STRIDES, self.norms, strict=True):
            norm.requires_grad_(stride in strides)

    def forward(self, images_F3HW: torch.Tensor) -> dict[int, torch.Tensor]:
        x_FSC, size = self.stem(self.normalize(images_F3HW))
        maps = {}
        stage: Any  # transformers' SwinStage
        for stride, stage, norm in zip(STRIDES, self.stages, self.norms, strict=True):
            for block in stage.blocks:
                x_FSC, _ = block(x_FSC, size, always_partition=True)
            maps[stride] = norm(x_FSC).unflatten(1, size).permute(0, 3, 1, 2)
            if stage.downsample is not None:
                x_FSC, size = stage.downsample(x_FSC, size), tuple((side + 1) // 2 for side in size)
        return maps


class PVTv2(_TransformersBackbone):
    """Pyramid Vision Transformer v2 (Wang et al., 2022), b2 and b5. Images must have at least 29 pixels per side."""

    def __init__(self, network: PvtV2Backbone) -> None:
        super().__init__(network.channels)
        self.stem = nn.Identity()  # each stage has its own patch embedding
        self.stages = network.encoder.layers

    def forward(self, images_F3HW: torch.Tensor) -> dict[int, torch.Tensor]:
        if min(images_F3HW.shape[-2:]) < 29:  # less than 8 cells at stride 4, which the attention reduces by 8
            raise ValueError(f"images have shape {list(images_F3HW.shape)}; PVT-v2 needs 29 pixels a side")
        x = self.normalize(images_F3HW)
        maps = {}
        for stride, stage in zip(STRIDES, self.stages, strict=True):
            (x_FSC,), height, width = stage(x, False)
            maps[stride] = x = x_FSC.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return maps


def _resnet(weights: Weights | None, **sizes: Any) -> ResNet:
    if weights is not None and "layer1.0.conv1.weight" in weights.tensors:
        weights = Weights(weights.path, {_from_torchvision(key): x for key, x in weights.tensors.items()})
    network = _network(ResNetBackbone, ResNetConfig, weights, **sizes)
    if weights is None:
        # Residual blocks start as identities (Goyal et al., 2017): without batch normalization, the scale of the maps
        # would otherwise grow from block to block.
        stage: Any  # transformers' ResNetStage
        for stage in network.encoder.stages:
            for block in stage.layers:
                nn.init.zeros_(block.layer[-1].normalization.weight)
    return ResNet(network)


def _swin_tiny(weights: Weights | None) -> SwinTiny:
    return SwinTiny(_network(SwinBackbone, SwinConfig, weights))


def _pvt_v2(depths: tuple[int, ...], mlp_ratios: tuple[int, ...], weights: Weights | None) -> PVTv2:
    sizes = {"depths": depths, "mlp_ratios": mlp_ratios, "hidden_sizes": (64, 128, 320, 512)}
    return PVTv2(_network(PvtV2Backbone, PvtV2Config, weights, **sizes))


_BUILDERS = {
    "resnet18": lambda weights: _resnet(
        weights, layer_type="basic", depths=(2, 2, 2, 2), hidden_sizes=(64, 128, 256, 512)
    ),
    "resnet50": _resnet,
    "swin_tiny": _swin_tiny,
    "pvt_v2_b2": lambda weights: _pvt_v2((3, 4, 6, 3), (8, 8, 4, 4), weights),
    "pvt_v2_b5": lambda weights: _pvt_v2((3, 6, 40, 3), (4, 4, 4, 4), weights),
}


def _network(
    kind: type[Network], build_config: Callable[..., PreTrainedConfig], weights: Weights | None, **options: Any
) -> Network:
    """transformers' network with random weights, or with these, whichever version of transformers named them.

    Only the norms of Swin's maps and the batch counters of batch normalization may be missing from the weights. Raises
    `BackboneError` for other missing, unexpected or misshapen tensors.
    """
    config = build_config(out_features=STAGE_NAMES, **options)
    if weights is None:
        return kind(config)
    with _quiet():
        result: Any = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights.tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
        )
    network, loaded = result
    expected = network.state_dict()
    for key, found_shape, expected_shape in sorted(loaded["mismatched_keys"]):
        raise weights.mismatch(key, expected_shape, found_shape)
    for key in sorted(loaded["missing_keys"]):
        if not key.startswith("hidden_states_norms.") and not key.endswith("num_batches_tracked"):
            raise weights.mismatch(key, expected[key].shape, None)
    for key in sorted(loaded["unexpected_keys"]):
        if not key.startswith(UNUSED_PREFIXES):  # such as the tensors of a deeper network
            raise BackboneError(f"{weights.path}: key {key} is of another network; no {kind.__name__} here has it")
    return network


def _from_torchvision(key: str) -> str:
    for pattern, name in TORCHVISION_TO_TRANSFORMERS:
        key = re.sub(pattern, name, key)
    return key


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' report on the loaded tensors; `_network` raises an error for those that do not fit."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
