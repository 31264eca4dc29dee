"""MSSL's stages, losses and map, compared with the formulas of its paper and public code."""

from __future__ import annotations

import torch
from torch.nn import functional

from qdformer.config.methods.mssl import MSSLLoss
from tests.helpers.model import make_clips, make_method

EVERY = torch.ones(2, 2, dtype=torch.bool)


def losses_of(model, output, labels, **changes):
    return model.build_criterion(MSSLLoss(**changes))(output, labels, EVERY, EVERY)


def test_the_second_stage_begins_when_it_is_due_and_is_saved():
    model = make_method("mssl", stage_one=0.5)
    images, audio, labels = make_clips()
    output = model(images, audio)
    first = losses_of(model, output, labels)
    assert first["align"] == first["mask"] == 0 and all(
        first[key] > 0 for key in ("audio_cls", "visual_cls", "correspondence")
    )
    first["total"].backward()
    assert all(p.grad is not None for p in model.parameters())  # distributed training needs all of them in each step
    model.on_step_end(output, 4, 10)
    assert not model.stage_two
    model.on_step_end(output, 5, 10)
    assert model.state_dict()["stage_two"]
    second = losses_of(model, model(images, audio), labels)
    assert second["align"] > 0 and second["mask"] > 0


def test_the_losses_are_those_of_the_public_code():
    model = make_method("mssl")
    images, audio, labels = make_clips()  # each clip has a sounding object in its first frame alone, of class 1 or 2
    output = model(images, audio)
    losses = losses_of(model, output, labels, present=0.0, audio_cls=2.0, align=3.0)
    present_BTC = torch.zeros(2, 2, 4)
    present_BTC[0, 0, 0] = present_BTC[1, 0, 1] = 1
    for name, logits in (("audio_cls", output.audio_class_BTC), ("visual_cls", output.visual_class_BTC)):
        expected = functional.binary_cross_entropy(logits.sigmoid(), present_BTC)
        torch.testing.assert_close(losses[name], expected * (2 if name == "audio_cls" else 1))

    pictures, sounds = output.visual_BTD[:, 0], output.audio_BTD[:, 0]
    logits = torch.stack(
        [torch.cat([model.correspond(torch.cat([sound, x])) for sound in sounds]) for x in pictures]
    ).sigmoid()
    own, other = logits.diagonal().log().mean(), (1 - logits)[[0, 1], [1, 0]].log().mean()
    torch.testing.assert_close(losses["correspondence"], -(own + other) / 2)

    visual, heard = output.visual_BTCE[:, 0].flatten(0, 1), output.audio_BTCE[:, 0].flatten(0, 1)
    square = 2 - 2 * visual @ heard.T
    same = torch.eye(8)
    apart = functional.relu(1.4 - square.sqrt()).square()
    expected = (square * same).sum() / same.sum() + (apart * (1 - same)).sum() / (1 - same).sum()
    torch.testing.assert_close(losses["align"], 3.0 * expected, atol=1e-5, rtol=1e-4)


def test_classes_that_are_not_predicted_are_not_aligned():
    model = make_method("mssl")
    images, audio, labels = make_clips()
    assert losses_of(model, model(images, audio), labels, present=1.0)["align"] == 0


def test_the_map_of_a_class_is_its_similarity_where_the_class_sounds():
    model = make_method("mssl").eval()
    images, audio, _ = make_clips()
    output = model(images, audio)
    map_FDhw = model.visual_features(model.backbone_maps(images)).relu()
    positions = functional.normalize(model.project_visual(map_FDhw.permute(0, 2, 3, 1)), dim=-1)
    similarity = torch.einsum("fce,fhwe->fchw", output.audio_BTCE.flatten(0, 1), positions)
    expected = (similarity - 0.5) / 0.1 + output.audio_class_BTC.flatten(0, 1).sigmoid().log()[..., None, None]
    torch.testing.assert_close(output.logits_BTKHW[:, :, 1:].flatten(0, 1), expected, atol=1e-4, rtol=1e-4)
    assert not output.logits_BTKHW[:, :, 0].any()
