"""The predictor: the same numbers as the model on the same batch, at the size of the frames."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qdformer.audio.features.extract import Embedder
from qdformer.audio.vggish import VGGish
from qdformer.inference import Predictor
from qdformer.training.checkpoint import save_model
from tests.helpers.model import CLASSES, NAMES, make_model, settings

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (3, 48, 96, 3), dtype=np.uint8)
WAVEFORM = RANDOM.uniform(-0.5, 0.5, 3 * 16000).astype(np.float32)


@pytest.fixture(scope="module")
def vggish() -> VGGish:
    torch.manual_seed(0)
    return VGGish().eval()


@pytest.fixture(scope="module")
def predictor(vggish) -> Predictor:
    return Predictor(make_model().eval(), NAMES, Embedder(vggish, "repeat"), image_size=96)


def test_prediction_is_the_models_on_the_same_batch(predictor):
    result = predictor.predict(FRAMES, WAVEFORM, 16000)
    batch = predictor.make_batch(FRAMES, WAVEFORM, 16000)
    expected = predictor.model.predict(batch.images_BTCHW, batch.audio_BTA)
    assert batch.images_BTCHW.shape == (1, 3, 3, 64, 96)  # padded to a multiple of 32
    assert np.array_equal(result.semantic_THW, expected.semantic_BTHW[0, :, :48])
    assert np.array_equal(result.foreground_THW, expected.foreground_BTHW[0, :, :48])
    assert np.array_equal(result.class_probs_TC, expected.class_probs_BTC[0])
    assert result.classes == NAMES.names


@pytest.mark.parametrize("resize", ["longest", "squash", "crop"])
def test_maps_have_the_size_of_the_frames(predictor, resize):
    other = Predictor(predictor.model, NAMES, predictor.embedder, image_size=64, resize=resize)
    result = other.predict(FRAMES[:, :, :90], WAVEFORM, 16000)
    assert result.semantic_THW.shape == result.foreground_THW.shape == (3, 48, 90)
    assert result.semantic_THW.dtype == np.uint8 and result.semantic_THW.max() <= CLASSES
    assert result.foreground_THW.min() >= 0 and result.foreground_THW.max() <= 1
    if resize == "crop":
        assert not result.semantic_THW[:, :, :20].any() and not result.semantic_THW[:, :, -20:].any()


def test_waveform_is_mixed_to_mono_and_resampled(predictor):
    stereo = np.stack([WAVEFORM, WAVEFORM], axis=1)
    batches = [predictor.make_batch(FRAMES, waveform, 16000) for waveform in (WAVEFORM, stereo)]
    assert torch.equal(batches[0].audio_BTA, batches[1].audio_BTA)
    assert predictor.make_batch(FRAMES, WAVEFORM, 8000).audio_BTA.shape == (1, 3, 128)


def test_predictor_from_files(predictor, vggish, tmp_path):
    save_model(tmp_path / "model.safetensors", predictor.model, NAMES, settings())
    save_file({key: value.contiguous() for key, value in vggish.state_dict().items()}, tmp_path / "vggish.safetensors")
    files = (tmp_path / "model.safetensors", tmp_path / "vggish.safetensors")
    loaded = Predictor.from_checkpoint(*files, image_size=96)
    assert loaded.classes == NAMES
    expected = predictor.predict(FRAMES, WAVEFORM, 16000)
    result = loaded.predict(FRAMES, WAVEFORM, 16000)
    assert np.allclose(result.foreground_THW, expected.foreground_THW, atol=1e-5)


def test_unusable_input_is_an_error(predictor):
    with pytest.raises(ValueError, match=r"expected uint8 \[frames, height, width, 3\]"):
        predictor.predict(FRAMES.astype(np.float32), WAVEFORM, 16000)
    with pytest.raises(ValueError, match=r"expected float \[samples\] or \[samples, channels\]"):
        predictor.predict(FRAMES, WAVEFORM[None, None], 16000)
    for waveform in (np.zeros(0, np.float32), np.zeros(16000, np.int16)):
        with pytest.raises(ValueError, match="expected float"):
            predictor.predict(FRAMES, waveform, 16000)
    with pytest.raises(ValueError, match="NaN or infinite"):
        predictor.predict(FRAMES, np.full(16000, np.nan, np.float32), 16000)
    for sample_rate in (0, 44100.5):
        with pytest.raises(ValueError, match="positive integer"):
            predictor.predict(FRAMES, WAVEFORM, sample_rate)
    with pytest.raises(ValueError, match="separate"):
        Predictor(make_model(separate=True, **dict.fromkeys(PARTS, False)), NAMES, predictor.embedder)


PARTS = ("decompose", "quantize", "recombine", "calibrate")


def test_import_does_not_load_the_pipelines_tools():
    check = (
        "import sys, qdformer.inference; "
        "sys.exit(sorted({'mlflow', 'prefect', 'dvc', 'ray'} & {name.split('.')[0] for name in sys.modules}) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
