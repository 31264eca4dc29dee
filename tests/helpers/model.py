"""A small model and a batch for it, shared by the model and loss tests."""

from __future__ import annotations

import torch

from qdformer.config.base import Section
from qdformer.config.methods.base import MethodSettings
from qdformer.config.methods.qdformer import Loss, QDFormerSettings
from qdformer.config.model import SETTINGS, parse_losses, parse_model_settings
from qdformer.config.settings import load_settings
from qdformer.data.manifest import Classes
from qdformer.models import Method, build_model
from qdformer.models.qdformer.model import QDFormer
from tests.helpers import PROJECT

PARAMS = load_settings(PROJECT / "params.yaml")
LOSS: Loss = PARAMS.train.loss
SMALL = PARAMS.train.model.model_copy(
    update={
        "backbone_weights": None,
        "hidden_dim": 32,
        "num_heads": 4,
        "ffn_dim": 64,
        "codebook_size": 16,
        "quantize_after": 0.0,
        "query_residual_dim": 0,
        "num_prototypes": 3,
        "encoder": "light",
        "mask_stride": 4,
        "fusion_stride": 32,
        "decompose": True,
        "quantize": True,
        "recombine": True,
        "calibrate": True,
    }
)
CLASSES = 4
NAMES = Classes(tuple(f"class {index}" for index in range(CLASSES)), (False,) * CLASSES)
SIZES: dict[str, dict[str, object]] = {
    "qdformer": SMALL.model_dump(),
    "tpavi": {"hidden_dim": 32},
    "bigen": {"hidden_dim": 16, "projection_size": 2},
    "lvs": {"hidden_dim": 32},
    "mssl": {"hidden_dim": 32, "align_dim": 16, "stage_one": 0.0},
    "catr": {
        "hidden_dim": 32,
        "num_heads": 4,
        "num_queries": 5,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "ffn_dim": 64,
        "mask_dim": 16,
    },
    "avsegformer": {
        "hidden_dim": 32,
        "num_heads": 4,
        "num_queries": 12,
        "generator_layers": 1,
        "generator_ffn_dim": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "ffn_dim": 64,
    },
}
"""What makes a model of each method small; a new method needs an entry."""
LEARNING_RATES = {"avsegformer": 0.0005, "bigen": 0.008, "mssl": 0.005}
"""Learning rates for one batch, of the methods that need a lower or a higher one than the others."""
ROWS = {
    "baseline": {"decompose": False, "quantize": False, "recombine": False, "calibrate": False},
    "decomposed": {"quantize": False, "recombine": False, "calibrate": False},
    "quantized": {"recombine": False, "calibrate": False},
    "recombined": {"calibrate": False},
    "full": {},
    "unquantized": {"quantize": False},
}
READINGS = {
    "deformable": {"encoder": "deformable"},
    "fused at stride 8": {"fusion_stride": 8},
    "masks at stride 8": {"mask_stride": 8, "fusion_stride": 64},
    "prototypes of their own": {"share_prototypes": False},
    "filters from g": {"filters_from": "continuous"},
    "batch norm": {"recombination_norm": "batch"},
    "calibrated from F_a": {"calibrate_from": "audio"},
    "residual queries": {"query_residual_dim": 8},
    "residual queries of clip tokens": {"query_residual_dim": 32, "calibrate": False},
    "running means": {"codebook": "ema"},
    "free codes": {"normalize_codes": False},
    "condinst": {"mask_head": "condinst"},
}


def settings(**changes: object) -> QDFormerSettings:
    return SMALL.model_copy(update=changes)


def make_model(seed: int = 0, **changes: object) -> QDFormer:
    torch.manual_seed(seed)
    return QDFormer(settings(**changes), CLASSES)


def method_settings(name: str, **changes: object) -> MethodSettings:
    """The settings of a small model of any method, with a backbone of random weights."""
    shared = {key: getattr(SMALL, key) for key in MethodSettings.model_fields}
    return parse_model_settings({**shared, **SIZES[name], "name": name, **changes})


def method_losses(name: str) -> Section:
    """The loss weights of any method: those of params.yaml, or the method's own."""
    return LOSS if isinstance(LOSS, SETTINGS[name].losses) else parse_losses(name, {})


def make_method(name: str, num_classes: int = CLASSES, seed: int = 0, **changes: object) -> Method:
    torch.manual_seed(seed)
    return build_model(method_settings(name, **changes), num_classes)


def make_clips(clips: int = 2, frames: int = 2, height: int = 64, width: int = 64, seed: int = 0):
    """Images, audio and labels: a square of class 1 or 2 at the left, named by the audio, silent in the last frame."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (clips, frames, 3, height, width), generator=generator).to(torch.uint8)
    voices = torch.rand(2, 128, generator=generator)
    audio = torch.zeros(clips, frames, 128)
    labels = torch.zeros(clips, frames, height, width, dtype=torch.int64)
    for clip in range(clips):
        kind = clip % 2
        rows, columns = slice(height // 4, 3 * height // 4), slice(width // 8, width // 2)
        images[clip, :, kind, rows, columns] = 220
        sounding = slice(0, max(1, frames - 1))
        labels[clip, sounding, rows, columns] = kind + 1
        audio[clip, sounding] = voices[kind]
    return images, audio, labels
