"""The separator: levels, its file, and the published bundle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchaudio.models import ConvTasNet

from qdformer.audio.separation.model import Separator, SeparatorConfig, load_separator, save_separator
from qdformer.audio.separation.published import load_published
from qdformer.audio.vggish.model import WeightsError


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, samples).astype(np.float32)


@pytest.mark.parametrize("samples", [16, 1000, 1001])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_tracks_sum_to_the_mixture_at_every_level(network, samples, rescale):
    separator = Separator(SeparatorConfig(network, rescale=rescale)).eval()
    mixture = noise(samples)
    tracks = separator.separate(mixture)
    assert tracks.shape == (2, samples) and tracks.dtype == np.float32
    np.testing.assert_allclose(tracks.sum(0), mixture, atol=1e-5)
    np.testing.assert_allclose(separator.separate(0.01 * mixture), 0.01 * tracks, atol=1e-5)
    assert not separator.separate(np.zeros(samples, np.float32)).any()


def test_rescaled_tracks_do_not_depend_on_the_level_of_the_network(network):
    plain, loud = (Separator(SeparatorConfig(network, rescale=True)).eval() for _ in range(2))
    loud.load_state_dict(plain.state_dict())
    loud.network.decoder.weight.data *= 100
    np.testing.assert_allclose(loud.separate(noise(800)), plain.separate(noise(800)), atol=1e-3)


def test_the_initial_filters_are_inverted_exactly(network):
    separator = Separator(SeparatorConfig(network, rectify=True))
    separator.initialize_filters()
    mixture = torch.from_numpy(noise(1600))[None, None]
    features = separator.network.encoder(mixture)
    assert features.min() == 0 and features.max() > 0
    inside = slice(32, -32)
    torch.testing.assert_close(separator.network.decoder(features)[..., inside], mixture[..., inside])


def test_the_file_holds_all_that_is_needed(network, tmp_path):
    path = tmp_path / "separator.safetensors"
    separator = Separator(SeparatorConfig(network, sample_rate=8000, rectify=True, rescale=True)).eval()
    sha256 = save_separator(separator, path)
    again = load_separator(path, sha256)
    assert again.config == separator.config and not again.training
    np.testing.assert_array_equal(again.separate(noise(999)), separator.separate(noise(999)))
    assert separator.separate(noise(999)).shape == (2, 999)
    assert save_separator(again, tmp_path / "b") == sha256
    with pytest.raises(WeightsError, match=r"separator\.safetensors: SHA-256 is .*, expected 00"):
        load_separator(path, "00")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"separator\.safetensors: not a usable separator"):
        load_separator(path)
    with pytest.raises(WeightsError, match="no such separator; the stage separate writes it"):
        load_separator(tmp_path / "none")


def test_a_bundle_of_torchaudio_is_loaded_with_the_sizes_of_its_tensors(network, tmp_path):
    """A small file with the names of CONVTASNET_BASE_LIBRI2MIX."""
    path = tmp_path / "conv_tasnet.pt"
    published = ConvTasNet(**network | {"msk_num_stacks": 3, "msk_activate": "relu"}).eval()
    torch.save(published.state_dict(), path)
    separator = load_published(path)
    assert separator.config.sample_rate == 8000 and separator.num_sources == 2
    mixture = torch.from_numpy(noise(800))[None, None]
    torch.testing.assert_close(separator.network(mixture), published(mixture))
    assert separator.separate(noise(1600)).shape == (2, 1600)

    torch.save(published.encoder.state_dict(), path)
    with pytest.raises(WeightsError, match=r"conv_tasnet\.pt: expected the state dict of torchaudio"):
        load_published(path)
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"conv_tasnet\.pt: not a readable weights file"):
        load_published(path)


def test_the_names_and_sizes_are_those_of_the_bundle():
    with torch.device("meta"):
        from torchaudio.models import conv_tasnet_base

        state = conv_tasnet_base(2).state_dict()
    assert state["mask_generator.conv_layers.0.conv_layers.0.weight"].shape == (512, 128, 1)
    assert state["mask_generator.conv_layers.0.conv_layers.3.weight"].shape == (512, 1, 3)
    assert state["mask_generator.output_conv.weight"].shape == (1024, 128, 1)
    assert "mask_generator.conv_layers.23.conv_layers.0.weight" in state
