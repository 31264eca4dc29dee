"""A model's folder in the form of the Hugging Face hub: the same predictions after saving and loading."""

import json

import numpy as np
import pytest
import torch

from qdformer.audio.features.extract import Embedder
from qdformer.audio.vggish import VGGish
from qdformer.inference import Predictor, Segmenter
from qdformer.utils.errors import InputError
from tests.helpers.model import NAMES, make_model

RANDOM = np.random.default_rng(0)
FRAMES = RANDOM.integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
WAVEFORM = RANDOM.uniform(-0.5, 0.5, 2 * 16000).astype(np.float32)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    embedder = Embedder(VGGish().eval(), "zero", True, patches_per_batch=None)
    return Segmenter(Predictor(make_model().eval(), NAMES, embedder, 64, "squash"), clip_frames=2, merge="center")


@pytest.fixture(scope="module")
def folder(segmenter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    segmenter.save_pretrained(folder)
    return folder


def test_a_loaded_folder_predicts_the_same(segmenter, folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "vggish.safetensors"}
    loaded = Segmenter.from_pretrained(folder)
    assert (loaded.clip_frames, loaded.hop, loaded.merge, loaded.classes) == (2, 1, "center", segmenter.classes)
    assert Segmenter.from_pretrained(folder, hop=2).hop == 2
    expected, found = (one.predictor.predict(FRAMES, WAVEFORM, 16000) for one in (segmenter, loaded))
    assert np.array_equal(found.semantic_THW, expected.semantic_THW)
    assert np.array_equal(found.class_probs_TC, expected.class_probs_TC)


def test_the_card_has_the_metadata_of_the_hub(folder):
    from huggingface_hub import ModelCard

    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("qdformer", "image-segmentation")
    assert "audio-visual-segmentation" in data.tags


def test_a_push_uploads_the_same_files(segmenter, folder, monkeypatch):
    """The hub itself cannot be reached in a test; the upload is taken over at the client's last call."""
    from huggingface_hub import HfApi, RepoUrl

    uploaded = {}

    def upload(self, *, repo_id, folder_path, **options):
        uploaded[repo_id] = {path.name: path.read_bytes() for path in folder_path.iterdir()}

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **options: RepoUrl(f"https://huggingface.co/{repo_id}")
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    segmenter.push_to_hub("lab/qdformer")
    assert uploaded == {"lab/qdformer": {path.name: path.read_bytes() for path in folder.iterdir()}}


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        Segmenter.from_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["resize"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="config.json: not the configuration of a model: 'resize'"):
        Segmenter.from_pretrained(tmp_path)


def test_a_model_that_is_not_at_hand_is_named(monkeypatch):
    with pytest.raises(InputError, match="lab/none: no such folder, and no model"):
        Segmenter.from_pretrained("lab/none", local_files_only=True)
    with pytest.raises(InputError, match="a b: no such folder"):
        Segmenter.from_pretrained("a b", local_files_only=True)
