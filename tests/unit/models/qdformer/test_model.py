"""The whole model: shapes, rows of Table 2, gradients, and what must not influence predictions."""

from __future__ import annotations

import pytest
import torch

from qdformer.models.qdformer.criterion import Criterion
from qdformer.models.qdformer.model import FOREGROUND_THRESHOLD
from tests.helpers.model import CLASSES, LOSS, READINGS, ROWS, SMALL, make_clips, make_model


def losses_of(model, images, audio, labels):
    every_frame = torch.ones(images.shape[:2], dtype=torch.bool)
    return model.build_criterion(LOSS)(model(images, audio), labels, every_frame, every_frame)


@pytest.mark.parametrize("changes", [*ROWS.values(), *READINGS.values()], ids=[*ROWS, *READINGS])
def test_every_variant_predicts_and_every_parameter_has_a_gradient(changes):
    model = make_model(**changes)
    images, audio, labels = make_clips(frames=3, height=75, width=90)
    output = model(images, audio)
    N = SMALL.num_prototypes
    assert output.class_logits_BTNC.shape == (2, 3, N, CLASSES + 1)
    assert output.boxes_BTN4.shape == (2, 3, N, 4)
    size = (19, 23) if model.settings.mask_stride == 4 else (10, 12)
    assert output.mask_logits_BTNHW.shape == (2, 3, N, *size)
    assert model.eval().predict(images, audio).semantic_BTHW.shape == (2, 3, 75, 90)
    model.train()
    assert len(output.auxiliary) == SMALL.decoder_layers - 1
    assert (output.quantization is not None) == model.settings.quantize
    assert (output.local_tokens_BTND is not None) == model.settings.calibrate
    if output.local_tokens_BTND is not None:
        assert output.local_tokens_BTND.shape == (2, 3, N, SMALL.hidden_dim)
    losses_of(model, images, audio, labels)["total"].backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


def test_each_separated_signal_makes_a_query():
    model = make_model(**ROWS["baseline"], separate=True)
    images, audio, labels = make_clips()
    sounds = audio[:, :, None] * torch.rand(SMALL.num_prototypes, 1)
    losses_of(model, images, sounds, labels)["total"].backward()
    model.eval()
    plain = model(images, sounds).class_logits_BTNC
    sounds[:, :, 1] += 1
    assert (model(images, sounds).class_logits_BTNC != plain).any()
    repeated = sounds[:, :, [0, 1, 0]]
    torch.testing.assert_close(
        model(images, sounds[:, :, :2]).class_logits_BTNC, model(images, repeated).class_logits_BTNC
    )
    expected = r"expected \[2, 2, tracks, 128\] with 1 to 3 separated tracks.*train.model.separate"
    with pytest.raises(ValueError, match=rf"shape \[2, 2, 128\]; {expected}"):
        model(images, audio)
    with pytest.raises(ValueError, match=rf"shape \[2, 2, 4, 128\]; {expected}"):
        model(images, sounds[:, :, [0, 1, 2, 0]])
    with pytest.raises(ValueError, match=r"shape \[2, 2, 3, 128\]; expected \[2, 2, 128\] as the images"):
        make_model(**ROWS["baseline"])(images, sounds)


@pytest.mark.parametrize("mask_head", ["linear", "condinst"])
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (2, 33, 47), (1, 64, 40)])
def test_odd_sizes_and_one_frame(mask_head, frames, height, width):
    images, audio, _ = make_clips(frames=frames, height=height, width=width)
    model = make_model(mask_head=mask_head).eval()
    prediction = model.predict(images, audio)
    assert prediction.semantic_BTHW.shape == prediction.foreground_BTHW.shape == (2, frames, height, width)
    assert prediction.semantic_BTHW.dtype == torch.int64
    assert prediction.class_probs_BTC.shape == (2, frames, CLASSES)
    assert not prediction.output.auxiliary


def test_the_local_branch_does_not_move_the_codebook():
    model = make_model()
    images, audio, _ = make_clips()
    output = model(images, audio)
    stats = output.quantization
    commitment = stats.commitment_errors_BN.sum() + stats.local_commitment_errors_BTN.sum()
    (output.mask_logits_BTNHW.sum() + output.class_logits_BTNC.sum() + commitment).backward()
    assert model.quantizer.codebook_weight.grad is None
    model(images, audio).quantization.codebook_errors_BN.sum().backward()
    moved = model.quantizer.codebook_weight.grad.any(-1)
    assert set(moved.nonzero().flatten().tolist()) == set(output.quantization.global_codes_BN.flatten().tolist())


