"""Bi-Gen's parts and losses, compared with the formulas of its paper and public code."""

from __future__ import annotations

import torch
from torch.nn import functional

from qdformer.config.methods.bigen import BiGenLoss
from qdformer.models.bigen.modules import CorrelationFusion, MotionAttention, VisualToAudio, neighbors
from qdformer.models.tpavi.interaction import PixelwiseInteraction
from tests.helpers.model import make_clips, make_method

EVERY = torch.ones(2, 2, dtype=torch.bool)


def test_the_motion_compares_each_position_with_all_of_the_next_frame():
    torch.manual_seed(0)
    motion, map_FDhw = MotionAttention(), torch.randn(6, 4, 2, 3)
    result_FDhw = motion(map_FDhw, torch.ones(2, 3, dtype=torch.bool))
    for frame, other in enumerate([1, 2, 1, 4, 5, 4]):  # the last frame of a clip is compared with the one before it
        volume = torch.einsum("dhw,dxy->hwxy", map_FDhw[frame], map_FDhw[other]).clamp(min=0)
        weight = motion.scale(volume.mean((2, 3))[None, None])[0, 0].sigmoid()
        torch.testing.assert_close(result_FDhw[frame], map_FDhw[frame] * (1 + weight))


def test_padding_frames_are_not_compared_with_others():
    valid = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [False, False, False]])
    assert neighbors(valid).tolist() == [[1, 2, 1], [1, 0, 2], [0, 1, 2], [0, 1, 2]]


def test_the_audio_gates_the_positions():
    torch.manual_seed(0)
    fusion = CorrelationFusion(16)
    map_FDhw, audio_BTA = torch.randn(4, 16, 3, 5), torch.rand(2, 2, 128)
    fused_FDhw, audio_BTD = fusion.fuse(map_FDhw, audio_BTA, EVERY)
    torch.testing.assert_close(audio_BTD.norm(dim=-1), torch.ones(2, 2))
    ratio_FDhw = fused_FDhw / functional.normalize(map_FDhw, dim=1)
    assert ((ratio_FDhw > 1) & (ratio_FDhw < 2)).all()
    torch.testing.assert_close(ratio_FDhw, ratio_FDhw[:, :1].expand_as(ratio_FDhw))  # one gate for all channels
    other_FDhw, _ = fusion.fuse(map_FDhw, audio_BTA.roll(1, dims=1), EVERY)
    assert not torch.allclose(fused_FDhw, other_FDhw)


def test_the_audio_is_reconstructed_from_the_masked_map():
    torch.manual_seed(0)
    project, map_FDhw = VisualToAudio(16, size=7), torch.randn(2, 16, 7, 7)
    mask_F1HW = (torch.rand(2, 1, 28, 28) > 0.5).float()
    masked_FDhw = map_FDhw * functional.avg_pool2d(mask_F1HW, 4)
    expected_FA = project.gather(project.encode(masked_FDhw).flatten(2))[..., 0]
    torch.testing.assert_close(project(map_FDhw, mask_F1HW), expected_FA)
    assert project(torch.randn(2, 16, 3, 4), mask_F1HW).shape == (2, 128)


def test_the_losses_are_those_of_the_public_code():
    model = make_method("bigen", 1)
    images, audio, labels = make_clips()
    labels, labeled = labels.clamp(max=1), torch.tensor([[True, False]] * 2)
    output = model(images, audio)
    audio_FA = functional.normalize(audio.flatten(0, 1), dim=-1)
    for kind, chosen in (("prediction", slice(None)), ("truth", slice(None, None, 2))):  # all frames, the labeled ones
        losses = model.build_criterion(BiGenLoss(audio=2.0, avm=0.5, masks_from=kind))(output, labels, EVERY, labeled)
        masks_F1HW = output.logits_BTKHW.flatten(0, 1) if kind == "prediction" else labels.flatten(0, 1)[:, None]
        made_FA = model.to_audio(output.coarsest_FDhw, masks_F1HW.float())
        distance_F = (functional.normalize(made_FA, dim=-1) - audio_FA + 1e-6).norm(dim=-1)
        torch.testing.assert_close(losses["audio"], 2.0 * distance_F[chosen].mean())
    logits, mask = output.logits_BTKHW[:, 0, 0], labels[:, 0].float()
    weight = 1 + 5 * (functional.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    inter, union = ((weight * x).sum((1, 2)) for x in (logits.sigmoid() * mask, logits.sigmoid() + mask))
    expected = (
        functional.binary_cross_entropy_with_logits(logits, mask) + (1 - (inter + 1) / (union - inter + 1)).mean()
    )
    torch.testing.assert_close(losses["mask"], expected)
    assert losses["avm"] > 0 and "avm" not in model.build_criterion(BiGenLoss())(output, labels, EVERY, labeled)


def test_the_audio_may_be_fused_as_in_tpavi():
    model = make_method("bigen", fusion="tpavi", motion_stages=[3, 4])
    assert all(isinstance(fusion, PixelwiseInteraction) for fusion in model.fusions)
    assert list(model.motion) == ["3", "4"]
    assert model(*make_clips()[:2]).logits_BTKHW.shape == (2, 2, 5, 64, 64)
