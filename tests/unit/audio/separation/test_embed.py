"""Features of separated tracks."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from qdformer.audio.features import extract as features_module
from qdformer.audio.features.extract import Clip, EmbedderConfig, extract_features
from qdformer.audio.features.store import FeatureError, FeatureStore
from qdformer.audio.io.read import read_audio
from qdformer.audio.separation.embed import TrackEmbedderConfig
from qdformer.audio.separation.model import Separator, SeparatorConfig, save_separator
from tests.unit.audio.features.test_extract import Echo


@pytest.fixture
def config(network, tmp_path, monkeypatch) -> TrackEmbedderConfig:
    monkeypatch.setattr(features_module, "load_vggish", lambda *_: Echo())
    path = tmp_path / "separator.safetensors"
    sha256 = save_separator(Separator(SeparatorConfig(network)), path)
    return TrackEmbedderConfig(tmp_path, "a" * 64, "repeat", separator=path, separator_sha256=sha256)


def test_every_track_is_embedded_like_a_clip(config, tmp_path):
    clips = []
    for index, seconds in enumerate((2.0, 1.0)):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, np.random.default_rng(index).uniform(-0.5, 0.5, int(16000 * seconds)), 16000)
        clips.append(Clip(f"clip{index}", path, 2))
    clips.append(Clip("none", tmp_path / "none.wav", 2))
    spectrogram = tmp_path / "clip.pkl"
    spectrogram.write_bytes(b"")
    clips.append(Clip("spectrogram", spectrogram, 2))
    out = tmp_path / "separated" / "clean.h5"
    summary = extract_features(out, clips, config, "clean", tmp_path / "cache", bad_clips=0.5, progress=False)
    assert summary.written == 2 and "cannot be separated" in dict(summary.left_out)["spectrogram"]
    store = FeatureStore(out, separator=config.separator_sha256)
    embedder = config.load()
    for clip in clips[:2]:
        tracks = embedder.separator.separate(read_audio(clip.path))
        expected = np.stack(embedder.embed_waveforms(list(tracks), [2, 2]), axis=1)
        assert store[clip.uid].shape == (2, 2, 128)
        np.testing.assert_array_equal(store[clip.uid], expected)
    again = extract_features(out, clips[:2], config, "clean", tmp_path / "cache", progress=False)
    assert again.resumed == 2

    plain = EmbedderConfig(tmp_path, "a" * 64, "repeat")
    mixed = tmp_path / "features" / "clean.h5"
    extract_features(mixed, clips[:2], plain, "clean", tmp_path / "cache", progress=False)
    assert FeatureStore(mixed).info.separator == "" and FeatureStore(mixed)["clip0"].shape == (2, 128)
    with pytest.raises(FeatureError, match=r"extracted with separator '', expected"):
        FeatureStore(mixed, separator=config.separator_sha256)
