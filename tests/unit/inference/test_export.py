"""The exported graphs compute what the predictor computes."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from qdformer.audio.features.extract import Embedder
from qdformer.inference import Predictor
from qdformer.inference.export import EndToEnd, ExportError, _compare, export
from qdformer.models import METHODS
from tests.helpers.model import NAMES, make_method

SECONDS, SIZE = 2, 64


class SmallEncoder(nn.Module):
    """A stand-in for VGGish, whose file of 288 MB would take most of the time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(96 * 64, 128)

    def forward(self, patches_P1FM):
        return self.linear(patches_P1FM.flatten(1)).relu()


def predictor(center=False, method="qdformer"):
    torch.manual_seed(0)
    embedder = Embedder(SmallEncoder().eval(), "repeat", center, patches_per_batch=None)
    return Predictor(make_method(method).eval(), NAMES, embedder, image_size=SIZE)


@pytest.mark.parametrize("center", [False, True])
def test_the_module_is_the_predictor(center):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (SECONDS, SIZE, SIZE, 3), np.uint8)
    waveform = rng.normal(0, 0.1, SECONDS * 16000).astype(np.float32)
    own = predictor(center)
    expected = own.predict(frames, waveform, 16000)
    with torch.no_grad():
        semantic, foreground, class_probs = EndToEnd(own, SECONDS)(
            torch.from_numpy(frames).permute(0, 3, 1, 2), torch.from_numpy(waveform)
        )
    np.testing.assert_allclose(class_probs, expected.class_probs_TC, atol=1e-5)
    np.testing.assert_allclose(foreground, expected.foreground_THW, atol=1e-5)
    assert (semantic.numpy() != expected.semantic_THW).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_both_files_compute_the_same(tmp_path, method):
    files, seconds = export(predictor(method=method), SECONDS, tmp_path)
    assert [file.path.name for file in files] == ["model.pt2", "model.onnx"] and seconds > 0
    assert all(file.bytes == file.path.stat().st_size for file in files)
    assert all(file.probability_difference < 1e-4 and file.pixel_difference < 1e-3 for file in files)


def test_a_graph_that_computes_something_else_is_refused(tmp_path):
    expected = [np.zeros((1, 2, 2), int), np.zeros((1, 2, 2)), np.zeros((1, 3))]
    (tmp_path / "model.onnx").touch()
    same = _compare(tmp_path / "model.onnx", expected, expected, 1.0)
    assert dataclasses.astuple(same)[3:] == (0.0, 0.0)
    for position, value in ((0, 1), (1, 0.1), (2, np.nan)):
        found = [array.copy() for array in expected]
        found[position].flat[0] = value
        with pytest.raises(ExportError, match=r"model.onnx: differs"):
            _compare(tmp_path / "model.onnx", expected, found, 1.0)
