"""What holds for every registered method: shapes, determinism, independent clips, padding, learning, clear errors."""

from __future__ import annotations

import pytest
import torch

from qdformer.data.manifest import Classes
from qdformer.evaluation.tokens import BatchTokens
from qdformer.models import METHODS, Prediction
from qdformer.training.checkpoint import CheckpointError, load_model, save_model
from qdformer.utils.errors import InputError
from tests.helpers.model import (
    CLASSES,
    LEARNING_RATES,
    SIZES,
    make_clips,
    make_method,
    method_losses,
    method_settings,
)

TASKS = {"avs": 1, "avss": CLASSES}

pytestmark = pytest.mark.parametrize("name", METHODS)


def criterion_of(model):
    return model.build_criterion(method_losses(model.settings.name))


def losses_of(model, images, audio, labels, valid=None):
    valid = torch.ones(images.shape[:2], dtype=torch.bool) if valid is None else valid
    return criterion_of(model)(model(images, audio, valid), labels, valid, valid)


def assert_close(prediction: Prediction, expected: Prediction, frames: slice = slice(None)) -> None:
    for field in ("foreground_BTHW", "class_probs_BTC"):
        got, wanted = getattr(prediction, field)[:, frames], getattr(expected, field)
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4, msg=field)


def test_a_method_has_a_small_model_in_these_tests(name):
    assert name in SIZES


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("frames", "height", "width"), [(2, 64, 64), (1, 32, 32), (3, 75, 90)])
def test_shapes(name, task, frames, height, width):
    classes = TASKS[task]
    model = make_method(name, classes).eval()
    images, audio, _ = make_clips(frames=frames, height=height, width=width)
    prediction = model.predict(images, audio)
    assert isinstance(prediction, Prediction)
    assert prediction.semantic_BTHW.shape == prediction.foreground_BTHW.shape == (2, frames, height, width)
    assert prediction.semantic_BTHW.dtype == torch.int64
    assert prediction.semantic_BTHW.min() >= 0 and prediction.semantic_BTHW.max() <= classes
    assert prediction.class_probs_BTC.shape == (2, frames, classes)
    for probs in (prediction.foreground_BTHW, prediction.class_probs_BTC):
        assert probs.min() >= 0 and probs.max() <= 1


def test_the_same_seed_gives_the_same_model_and_prediction(name):
    images, audio, labels = make_clips()
    results = []
    for _ in range(2):
        model = make_method(name)
        losses_of(model, images, audio, labels)["total"].backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((gradients, model.eval().predict(images, audio).foreground_BTHW))
    (first, foreground), (second, again) = results
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and torch.equal(foreground, again)


def test_clips_of_a_batch_do_not_influence_each_other(name):
    model = make_method(name).eval()
    images, audio, _ = make_clips(clips=3)
    together = model.predict(images, audio)
    alone = model.predict(images[1:2], audio[1:2])
    torch.testing.assert_close(together.foreground_BTHW[1:2], alone.foreground_BTHW, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.class_probs_BTC[1:2], alone.class_probs_BTC, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fill", [0, 200])
def test_padding_frames_change_neither_prediction_nor_losses(name, fill):
    model = make_method(name)
    images, audio, labels = make_clips()
    valid = torch.tensor([[True, True, False]] * 2)
    padded = [torch.cat([x, torch.full_like(x[:, :1], fill)], dim=1) for x in (images, audio)]
    padded_labels = torch.cat([labels, labels[:, :1]], dim=1)
    with torch.no_grad():
        losses, expected = losses_of(model, *padded, padded_labels, valid), losses_of(model, images, audio, labels)
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=1e-4, msg=key)
    # Two training passes have moved the statistics of any batch normalization alike.
    model.eval()
    assert_close(model.predict(*padded, valid), model.predict(images, audio), slice(2))


def test_a_clip_without_a_frame_has_no_influence(name):
    images, audio, labels = make_clips(clips=3)
    valid = torch.ones(3, 2, dtype=torch.bool)
    valid[2] = False
    with torch.no_grad():
        losses = losses_of(make_method(name), images, audio, labels, valid)
        expected = losses_of(make_method(name), images[:2], audio[:2], labels[:2])
    for key, value in losses.items():
        torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=1e-4, msg=key)


def test_the_maps_of_the_backbone_may_be_given(name):
    model = make_method(name).eval()
    images, audio, _ = make_clips()
    with torch.no_grad():
        maps = model.backbone(images.flatten(0, 1))
        used = {stride: maps[stride] for stride in model.settings.map_strides}
        valid, blank = torch.ones(2, 2, dtype=torch.bool), torch.zeros_like(images)
        given, computed = (
            criterion_of(model)(output, *labels_for(images))
            for output in (model(blank, audio, valid, used), model(images, audio, valid))
        )
    for key, value in given.items():
        torch.testing.assert_close(value, computed[key], msg=key)


