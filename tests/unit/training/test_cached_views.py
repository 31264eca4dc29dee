import numpy as np
import pytest
import torch

from qdformer.config.train import Augment
from qdformer.data.dataset import AVSDataset, ClipKey, build_loader
from qdformer.data.manifest import read_manifest
from qdformer.models.backbones.efficientnet import EfficientNetLite0
from qdformer.training.cached_views import CachedViews
from qdformer.utils.errors import InputError
from tests.helpers.dataset import FRAMES, write_small
from tests.helpers.model import CLASSES, PARAMS, make_model

RECIPE = PARAMS.train.model_copy(update={"cached_views": 2, "precision": "float32"})
AUGMENT = Augment(flip=0.5, crop=0.6, color=0.2)


class Counting(EfficientNetLite0):
    """Counts how many frames it has processed."""

    frames = 0

    def forward(self, images_F3HW):
        self.frames += len(images_F3HW)
        return super().forward(images_F3HW)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return read_manifest(write_small(tmp_path_factory.mktemp("data") / "dataset"))


@pytest.fixture
def plain(manifest):
    features = {uid: np.random.default_rng(0).normal(size=(FRAMES, 128)).astype(np.float32) for uid in manifest["uid"]}
    return AVSDataset(manifest, features, 64, AUGMENT, resize="squash")


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Counting().eval().requires_grad_(False)


def cached(plain, backbone, folder):
    return CachedViews(plain, backbone, RECIPE, folder, torch.device("cpu"))


def test_the_maps_of_a_view_are_computed_once(plain, backbone, tmp_path):
    clips = cached(plain, backbone, tmp_path)
    first, later = clips[ClipKey(1, 0)], clips[ClipKey(5, 0)]
    assert backbone.frames == FRAMES
    expected = plain[1, 0]
    maps = EfficientNetLite0.forward(backbone, expected.images_TCHW)
    assert first.maps.keys() == later.maps.keys() == {8, 16, 32}  # masks are at stride 8
    for stride in first.maps:
        torch.testing.assert_close(first.maps[stride].float(), maps[stride], rtol=1e-3, atol=1e-3)
        assert torch.equal(first.maps[stride], later.maps[stride])
    for sample in (first, later):
        assert torch.equal(sample.labels_THW, expected.labels_THW) and torch.equal(sample.audio_TA, expected.audio_TA)
        assert (sample.uid, sample.labeled, sample.size) == (expected.uid, expected.labeled, expected.size)
    other = clips[ClipKey(0, 0)]
    assert backbone.frames == 2 * FRAMES and not torch.equal(other.maps[8], first.maps[8])


def test_an_interrupted_run_finds_the_views_again(plain, backbone, tmp_path):
    before = cached(plain, backbone, tmp_path)[ClipKey(0, 1)]
    (tmp_path / ".0-2.safetensors.partial").write_bytes(b"half a file")  # the process was killed while writing
    again = cached(plain, backbone, tmp_path)
    assert torch.equal(again[ClipKey(2, 1)].maps[16], before.maps[16]) and backbone.frames == FRAMES
    assert again[ClipKey(0, 2)].maps[16].shape == before.maps[16].shape


def test_a_model_gives_the_same_for_maps_and_images(plain, tmp_path):
    model = make_model(mask_stride=8, fusion_stride=64).eval()
    clips = cached(plain, model.backbone, tmp_path)
    with torch.no_grad():
        for batch in build_loader(clips, 2):
            images = torch.stack([plain[0, plain_index(plain, uid)].images_TCHW for uid in batch.uids])
            assert not batch.images_BTCHW.any()
            kept = model(batch.images_BTCHW, batch.audio_BTA, batch.valid_BT, batch.maps)
            seen = model(images, batch.audio_BTA, batch.valid_BT)
            torch.testing.assert_close(kept.mask_logits_BTNHW, seen.mask_logits_BTNHW, rtol=0.01, atol=0.02)
    assert kept.class_logits_BTNC.shape[-1] == CLASSES + 1


def plain_index(plain, uid):
    return [clip.uid for clip in plain.clips].index(uid)


def test_a_filler_counts_for_nothing(plain, backbone, tmp_path):
    assert not cached(plain, backbone, tmp_path)[ClipKey(0, 0, "filler")].counted
    assert cached(plain, backbone, tmp_path)[ClipKey(0, 0)].counted
    assert cached(plain, backbone, tmp_path)[ClipKey(0, 0, "size")] == plain[ClipKey(0, 0, "size")]


def test_clips_whose_maps_would_need_padding_are_refused(manifest, backbone, tmp_path):
    features = {uid: np.zeros((FRAMES, 128), np.float32) for uid in manifest["uid"]}
    wide = AVSDataset(manifest, features, 48)  # 48 x 32 pixels
    with pytest.raises(InputError, match=r"train\.cached_views: the clips of a batch have 3x32x48 frames and pixels"):
        next(iter(build_loader(cached(wide, backbone, tmp_path), 2)))
