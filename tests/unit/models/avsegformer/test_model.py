"""AVSegFormer's settings, losses, and what its output depends on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from qdformer.config.methods.avsegformer import AVSegFormerLoss
from tests.helpers.model import CLASSES, make_clips, make_method, method_settings

EVERY = torch.ones(2, 2, dtype=torch.bool)


def criterion_losses(model, output, labels, kind="dice"):
    criterion = model.build_criterion(AVSegFormerLoss(mask=2.0, mix=0.5, kind=kind))
    return criterion(output, labels, EVERY, EVERY)


def published_dice(logits_FHW, masks_FHW):
    """The formula of the public code, for each frame."""
    probs_FS, masks_FS = logits_FHW.sigmoid().flatten(1), masks_FHW.flatten(1).float()
    sizes_F = (probs_FS * probs_FS).sum(-1) + 0.001 + (masks_FS * masks_FS).sum(-1) + 0.001
    return 1 - 2 * (probs_FS * masks_FS).sum(-1) / sizes_F


@pytest.mark.parametrize("kind", ["dice", "bce"])
def test_the_losses_of_one_class_are_those_of_the_public_code(kind):
    model = make_method("avsegformer", 1)
    images, audio, labels = make_clips()
    labels = labels.clamp(max=1)
    output = model(images, audio)
    losses = criterion_losses(model, output, labels, kind)
    masks_FHW = labels.flatten(0, 1)
    mixed_FHW = functional.interpolate(output.mixed_BTHW.flatten(0, 1)[:, None], scale_factor=4, mode="bilinear")[:, 0]
    for name, weight, logits_FHW in (
        ("mask", 2.0, output.logits_BTKHW.flatten(0, 2)),
        ("mix", 0.5, mixed_FHW),
    ):
        if kind == "bce":
            expected = functional.binary_cross_entropy_with_logits(logits_FHW, masks_FHW.float())
        else:
            dice_F = published_dice(logits_FHW, masks_FHW)
            silent_F = ~masks_FHW.flatten(1).any(1)
            torch.testing.assert_close(dice_F[silent_F], torch.ones(2))  # a constant, which has no gradient
            expected = (dice_F * ~silent_F).mean()
        torch.testing.assert_close(losses[name], weight * expected)


def test_the_losses_of_several_classes_are_those_of_the_public_code():
    model = make_method("avsegformer")
    images, audio, labels = make_clips()
    output = model(images, audio)
    losses = criterion_losses(model, output, labels)
    expected = functional.cross_entropy(output.logits_BTKHW.flatten(0, 1), labels.flatten(0, 1))
    torch.testing.assert_close(losses["mask"], 2.0 * expected)
    torch.testing.assert_close(losses["total"], losses["mask"] + losses["mix"])


@pytest.mark.parametrize("changes", [{"mask_stride": 8}, {"output_stride": 4}, {"mask_stride": 8, "output_stride": 8}])
def test_strides(changes):
    model = make_method("avsegformer", **changes).eval()
    images, audio, _ = make_clips()
    strides = {"mask_stride": 4, "output_stride": 1, **changes}
    prediction = model.predict(images, audio)
    assert prediction.output.mixed_BTHW.shape[-1] == 64 // strides["mask_stride"]
    assert prediction.output.logits_BTKHW.shape == (2, 2, CLASSES + 1, *[64 // strides["output_stride"]] * 2)
    assert prediction.foreground_BTHW.shape == (2, 2, 64, 64)


def test_the_picture_of_one_frame_does_not_change_another_and_the_sound_changes_its_own():
    model = make_method("avsegformer").eval()
    images, audio, _ = make_clips()
    first = model.predict(images, audio).foreground_BTHW
    other_images, other_audio = images.clone(), audio.clone()
    other_images[:, 1] = 255 - other_images[:, 1]
    other_audio[:, 1] += 1
    changed = model.predict(other_images, other_audio).foreground_BTHW
    torch.testing.assert_close(changed[:, 0], first[:, 0])
    louder = model.predict(images, other_audio).foreground_BTHW
    assert not torch.allclose(louder[:, 1], first[:, 1])


def test_the_foreground_is_the_sum_of_the_classes():
    model = make_method("avsegformer").eval()
    images, audio, _ = make_clips()
    prediction = model.predict(images, audio)
    probs_BTKHW = prediction.output.logits_BTKHW.softmax(2)
    torch.testing.assert_close(prediction.foreground_BTHW, probs_BTKHW[:, :, 1:].sum(2))
    torch.testing.assert_close(prediction.class_probs_BTC, probs_BTKHW[:, :, 1:].amax((-2, -1)))
    assert torch.equal(prediction.semantic_BTHW, probs_BTKHW.argmax(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"hidden_dim \(32\) must be a multiple of num_heads \(3\)"),
        ({"mask_stride": 4, "output_stride": 8}, r"output_stride \(8\) must not be above mask_stride \(4\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        method_settings("avsegformer", **changes)