def labels_for(images):
    labels = torch.zeros(*images.shape[:2], *images.shape[-2:], dtype=torch.int64)
    labels[..., :20] = 1
    every_frame = torch.ones(images.shape[:2], dtype=torch.bool)
    return labels, every_frame, every_frame


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_one_batch_is_learned(name, task):
    """The loss falls to less than a third in at most 200 steps, and every trained parameter moves."""
    model = make_method(name, TASKS[task])
    images, audio, labels = make_clips()
    labels = labels.clamp(max=TASKS[task])
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameter_groups(LEARNING_RATES.get(name, 0.002), 0.5, 0.0))
    first = None
    model.on_epoch_start()
    for step in range(200):
        output = model(images, audio, torch.ones(2, 2, dtype=torch.bool))
        total = criterion_of(model)(output, labels, *labels_for(images)[1:])["total"]
        first = total.item() if first is None else first
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        model.on_step_end(output, step + 1, 200)
        if step >= 2 and total.item() < first / 3:
            break
    assert total.item() < first / 3
    assert all(isinstance(value, float) for value in model.on_epoch_end(200, 200).values())
    still = [key for key, value in model.named_parameters() if value.requires_grad and torch.equal(value, before[key])]
    assert not still


def test_half_precision_trains(name):
    model = make_method(name)
    images, audio, labels = make_clips()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images, audio)
    losses = criterion_of(model)(output, labels, *labels_for(images)[1:])
    losses["total"].backward()
    assert all(torch.isfinite(value) for value in losses.values())
    torch.testing.assert_close(losses["total"], sum(value for key, value in losses.items() if key != "total"))


def test_frames_without_ground_truth_and_ignored_pixels_do_not_count(name):
    model = make_method(name).eval()
    images, audio, labels = make_clips()
    valid, labeled = torch.ones(2, 2, dtype=torch.bool), torch.tensor([[True, False]] * 2)
    labels[:, :, :8] = 255
    other = labels.clone()
    other[:, 1] = 3
    with torch.no_grad():
        output, criterion = model(images, audio, valid), criterion_of(model)
        losses, changed = (criterion(output, truth, valid, labeled) for truth in (labels, other))
        nothing = criterion(output, torch.full_like(labels, 255), valid, torch.zeros_like(valid))
    assert losses == changed and all(torch.isfinite(value) for value in nothing.values())


def test_a_checkpoint_gives_the_model_back(name, tmp_path):
    model, path = make_method(name).eval(), tmp_path / "model.safetensors"
    classes = Classes(("a", "b", "c", "d"), (False,) * CLASSES)
    save_model(path, model, classes, model.settings)
    loaded, names = load_model(path)
    images, audio, _ = make_clips()
    assert names == classes and loaded.settings == model.settings
    assert torch.equal(loaded.predict(images, audio).foreground_BTHW, model.predict(images, audio).foreground_BTHW)
    assert type(load_model(path, trained=False)[0]) is type(model)
    model.num_classes = 3
    save_model(path, model, Classes(("a", "b", "c"), (False,) * 3), model.settings)
    with pytest.raises(CheckpointError, match="model.safetensors: not a usable .* checkpoint"):
        load_model(path)


def test_parameter_groups_hold_every_trained_parameter_once(name):
    model = make_method(name)
    groups = model.parameter_groups(0.001, 0.5, 0.01)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    backbone = {id(p) for p in model.backbone.parameters()}
    for group in groups:
        assert {id(p) in backbone for p in group["params"]} == {group["lr"] == 0.0005}
        assert group["weight_decay"] == 0 or all(p.ndim > 1 for p in group["params"])


def test_tokens_are_those_of_the_output_or_absent(name):
    """A method without tokens has no metrics of the decomposition."""
    images, audio, _ = make_clips()
    tokens = BatchTokens.of(make_method(name).eval().predict(images, audio).output)
    if name != "qdformer":
        assert tokens.tokens_BND is None and tokens.codes_BTN is None


def test_wrong_inputs_are_named(name):
    model = make_method(name).eval()
    images, audio, labels = make_clips()
    with pytest.raises(ValueError, match=r"images have shape \[2, 3, 64, 64\]; expected \[clips, frames, 3, height"):
        model(images[:, 0], audio)
    with pytest.raises(ValueError, match=r"audio has shape \[2, 1, 128\]; expected \[2, 2, 128\] as the images"):
        model(images, audio[:, :1])
    labels[0, 0, 0, 0] = CLASSES + 1
    with pytest.raises(InputError, match=rf"class id 5 in the labels; expected 0\.\.{CLASSES} or 255"):
        losses_of(model.train(), images, audio, labels)


def test_wrong_settings_are_refused(name):
    with pytest.raises(ValueError, match="nosuch"):
        method_settings(name, nosuch=1)
    with pytest.raises(ValueError, match="frozen_stages"):
        method_settings(name, frozen_stages=9)
