"""The registry of methods, and the interface that each of them implements."""

from __future__ import annotations

import pytest
import torch

from qdformer.config.model import SETTINGS, parse_model_settings
from qdformer.models import METHODS, Method, Prediction, build_model
from tests.helpers.model import CLASSES, SMALL, make_clips, method_losses, method_settings

FRAMES = torch.ones(2, 2, dtype=torch.bool)


def test_the_settings_of_every_method_are_distinguished_by_its_name():
    assert set(SETTINGS) == set(METHODS)
    assert parse_model_settings(SMALL.model_dump()) == SMALL
    with pytest.raises(ValueError, match="qdformer"):
        parse_model_settings(SMALL.model_dump() | {"name": "other"})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_predicts_through_the_interface(name):
    torch.manual_seed(0)
    model = build_model(method_settings(name), CLASSES)
    assert isinstance(model, Method) and model.settings.name == name and model.num_classes == CLASSES
    images, audio, labels = make_clips()
    model.on_epoch_start()
    output = model(images, audio, FRAMES)
    losses = model.build_criterion(method_losses(name))(output, labels, FRAMES, FRAMES)
    losses["total"].backward()
    groups = model.parameter_groups(0.001, 0.5, 0.01)
    assert groups[0]["lr"] == 0.001 and losses["total"].ndim == 0
    model.on_step_end(output, 1, 2)
    assert all(isinstance(value, float) for value in model.on_epoch_end(1, 2).values())
    prediction = model.eval().predict(images, audio, FRAMES)
    assert isinstance(prediction, Prediction)
    assert prediction.semantic_BTHW.shape == prediction.foreground_BTHW.shape == labels.shape
    assert prediction.class_probs_BTC.shape == (2, 2, CLASSES)
    again = model.predict(images, audio, FRAMES, model.backbone(images.flatten(0, 1)))
    assert torch.equal(again.foreground_BTHW, prediction.foreground_BTHW)
