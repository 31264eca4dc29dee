"""CATR's losses, and what its output depends on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.helpers.model import CLASSES, make_clips, make_method, method_losses, method_settings

EVERY = torch.ones(2, 2, dtype=torch.bool)
NAMES = {"cls", "dice", "focal", "bce"}


def output_and_losses(model, images, audio, labels, **weights):
    output = model(images, audio)
    loss = method_losses("catr").model_copy(update={"auxiliary": False, **weights})
    return output, model.build_criterion(loss)(output, labels, EVERY, EVERY)


def test_the_losses_of_one_query_and_one_class_are_those_of_the_formulas():
    model = make_method("catr", 1, num_queries=1)
    images, audio, labels = make_clips()
    labels = labels.clamp(max=1)
    output, losses = output_and_losses(model, images, audio, labels)
    logits_FP = output.mask_logits_BTNHW.flatten(3).flatten(0, 2)
    shares_FHW = functional.avg_pool2d(labels.flatten(0, 1).float()[:, None], 4)[:, 0]
    masks_FP, probs_FP = shares_FHW.flatten(1), logits_FP.sigmoid()
    dice_F = 1 - (2 * (probs_FP * masks_FP).sum(1) + 1) / (probs_FP.sum(1) + masks_FP.sum(1) + 1)
    torch.testing.assert_close(losses["dice"], 5 * dice_F.mean())
    bce_FP = functional.binary_cross_entropy_with_logits(logits_FP, masks_FP, reduction="none")
    torch.testing.assert_close(losses["bce"], 4 * bce_FP.mean())
    missed_FP = probs_FP * (1 - masks_FP) + (1 - probs_FP) * masks_FP
    alpha_FP = 0.25 * masks_FP + 0.75 * (1 - masks_FP)
    torch.testing.assert_close(losses["focal"], 5 * (alpha_FP * missed_FP**2 * bce_FP).mean())
    wanted_F = (~labels.flatten(0, 1).flatten(1).any(1)).long()  # 0: the class, 1: no object, in the silent frames
    entropy = functional.cross_entropy(output.class_logits_BTNC.flatten(0, 2), wanted_F)
    torch.testing.assert_close(losses["cls"], entropy)
    torch.testing.assert_close(losses["total"], sum(losses[name] for name in NAMES))


def test_a_query_without_a_target_predicts_no_object_with_a_small_weight():
    model = make_method("catr", 1, num_queries=2)
    images, audio, labels = make_clips()
    _, heavy = output_and_losses(model, images, audio, labels.clamp(max=1), no_object=1.0)
    _, none = output_and_losses(model, images, audio, labels.clamp(max=1), no_object=0.0)
    _, light = output_and_losses(model, images, audio, labels.clamp(max=1), no_object=0.1)
    torch.testing.assert_close(light["cls"], none["cls"] + 0.1 * (heavy["cls"] - none["cls"]))
    assert heavy["cls"] > none["cls"]


def test_earlier_layers_have_losses_in_training_alone():
    model = make_method("catr")
    images, audio, labels = make_clips()
    output = model(images, audio)
    assert len(output.auxiliary) == model.settings.decoder_layers - 1
    losses = model.build_criterion(method_losses("catr"))(output, labels, EVERY, EVERY)
    assert losses.keys() == {*NAMES, "auxiliary", "total"} and losses["auxiliary"] > 0
    assert not model.eval()(images, audio).auxiliary


@pytest.mark.parametrize("changes", [{"mask_stride": 8}, {"encoder_layers": 1}, {"audio_queries": False}])
def test_settings_and_the_sound_matter(changes):
    model = make_method("catr", **changes).eval()
    images, audio, _ = make_clips()
    prediction = model.predict(images, audio)
    stride = changes.get("mask_stride", 4)
    assert prediction.output.mask_logits_BTNHW.shape == (2, 2, 5, 64 // stride, 64 // stride)
    assert prediction.output.class_logits_BTNC.shape == (2, 2, 5, CLASSES + 1)
    other = audio.clone()
    other[:, 1] += 1
    changed = model.predict(images, other).foreground_BTHW
    for frame in (0, 1):  # the frames of a clip attend to each other's sound
        assert not torch.allclose(changed[:, frame], prediction.foreground_BTHW[:, frame])


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"hidden_dim \(32\) must be a multiple of num_heads \(3\)"):
        method_settings("catr", num_heads=3)
