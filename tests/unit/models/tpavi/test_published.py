"""Checkpoints of AVSBench's public code: every tensor finds its place, and the outputs are equal."""

from __future__ import annotations

import pytest
import torch

from qdformer.config.model import parse_model_settings
from qdformer.models.backbones import BackboneError
from qdformer.models.published import load_published
from tests.helpers.published import constant, golden, published_tpavi, value, write_checkpoint

CLASSES = 70


def settings(backbone: str = "resnet50", **changes):
    values = {"backbone_weights": None, "backbone_sha256": None, "frozen_stages": 0}
    return parse_model_settings({"name": "tpavi", "backbone": backbone, **values, **changes})


@pytest.mark.parametrize("classes", [1, CLASSES])
@pytest.mark.parametrize("backbone", ["resnet50", "pvt_v2_b5"])
def test_the_published_files_load(backbone, classes, tmp_path):
    """All names and shapes of the files for S4, MS3 and AVSS, with the settings of the presets."""
    tensors = {name: constant(name, shape) for name, shape in published_tpavi(backbone, classes).items()}
    path = str(write_checkpoint(tmp_path / "published.pth", tensors))
    own = load_published(path, settings(backbone, audio_bias=classes == 1), classes).state_dict()
    assert all(own[name].unique().numel() == 1 for name in own if not name.startswith("backbone."))
    for name, published in (
        ("aspp.2.branches.3.weight", "conv3.conv2d_list.3.weight"),
        ("decoder.blocks.0.lateral.second.bias", "path1.resConfUnit1.conv2.bias"),
        ("decoder.blocks.3.refine.first.weight", "path4.resConfUnit2.conv1.weight"),
        ("interactions.4.mu.bias", "tpavi_b4.W_z.0.bias"),
        ("interactions.1.batch_norm.running_var", "tpavi_b1.W_z.1.running_var"),
        ("decoder.classify.weight", "output_conv.4.weight"),
    ):
        assert torch.equal(own[name], tensors[published]), name


def test_the_outputs_are_those_of_the_public_code(tmp_path):
    tensors = {name: value(name, shape) for name, shape in published_tpavi("resnet50", 1).items()}
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    tensors |= dict.fromkeys(counters, torch.tensor(0))
    model = load_published(str(write_checkpoint(tmp_path / "published.pth", tensors)), settings(), 1).eval()
    images = (torch.arange(5 * 3 * 64 * 96) * 7919 % 256).reshape(1, 5, 3, 64, 96)
    audio = (torch.arange(5 * 128) * 31 % 97 / 97).reshape(1, 5, 128)
    with torch.no_grad():
        logits = model(images, audio).logits_BTKHW
    expected = torch.tensor(golden("tpavi")["logits"])
    assert expected.std() > 0.1
    torch.testing.assert_close(logits[0, :, 0, ::8, ::8].flatten(1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_conv.4.bias": None}, r"key for decoder.classify.bias is missing, expected shape \[71\]"),
        (
            {"tpavi_b2.g.weight": torch.zeros(64, 256, 1, 1, 1)},
            r"key tpavi_b2.g.weight has shape \[64, 256\], expected",
        ),
        ({"tpavi_b1.align_channel.bias": torch.zeros(256)}, "key tpavi_b1.align_channel.bias is of another network"),
        ({"resnet.layer4_1.0.conv1.weight": None}, "key .*stages.3.* is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(changes, message, tmp_path):
    tensors = {name: constant(name, shape) for name, shape in published_tpavi("resnet50", CLASSES).items()}
    changed = {name: x for name, x in {**tensors, **changes}.items() if x is not None}
    path = write_checkpoint(tmp_path / "other.pth", changed)
    with pytest.raises(BackboneError, match=f"other.pth: {message}"):
        load_published(str(path), settings(audio_bias=False), CLASSES)
