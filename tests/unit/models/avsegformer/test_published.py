"""Checkpoints of AVSegFormer's public code: every tensor finds its place, and the outputs are equal."""

from __future__ import annotations

import pytest
import torch

from qdformer.config.model import parse_model_settings
from qdformer.models import published
from qdformer.models.avsegformer.published import load_published
from qdformer.models.backbones import BackboneError
from tests.helpers.model import method_settings
from tests.helpers.published import constant, golden, small_avsegformer, value, write_checkpoint

GOLDEN = golden("avsegformer")
QUERIES, CLASSES = 12, 70


def settings(backbone: str = "resnet50", layers: int = 1, queries: int = QUERIES):
    values = {"backbone_weights": None, "backbone_sha256": None, "frozen_stages": 0, "num_queries": queries}
    count = {f"{part}_layers": layers for part in ("generator", "encoder", "decoder")}
    return parse_model_settings({"name": "avsegformer", "backbone": backbone, **values, **count})


@pytest.mark.parametrize("backbone", ["resnet50", "pvt_v2_b5"])
def test_the_published_files_load(backbone, tmp_path):
    """All names and shapes of the files for AVSS, with the settings of the presets."""
    tensors = {name: constant(name, shape) for name, shape in GOLDEN["tensors"][backbone].items()}
    model = load_published(
        str(write_checkpoint(tmp_path / "published.pth", tensors)), settings(backbone, layers=6, queries=300), CLASSES
    )
    own = model.state_dict()
    outside = [name for name in own if not name.startswith("backbone.") and own[name].unique().numel() > 1]
    assert outside == ["mixer.attention.in_proj_weight"]  # two tensors of the public code
    assert torch.equal(
        own["decoder.5.feed_forward.wide.bias"],
        constant("head.transformer.decoder.layers.5.linear1.bias", [2048]),
    )
    if backbone == "pvt_v2_b5":
        block = "backbone.stages.2.blocks.39"
        attention = constant("backbone.block3.39.attn.kv.weight", [640, 320])
        assert torch.equal(own[f"{block}.attention.key.weight"], attention[:320])
        assert torch.equal(own[f"{block}.attention.value.weight"], attention[320:])
        assert torch.equal(own[f"{block}.layer_norm_2.bias"], constant("backbone.block3.39.norm2.bias", [320]))


def test_the_outputs_are_those_of_the_public_code(tmp_path):
    tensors = {
        name: value(name, shape)
        for name, shape in small_avsegformer("resnet50", 1, QUERIES).items()
        if not is_unused(name)
    }
    model = load_published(str(write_checkpoint(tmp_path / "published.pth", tensors)), settings(), 1).eval()
    images = (torch.arange(2 * 3 * 64 * 96) * 7919 % 256).reshape(1, 2, 3, 64, 96)
    audio = (torch.arange(256) * 31 % 97 / 97).reshape(1, 2, 128)
    with torch.no_grad():
        logits = model(images, audio).logits_BTKHW
    expected = torch.tensor(GOLDEN["logits"])
    assert expected.std() > 0.001
    torch.testing.assert_close(logits[0, :, :, ::8, ::8].flatten(1), expected, atol=1e-5, rtol=0)


def is_unused(name: str) -> bool:
    return name.startswith("vggish.") or name.endswith("num_batches_tracked")


def constants(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = {name: constant(name, shape) for name, shape in small_avsegformer("resnet50", CLASSES, QUERIES).items()}
    return {name: x for name, x in {**tensors, **changes}.items() if x is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head.fc.4.weight": None}, r"key for mask_head.out.weight is missing, expected shape \[71, 32, 1, 1\]"),
        ({"head.fc.4.weight": torch.zeros(24, 32, 1, 1)}, r"key head.fc.4.weight has shape \[24, 32, 1, 1\], expected"),
        (
            {"head.fusion_block.q_proj.weight": None},
            r"key head.fusion_block.q_proj.weight .* has shape \[512, 256\], expected",
        ),
        ({"head.other.weight": torch.zeros(1)}, "key head.other.weight is of another network"),
        ({"backbone.layer3_1.0.conv1.weight": None}, "key .*stages.2.* is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(changes, message, tmp_path):
    path = write_checkpoint(tmp_path / "other.pth", constants(**changes))
    with pytest.raises(BackboneError, match=f"other.pth: {message}"):
        load_published(str(path), settings(), CLASSES)


def test_another_backbone_than_the_public_codes_is_refused(tmp_path):
    path = write_checkpoint(tmp_path / "other.pth", constants())
    with pytest.raises(BackboneError, match=r"other.pth: .* the settings say backbone: swin_tiny"):
        load_published(str(path), settings("swin_tiny"), CLASSES)


def test_a_method_without_public_checkpoints_is_named(tmp_path):
    with pytest.raises(BackboneError, match="of qdformer cannot be read; those of these methods can: avsegformer"):
        published.load_published(str(tmp_path / "other.pth"), method_settings("qdformer"), CLASSES)


def test_code_in_a_file_is_not_run(tmp_path):
    class Run:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"state_dict": Run()}, tmp_path / "bad.pth")
    with pytest.raises(BackboneError, match="not weights that can be read without running code"):
        load_published(str(tmp_path / "bad.pth"), settings(), CLASSES)
    assert not (tmp_path / "made").exists()
