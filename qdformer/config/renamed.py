"""Renamed settings keys, for error messages that name the new key and for reading old checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "check": {"speck": "min_component_area"},
    "features": {"centre": "center"},
    "train": {
        "backbone_factor": "backbone_lr_mult",
        "drop_at": "lr_milestones",
        "clip_gradient": "max_grad_norm",
    },
    "train.augment": {"colour": "color"},
    "train.model": {
        "width": "hidden_dim",
        "heads": "num_heads",
        "ffn_width": "ffn_dim",
        "prototypes": "num_prototypes",
        "codes": "codebook_size",
        "revive_codes_after": "reset_dead_codes_after",
        "mask_channels": "mask_dim",
    },
}
"""New key of each old key, by section."""


def rename_keys(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The values of a section, with every old key replaced by its new name."""
    return {RENAMED[section].get(key, key): value for key, value in values.items()}
