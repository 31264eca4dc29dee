"""LVS's map and losses, compared with the formulas of its paper and public code."""

from __future__ import annotations

import torch
from torch.nn import functional

from qdformer.config.methods.lvs import LVSLoss
from tests.helpers.model import make_clips, make_method

EVERY = torch.ones(2, 2, dtype=torch.bool)


def contrast_of_the_public_code(model, output, chosen) -> torch.Tensor:
    """Each frame of `chosen` is of another clip."""
    visual, audio = output.visual_BTDhw[chosen], output.audio_BTD[chosen]
    own = torch.einsum("ndhw,nd->nhw", visual, audio).flatten(1)
    every = torch.einsum("ndhw,kd->nkhw", visual, audio).flatten(2)
    positive, every_positive = (((x - 0.65) / 0.03).sigmoid() for x in (own, every))
    negative = 1 - ((own - 0.4) / 0.03).sigmoid()
    sim1 = (positive * own).sum(-1, keepdim=True) / positive.sum(-1, keepdim=True)
    sim = (every_positive * every).sum(-1) / every_positive.sum(-1) * (1 - 100 * torch.eye(len(own)))
    sim2 = (negative * own).sum(-1, keepdim=True) / negative.sum(-1, keepdim=True)
    logits = torch.cat((sim1, sim, sim2), 1) / 0.07
    return functional.cross_entropy(logits, torch.zeros(len(own), dtype=torch.int64))


def test_the_contrast_is_that_of_the_public_code_for_one_frame_of_each_clip():
    model = make_method("lvs")
    images, audio, labels = make_clips()  # each clip has a sounding object in its first frame alone
    model.fine.bias.data += 1  # similarities of both signs
    output = model(images, audio)
    losses = model.build_criterion(LVSLoss(contrast=2.0))(output, labels, EVERY, EVERY)
    expected = contrast_of_the_public_code(model, output, (slice(None), 0))
    torch.testing.assert_close(losses["contrast"], 2.0 * expected)


def test_frames_of_a_clip_are_no_negatives_and_unlabeled_frames_are_pairs():
    model = make_method("lvs")
    images, audio, labels = make_clips(clips=1)
    output, every = model(images, audio), EVERY[:1]
    criterion = model.build_criterion(LVSLoss())
    whole = criterion(output, labels, every, ~every)["contrast"]
    alone = [contrast_of_the_public_code(model, output, (slice(None), t)) for t in (0, 1)]
    singles = torch.stack(alone).mean()  # no other clip: hard negatives alone
    torch.testing.assert_close(whole, singles, atol=1e-4, rtol=1e-4)
    sounding = criterion(output, labels, every, every)["contrast"]
    torch.testing.assert_close(sounding, alone[0], atol=1e-4, rtol=1e-4)


def test_the_map_is_the_positive_region_and_the_classes_are_those_of_the_sound():
    model = make_method("lvs", 4).eval()
    images, audio, _ = make_clips()
    output = model(images, audio)
    similarity = torch.einsum("btdhw,btd->bthw", output.visual_BTDhw, output.audio_BTD)
    probs = output.logits_BTKHW.softmax(2)
    expected = ((similarity - 0.65) / 0.03).sigmoid()
    torch.testing.assert_close(1 - probs[:, :, 0], expected, atol=1e-5, rtol=1e-3)
    heard = model.name_sound(model.listen(audio)).softmax(-1)[..., None, None]
    torch.testing.assert_close(probs[:, :, 1:], expected[:, :, None] * heard, atol=1e-5, rtol=1e-3)
    assert output.logits_BTKHW.shape[-2:] == (4, 4)