def test_padding_frames_change_nothing():
    model = make_model().eval()
    images, audio, labels = make_clips(frames=2)
    plain, losses = model(images, audio), losses_of(model, images, audio, labels)
    padded_labels = torch.cat([labels, labels[:, :1]], dim=1)
    valid = torch.tensor([[True, True, False]] * 2)
    for fill in (0, 200):
        padded_images = torch.cat([images, torch.full_like(images[:, :1], fill)], dim=1)
        padded_audio = torch.cat([audio, torch.full_like(audio[:, :1], fill)], dim=1)
        padded = model(padded_images, padded_audio, valid)
        torch.testing.assert_close(padded.mask_logits_BTNHW[:, :2], plain.mask_logits_BTNHW, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(padded.class_logits_BTNC[:, :2], plain.class_logits_BTNC, atol=1e-4, rtol=1e-4)
        for name, value in Criterion(LOSS, CLASSES)(padded, padded_labels, valid, valid).items():
            torch.testing.assert_close(value, losses[name], atol=1e-4, rtol=1e-4, msg=name)


def test_clips_are_independent():
    model = make_model().eval()
    images, audio, _ = make_clips(clips=3)
    together = model(images, audio)
    alone = model(images[1:2], audio[1:2])
    torch.testing.assert_close(together.mask_logits_BTNHW[1:2], alone.mask_logits_BTNHW, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.boxes_BTN4[1:2], alone.boxes_BTN4, atol=1e-4, rtol=1e-4)


def test_evaluation_is_deterministic():
    model = make_model().eval()
    images, audio, _ = make_clips()
    first, second = model.predict(images, audio), model.predict(images, audio)
    assert torch.equal(first.foreground_BTHW, second.foreground_BTHW)


def test_the_prediction_follows_its_definition():
    model = make_model(seed=1).eval()
    images, audio, _ = make_clips(height=40, width=64)
    with torch.no_grad():
        model.mask_decoder.classify.last.bias[:-1] += 2
        model.mask_decoder.filter[-1].bias[-1] -= 1
        model.mask_decoder.filter[-1].weight *= 20  # some pixels exceed `FOREGROUND_THRESHOLD`, some do not
    prediction = model.predict(images, audio)
    output = prediction.output
    masks = (
        torch.nn.functional.interpolate(
            output.mask_logits_BTNHW.flatten(0, 1), scale_factor=4, mode="bilinear", align_corners=False
        )
        .sigmoid()
        .unflatten(0, (2, 2))
    )
    p = output.class_logits_BTNC.softmax(-1)
    foreground = ((1 - p[..., -1])[..., None, None] * masks).amax(2)
    scores = (p[..., :-1, None, None] * masks[:, :, :, None]).amax(2)  # [B, T, C, H, W]
    semantic = torch.where(foreground > FOREGROUND_THRESHOLD, scores.argmax(2) + 1, 0)
    torch.testing.assert_close(prediction.foreground_BTHW, foreground)
    assert torch.equal(prediction.semantic_BTHW, semantic)
    assert semantic.any() and not semantic.all()
    torch.testing.assert_close(prediction.class_probs_BTC, p[..., :-1].amax(2))


@pytest.mark.parametrize("encoder", ["light", "deformable"])
def test_bfloat16_autocast_trains(encoder):
    model = make_model(encoder=encoder)
    images, audio, labels = make_clips()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, audio)
    every_frame = torch.ones(2, 2, dtype=torch.bool)
    total = Criterion(LOSS, CLASSES)(output, labels, every_frame, every_frame)["total"]
    total.backward()
    exact = losses_of(model, images, audio, labels)["total"]
    assert float(total.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


@pytest.mark.parametrize(
    ("images", "audio", "message"),
    [
        ((2, 3, 32, 32), (2, 128), r"images have shape \[2, 3, 32, 32\]; expected \[clips, frames, 3"),
        ((1, 2, 1, 32, 32), (1, 2, 128), r"images have shape"),
        ((1, 2, 3, 32, 32), (1, 3, 128), r"audio has shape \[1, 3, 128\]; expected \[1, 2, 128\]"),
    ],
)
def test_wrong_shapes_are_named(images, audio, message):
    with pytest.raises(ValueError, match=message):
        make_model()(torch.zeros(images), torch.zeros(audio))


def test_parameter_groups_hold_each_trained_parameter_once():
    model = make_model()
    model.backbone.stem.requires_grad_(False)
    groups = model.parameter_groups(0.001, 0.5, 0.01)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert groups[0]["lr"] == 0.001
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert rate[id(model.backbone.stages[3][0].project.weight)] == 0.0005
    assert decay[id(model.mask_decoder.classify.last.weight)] == 0.01
    assert decay[id(model.mask_decoder.classify.last.bias)] == decay[id(model.quantizer.codebook_weight)] == 0


def test_a_few_steps_lower_the_loss():
    model = make_model()
    images, audio, labels = make_clips()
    optimizer = torch.optim.AdamW(model.parameter_groups(0.002, 1.0, 0.0))
    history = []
    for _ in range(12):
        total = losses_of(model, images, audio, labels)["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    assert min(history[-3:]) < 0.7 * history[0]
