"""Published spectrograms are read as numbers, and their code is never run."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from qdformer.audio.features.extract import Clip, Embedder
from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.vggish.log_mel import log_mel_patches
from qdformer.audio.vggish.log_mel_pickle import read_log_mel
from qdformer.audio.vggish.model import VGGish

WAVE = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * 16000).astype(np.float32)


@pytest.fixture
def patches():
    return log_mel_patches(WAVE, 16000)


def write(path, value, protocol=None):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_and_arrays(tmp_path, patches, protocol):
    for value in (patches, patches.clone().requires_grad_(), patches.numpy(), patches.numpy().astype(np.float64)):
        read = read_log_mel(write(tmp_path / "a.pkl", value, protocol))
        assert torch.equal(read, patches) and read.dtype == torch.float32 and not read.requires_grad


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"patches": e}, lambda e: pickle.dumps(e)])
def test_code_is_not_run(tmp_path, wrap):
    Evil.marker = tmp_path / "marker"
    with pytest.raises(AudioError, match="a.pkl: "):
        read_log_mel(write(tmp_path / "a.pkl", wrap(Evil())))
    assert not Evil.marker.exists()


def test_code_inside_a_tensor_s_storage_is_not_run(tmp_path):
    """torch pickles a storage as bytes that contain another pickle."""

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner,)

    Evil.marker = tmp_path / "marker"
    torch.save(Evil(), tmp_path / "inner")
    inner = (tmp_path / "inner").read_bytes()
    with pytest.raises(AudioError, match="a.pkl: cannot be read as a log-mel spectrogram"):
        read_log_mel(write(tmp_path / "a.pkl", Storage()))
    assert not Evil.marker.exists()


def test_other_content_is_reported(tmp_path, patches):
    for value, problem in [
        (patches[:, 0], r"holds \[5, 96, 64\]; expected patches \[P, 1, 96, 64\]"),
        (patches[:0], r"holds \[0, 1, 96, 64\]"),
        ([1, 2], "holds list"),
        (torch.full((5, 1, 96, 64), torch.nan), "NaN or infinite"),
    ]:
        with pytest.raises(AudioError, match=problem):
            read_log_mel(write(tmp_path / "a.pkl", value))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(patches)[:1000])
    with pytest.raises(AudioError, match="cannot be read as a log-mel"):
        read_log_mel(tmp_path / "a.pkl")
    with pytest.raises(AudioError, match="none.pkl: no such file"):
        read_log_mel(tmp_path / "none.pkl")


def test_the_features_equal_those_of_the_audio(tmp_path, patches):
    import soundfile

    torch.manual_seed(0)
    soundfile.write(tmp_path / "a.wav", WAVE, 16000, subtype="FLOAT")
    write(tmp_path / "a.pkl", patches)
    vggish = VGGish().eval()
    clips = [Clip(name, tmp_path / name, 5) for name in ("a.wav", "a.pkl")]
    sound, spectrogram = (item.embeddings for item in Embedder(vggish, "repeat").embed(clips))
    assert np.array_equal(sound, spectrogram)
    assert "features.center needs the audio" in Embedder(vggish, "repeat", center=True).embed(clips[1:])[0].problem
    with pytest.raises(AudioError, match="noise and listening need the audio itself"):
        read_audio(tmp_path / "a.pkl")
