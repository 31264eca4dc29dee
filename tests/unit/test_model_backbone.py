"""The backbone against the published model, and its weights' file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qdformer.model import backbone
from qdformer.model.backbone import BackboneError, EfficientNetLite0

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "efficientnet_lite0.json").read_text())


def test_maps_equal_the_published_model_s():
    y, x = torch.meshgrid(torch.arange(75), torch.arange(101), indexing="ij")
    image = torch.stack([3 * y + x, 2 * x + y * y, x * y]) % 256
    with torch.no_grad():
        maps = EfficientNetLite0(pretrained=True)(image[None].to(torch.uint8))
    for stride, expected in GOLDEN["maps"].items():
        found = maps[int(stride)]
        assert list(found.shape) == expected["shape"]
        torch.testing.assert_close(
            found.mean((0, 2, 3))[:8], torch.tensor(expected["mean_by_channel"]), atol=1e-3, rtol=1e-3
        )
        torch.testing.assert_close(found[0, 0, 0], torch.tensor(expected["first_row"]), atol=1e-3, rtol=1e-3)


def test_frozen_stages_are_the_first_and_only_of_pretrained_weights():
    trained = {name for name, p in EfficientNetLite0(True, frozen_stages=2).named_parameters() if p.requires_grad}
    assert not any(name.startswith(("stem", "stages.0.", "stages.1.")) for name in trained)
    assert any(name.startswith("stages.2.") for name in trained)
    assert all(p.requires_grad for p in EfficientNetLite0(False, frozen_stages=2).parameters())


def test_fresh_weights_keep_the_scale_of_the_pixels():
    torch.manual_seed(0)
    with torch.no_grad():
        maps = EfficientNetLite0(pretrained=False)(torch.randint(0, 256, (1, 3, 64, 64)))
    assert all(0.05 < float(x.std()) < 20 for x in maps.values())


def test_missing_weights_are_named(monkeypatch):
    monkeypatch.setattr(backbone, "WEIGHTS_PACKAGE", "no_such_package")
    with pytest.raises(BackboneError, match="no_such_package.*no such weights"):
        EfficientNetLite0(pretrained=True)


def test_altered_weights_are_refused(monkeypatch):
    monkeypatch.setattr(backbone, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(BackboneError, match="SHA-256 is 5793.*expected 0000"):
        EfficientNetLite0(pretrained=True)
