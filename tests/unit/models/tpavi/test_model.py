"""TPAVI's interaction and losses, compared with the formulas of its paper and public code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from qdformer.config.methods.tpavi import TPAVILoss
from qdformer.models.tpavi.interaction import PixelwiseInteraction
from tests.helpers.model import make_clips, make_method

EVERY = torch.ones(2, 2, dtype=torch.bool)


def interaction(window: int = 5) -> PixelwiseInteraction:
    torch.manual_seed(0)
    module = PixelwiseInteraction(16, audio_bias=True, window=window).eval()
    torch.nn.init.ones_(module.batch_norm.weight)
    return module


def by_the_paper(module: PixelwiseInteraction, visual_BTSD, audio_BTA):
    """Z_i with the matrix alpha_i of all positions."""
    audio_BTSD = module.align(audio_BTA)[:, :, None].expand_as(visual_BTSD)
    theta, phi, g = (
        layer(x).flatten(1, 2)
        for layer, x in ((module.theta, visual_BTSD), (module.phi, audio_BTSD), (module.g, visual_BTSD))
    )
    alpha = theta @ phi.transpose(1, 2) / theta.shape[1]
    attended_BTSE = (alpha @ g).unflatten(1, visual_BTSD.shape[1:3])
    return module.layer_norm(visual_BTSD + module.batch_norm(module.mu(attended_BTSE)))


def test_the_interaction_is_that_of_the_paper():
    module = interaction()
    visual_BTSD, audio_BTA = torch.randn(2, 3, 12, 16), torch.randn(2, 3, 128)
    fused_BTSD, aligned_BTD = module(visual_BTSD, audio_BTA, torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(fused_BTSD, by_the_paper(module, visual_BTSD, audio_BTA), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(aligned_BTD, module.align(audio_BTA))


def test_a_window_is_a_clip_of_its_own():
    module = interaction(window=2)
    visual_BTSD, audio_BTA = torch.randn(1, 5, 12, 16), torch.randn(1, 5, 128)
    fused_BTSD, _ = module(visual_BTSD, audio_BTA, torch.ones(1, 5, dtype=torch.bool))
    parts = zip(visual_BTSD.split(2, 1), audio_BTA.split(2, 1), strict=True)
    expected = torch.cat([by_the_paper(module, *part) for part in parts], 1)
    torch.testing.assert_close(fused_BTSD, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [1, 4])
def test_the_losses_are_those_of_the_public_code(classes):
    model = make_method("tpavi", classes)
    images, audio, labels = make_clips()
    labels = labels.clamp(max=classes)
    output = model(images, audio)
    losses = model.build_criterion(TPAVILoss(mask=2.0, avm=0.5))(output, labels, EVERY, EVERY)
    logits_FKHW, labels_FHW = output.logits_BTKHW.flatten(0, 1), labels.flatten(0, 1)
    if classes == 1:
        expected = functional.binary_cross_entropy_with_logits(logits_FKHW[:, 0], labels_FHW.float())
        shown = logits_FKHW
    else:
        expected = functional.cross_entropy(logits_FKHW, labels_FHW)
        shown = (logits_FKHW.argmax(1, keepdim=True) > 0).float()
    torch.testing.assert_close(losses["mask"], 2.0 * expected)
    divergences = []
    for map_FDhw, audio_BTD in zip(output.stage_maps_FDhw, output.stage_audio_BTD, strict=True):
        pooled = functional.adaptive_avg_pool2d(shown, map_FDhw.shape[-2:])
        pooled = pooled.sigmoid() if classes == 1 else pooled
        visual_FD = (map_FDhw * pooled).mean((-2, -1))
        p, q = visual_FD.softmax(-1), audio_BTD.flatten(0, 1).softmax(-1)
        divergences.append((q * (q / p).log()).sum(-1).mean())
    torch.testing.assert_close(losses["avm"], 0.5 * torch.stack(divergences).mean(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses["total"], losses["mask"] + losses["avm"])
    without = model.build_criterion(TPAVILoss(avm=0.0))(output, labels, EVERY, EVERY)
    assert "avm" not in without


def test_the_audio_is_fused_in_the_chosen_stages_alone():
    model = make_method("tpavi", tpavi_stages=[3, 4])
    assert list(model.interactions) == ["3", "4"]
    output = model(*make_clips()[:2])
    assert [tuple(x.shape[-2:]) for x in output.stage_maps_FDhw] == [(4, 4), (2, 2)]
