"""Stage `train`: errors before the training starts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipelines.settings import preset_settings
from qdformer.audio.features.extract import FeatureInfo
from qdformer.models.backbones import BackboneError


@pytest.mark.slow  # imports Ray and MLflow
def test_missing_weights_are_an_error_before_ray_starts(monkeypatch, tmp_path):
    from pipelines.stages import train as stage

    made = FeatureInfo("clean", "0" * 64, "repeat", False, "")
    monkeypatch.setattr(stage, "feature_recipe", lambda *_: SimpleNamespace(info=lambda _: made))
    monkeypatch.setattr(stage, "FeatureStore", lambda *_, **__: None)
    monkeypatch.setattr(stage, "launch", lambda *_: pytest.fail("Ray was started"))
    settings = preset_settings()
    model = settings.train.model.model_copy(update={"backbone_weights": str(tmp_path / "none.pth")})
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"model": model})})
    with pytest.raises(BackboneError, match=r"none\.pth: no such weights file"):
        stage.train(settings, tmp_path, tmp_path / "out", None)
