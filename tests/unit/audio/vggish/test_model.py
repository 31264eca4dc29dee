"""VGGish compared with golden vectors of the public port, and its weights files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qdformer.audio.vggish.log_mel import PATCH_SAMPLES, centered_patches, log_mel, log_mel_patches
from qdformer.audio.vggish.model import VGGish, WeightsError, load_pca, load_vggish, save_vggish
from qdformer.utils.digests import file_sha256
from tests.helpers import GOLDEN

REFERENCE = json.loads((GOLDEN / "vggish.json").read_text(encoding="utf-8"))
SIGNALS = REFERENCE["signals"]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "vggish.npz") as vectors:
        return dict(vectors)


@pytest.fixture(scope="module")
def vggish() -> VGGish:
    """The network with the weights of the golden embeddings."""
    model = VGGish()
    state = model.state_dict()
    for index, (key, value) in enumerate(state.items()):
        drawn = np.random.RandomState(1000 + index).standard_normal(value.numel()).reshape(value.shape)
        drawn *= np.sqrt(2 / value[0].numel()) if value.dim() > 1 else 0.01
        state[key] = torch.from_numpy(drawn.astype(np.float32))
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("signal", SIGNALS)
def test_log_mel_patches(golden, signal):
    rate = SIGNALS[signal]["sample_rate"]
    patches = log_mel_patches(golden[f"{signal}_wave"], rate)
    assert patches.dtype == torch.float32
    assert patches.shape == (SIGNALS[signal]["examples"], 1, 96, 64)
    np.testing.assert_allclose(patches.numpy(), golden[f"{signal}_logmel"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("signal", SIGNALS)
def test_embeddings(golden, vggish, signal):
    expected = golden[f"{signal}_embedding"]
    patches = log_mel_patches(golden[f"{signal}_wave"], SIGNALS[signal]["sample_rate"])
    np.testing.assert_allclose(vggish(patches).numpy(), expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


def test_state_dict_names(vggish):
    assert list(vggish.state_dict()) == REFERENCE["state_dict_keys"]


def test_number_of_patches():
    for samples, patches in ((0, 0), (PATCH_SAMPLES - 1, 0), (PATCH_SAMPLES, 1), (80_000, 5), (160_000, 10)):
        assert len(log_mel_patches(np.zeros(samples, np.float32), 16000)) == patches


def test_a_batch_of_waveforms_is_refused():
    with pytest.raises(ValueError, match=r"\[samples, channels\], not \[1, 2, 16000\]"):
        log_mel_patches(np.zeros((1, 2, 16000), np.float32), 16000)


def test_weights_are_saved_and_loaded(vggish, tmp_path):
    digest = save_vggish(vggish, tmp_path / "models" / "vggish.safetensors")
    loaded = load_vggish(tmp_path / "models" / "vggish.safetensors", digest)
    patches = torch.randn(2, 1, 96, 64)
    assert torch.equal(loaded(patches), vggish(patches))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["vggish.safetensors"]


def test_the_file_of_the_public_port_is_loaded(vggish, tmp_path):
    path = tmp_path / "vggish-10086976.pth"
    torch.save(vggish.state_dict(), path)
    loaded = load_vggish(path, file_sha256(path))
    assert all(torch.equal(value, vggish.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_another_digest_is_refused(tmp_path):
    path = tmp_path / "vggish.pth"
    path.write_bytes(b"something")
    with pytest.raises(WeightsError, match=rf"{path}: SHA-256 is [0-9a-f]{{64}}, expected 0000"):
        load_vggish(path, "0" * 64)


@pytest.mark.parametrize("name", ["vggish.pth", "vggish.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(WeightsError, match=f"{name}: not a readable weights file"):
        load_vggish(tmp_path / name)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(WeightsError, match="none.pth: no such weights file"):
        load_vggish(tmp_path / "none.pth")


def test_wrong_shapes_and_keys_are_reported(tmp_path):
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VGGish().state_dict().items()}
    small = {key: torch.zeros(shape if key.startswith("features") else 1) for key, shape in shapes.items()}
    path = tmp_path / "vggish.safetensors"
    save_file(small, path)
    with pytest.raises(WeightsError, match=r"key embeddings.0.weight has shape \[1\], expected \[4096, 12288\]"):
        load_vggish(path)
    small.pop("features.3.weight")
    save_file(small, path)
    with pytest.raises(WeightsError, match=r"key features.3.weight is missing, expected shape \[128, 64, 3, 3\]"):
        load_vggish(path)


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "marker"), "w"))

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="evil.pth: not a readable weights file"):
        load_vggish(tmp_path / "evil.pth")
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def pca_file(tmp_path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file in the format of the public port's `vggish_pca_params-970ea276.pth`, and its content."""
    random = np.random.default_rng(0)
    vectors, means = random.normal(size=(128, 128)) / 8, random.normal(size=(128, 1))
    path = tmp_path / "vggish_pca_params.pth"
    torch.save({"pca_eigen_vectors": vectors, "pca_means": means}, path)
    return path, vectors, means


def test_the_public_pca_step(pca_file):
    path, vectors, means = pca_file
    embeddings = np.random.default_rng(1).uniform(0, 2, (7, 128)).astype(np.float32)
    quantized = load_pca(path, file_sha256(path))(torch.from_numpy(embeddings)).numpy()
    # as in the Postprocessor of torchvggish 0.2
    expected = np.round((np.clip((vectors @ (embeddings.T - means)).T, -2.0, 2.0) + 2.0) * (255.0 / 4.0))
    assert quantized.dtype == np.float32 and quantized.shape == (7, 128)
    assert set(np.unique(quantized)) <= set(range(256)) and quantized.std() > 10
    assert np.abs(quantized - expected).max() <= 1 and (quantized == expected).mean() > 0.999


def test_the_pca_file_is_checked(pca_file, tmp_path):
    path, vectors, means = pca_file
    assert load_pca(path, file_sha256(path)[:8]).means.shape == (128,)
    with pytest.raises(WeightsError, match=r"vggish_pca_params.pth: SHA-256 is [0-9a-f]{64}, expected 970ea276"):
        load_pca(path, "970ea276")
    torch.save({"pca_eigen_vectors": vectors[:64], "pca_means": means}, path)
    with pytest.raises(WeightsError, match=r"key pca_eigen_vectors has shape \[64, 128\], expected \[128, 128\]"):
        load_pca(path)
    torch.save({"pca_eigen_vectors": vectors, "pca_means": "none"}, path)
    with pytest.raises(WeightsError, match=r"key pca_means has shape str, expected \[128\]"):
        load_pca(path)
    with pytest.raises(WeightsError, match="none.pth: no such weights file"):
        load_pca(tmp_path / "none.pth")


def test_centered_patches_are_a_second_apart():
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, 80_000).astype(np.float32)
    centered, spectrogram = centered_patches(audio, 16000), log_mel(audio, 16000)
    assert centered.shape == (5, 1, 96, 64) and len(spectrogram) == 498
    assert torch.equal(centered[4, 0], spectrogram[402:498])
    short = centered_patches(audio[: 16000 + 9000], 16000)  # 1.56 s: it contains the center of the second second
    assert len(short) == 2 and torch.equal(short[1, 0, -1], log_mel(audio[:25000], 16000)[-1])
    assert len(centered_patches(audio[:300], 16000)) == 0
