import numpy as np
import pytest
import torch
from PIL import Image

from qdformer.config.train import Augment
from qdformer.data.augment import View
from qdformer.data.dataset import AVSDataset, EpochSampler, build_loader, collate, resize_geometry
from qdformer.data.labels import open_label_map
from qdformer.data.layout import DataError
from qdformer.data.manifest import Classes, read_manifest, task_classes
from qdformer.evaluation.controls import Constant, Shuffled
from qdformer.utils.errors import InputError
from tests.helpers.dataset import FRAMES, write_small


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return read_manifest(write_small(tmp_path_factory.mktemp("data") / "dataset"))


def features(value=0.0):
    return {uid: np.full((FRAMES, 128), value, np.float32) for uid in ("a", "b", "c", "quiet")}


def test_sample(manifest):
    sample = AVSDataset(manifest, features(2.0), image_size=48)[0]
    assert sample.uid == "a" and sample.labeled == 3
    assert sample.images_TCHW.shape == (3, 3, 32, 48) and sample.images_TCHW.dtype == torch.uint8
    assert sample.audio_TA.shape == (3, 128) and sample.audio_TA.dtype == torch.float32
    picture = np.asarray(Image.open(manifest["images"][0][1]))
    np.testing.assert_array_equal(sample.images_TCHW[1].permute(1, 2, 0), picture)
    assert (sample.labels_THW[0, 8:16, 4:12] == 1).all() and (sample.labels_THW[0, 8:16, 30:40] == 2).all()
    assert (sample.labels_THW == 0).sum() == 3 * (32 * 48 - 64 - 80)


def test_the_longer_side_is_scaled_and_labels_stay_class_ids(manifest):
    sample = AVSDataset(manifest, features(), image_size=96)[0]
    assert sample.images_TCHW.shape == (3, 3, 64, 96) and sample.labels_THW.shape == (3, 64, 96)
    assert sample.labels_THW.unique().tolist() == [0, 1, 2]
    assert (sample.labels_THW[0, 16:32, 8:24] == 1).all()


def avsbench_crop(image, side, resample):
    """As the loader of AVSBench: scale the shorter side to `side`, rounded down, and cut out the center."""
    width, height = image.size
    if width > height:
        size = int(1.0 * width * side / height), side
    else:
        size = side, int(1.0 * height * side / width)
    image = image.resize(size, resample)
    left, top = int(round((size[0] - side) / 2.0)), int(round((size[1] - side) / 2.0))
    return image.crop((left, top, left + side, top + side))


def test_squash_and_crop_equal_those_of_avsbench(manifest):
    for image_size in (32, 64):
        squashed = AVSDataset(manifest, features(), image_size, resize="squash")[0]
        cropped = AVSDataset(manifest, features(), image_size, resize="crop")[0]
        picture, labels = Image.open(manifest["images"][0][1]), Image.open(manifest["labels"][0][1])
        bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
        size = (image_size, image_size)
        np.testing.assert_array_equal(squashed.images_TCHW[1].permute(1, 2, 0), picture.resize(size, bilinear))
        np.testing.assert_array_equal(squashed.labels_THW[1], labels.resize(size, nearest))
        expected = avsbench_crop(picture, image_size, bilinear)
        np.testing.assert_array_equal(cropped.images_TCHW[1].permute(1, 2, 0), expected)
        np.testing.assert_array_equal(cropped.labels_THW[1], avsbench_crop(labels, image_size, nearest))


@pytest.mark.parametrize("size", [(1280, 720), (720, 1280), (224, 224), (333, 500), (1, 99)])
def test_geometry_of_every_resizing(size):
    assert resize_geometry(size, 224, "squash") == ((224, 224), (0, 0))
    (width, height), _ = resize_geometry(size, 224, "longest")
    assert max(width, height) == 224 and abs(width * size[1] - height * size[0]) <= max(size)
    (width, height), (left, top) = resize_geometry(size, 224, "crop")
    assert min(width, height) == 224 and 0 <= left <= width - 224 and 0 <= top <= height - 224


def test_every_resizing_works_with_augmentation(manifest):
    for resize, shape in (("squash", (64, 64)), ("crop", (64, 64)), ("longest", (43, 64))):
        dataset = AVSDataset(manifest, features(), 64, Augment(flip=1.0, crop=0.5, color=0.1), resize=resize)
        assert dataset[0].labels_THW.shape == (3, *shape) and dataset[0].images_TCHW.shape == (3, 3, *shape)


def test_the_task_avs_maps_all_classes_to_one(manifest):
    semantic = AVSDataset(manifest, features(), 48)[0].labels_THW
    binary = AVSDataset(manifest, features(), 48, task="avs")[0].labels_THW
    assert semantic.unique().tolist() == [0, 1, 2] and torch.equal(binary, (semantic > 0).to(torch.uint8))
    assert task_classes(Classes(("dog", "cat"), (True, False)), "avs") == Classes(("object",), (False,))
    assert task_classes(Classes(("dog", "cat"), (True, False)), "avss").names == ("dog", "cat")


def test_unlabeled_pixels_stay_unlabeled_in_the_task_avs(tmp_path):
    Image.fromarray(np.array([[0, 1, 70, 255]], np.uint8)).save(tmp_path / "a.png")
    assert np.asarray(open_label_map(tmp_path / "a.png", False, "avs")).tolist() == [[0, 1, 1, 255]]
    assert np.asarray(open_label_map(tmp_path / "a.png", True, "avs")).tolist() == [[0, 1, 1, 1]]


def test_flip_applies_to_picture_and_labels(manifest):
    plain = AVSDataset(manifest, features(), image_size=48)[0]
    flipped = AVSDataset(manifest, features(), 48, Augment(flip=1.0, crop=1.0, color=0.0))[0]
    assert torch.equal(flipped.images_TCHW, plain.images_TCHW.flip(-1))
    assert torch.equal(flipped.labels_THW, plain.labels_THW.flip(-1))
    assert not torch.equal(flipped.labels_THW, plain.labels_THW)


def test_flip_is_drawn_in_every_epoch(manifest):
    dataset = AVSDataset(manifest, features(), 48, Augment(flip=0.5, crop=1.0, color=0.0), seed=3)
    drawn = [dataset[epoch, 0].labels_THW for epoch in range(30)]
    assert len({tuple(labels[0, 10].tolist()) for labels in drawn}) == 2
    again = [dataset[epoch, 0].labels_THW for epoch in range(30)]
    assert all(torch.equal(one, two) for one, two in zip(drawn, again, strict=True))


def test_a_crop_covers_the_same_area_in_picture_and_labels(manifest, tmp_path):
    images = [tuple(tmp_path / f"{second}.jpg" for second in range(FRAMES))]
    labels = [tuple(tmp_path / f"{second}.png" for second in range(FRAMES))]
    clip = manifest.iloc[:1].assign(images=images, labels=labels)
    bright = np.zeros((32, 48), np.uint8)
    bright[10:20, 15:35] = 1
    for image, label in zip(images[0], labels[0], strict=True):
        Image.fromarray(bright.repeat(3).reshape(32, 48, 3) * 255).save(image, quality=100)
        Image.fromarray(bright).save(label)
    dataset = AVSDataset(clip, features(), 48, Augment(flip=0.5, crop=0.5, color=0.0))
    areas = set()
    for epoch in range(10):
        sample = dataset[epoch, 0]
        assert sample.images_TCHW.shape == (3, 3, 32, 48)
        agree = (sample.images_TCHW[:, 0] > 127) == (sample.labels_THW == 1)
        assert agree.float().mean() > 0.95
        areas.add(int((sample.labels_THW[0] == 1).sum()))
    assert len(areas) > 5 and max(areas) > 1.5 * bright.sum()


def test_colors_change_equally_in_all_frames_and_labels_do_not(manifest):
    plain = AVSDataset(manifest, features(), image_size=48)[0]
    jittered = AVSDataset(manifest, features(), 48, Augment(flip=0.0, crop=1.0, color=0.4))[0]
    assert torch.equal(jittered.labels_THW, plain.labels_THW)
    assert (jittered.images_TCHW.float() - plain.images_TCHW.float()).abs().mean() > 3


def test_color_jitter_is_brightness_contrast_saturation_and_tint():
    images = np.random.default_rng(0).integers(60, 120, (2, 4, 5, 3)).astype(np.uint8)
    same = View((0, 0), 1.0, False, 1.0, 1.0, 1.0, np.ones(3))
    assert np.array_equal(same.color_jitter(images), images)
    view = View((0, 0), 1.0, False, 1.2, 0.7, 1.3, np.array([1.1, 1.0, 0.9]))
    bright = 1.2 * images
    contrasted = bright.mean() + 0.7 * (bright - bright.mean())
    gray = contrasted.mean(-1, keepdims=True)
    expected = (gray + 1.3 * (contrasted - gray)) * [1.1, 1.0, 0.9]
    assert np.abs(view.color_jitter(images) - expected).max() <= 0.51


def test_collate_pads_and_marks(manifest):
    manifest = manifest.copy()
    manifest.loc[1, ["frames", "labeled"]] = 2, 1  # as the clips of AVSBench with one ground truth
    manifest.at[1, "images"] = manifest["images"][1][:2]
    manifest.at[1, "labels"] = (manifest["labels"][1][0], None)
    short = features(1.0)
    short["b"] = short["b"][:2]
    dataset = AVSDataset(manifest, short, image_size=48)
    batch = collate([dataset[0], dataset[1]])
    assert batch.uids == ["a", "b"]
    assert batch.images_BTCHW.shape == (2, 3, 3, 32, 64) and batch.images_BTCHW.dtype == torch.uint8
    assert batch.labels_BTHW.shape == (2, 3, 32, 64) and batch.labels_BTHW.dtype == torch.int64
    assert batch.valid_BT.tolist() == [[True, True, True], [True, True, False]]
    assert batch.labeled_BT.tolist() == [[True, True, True], [True, False, False]]
    assert (batch.labels_BTHW[:, :, :, 48:] == 255).all() and (batch.labels_BTHW[1, 1:] == 255).all()
    assert (batch.labels_BTHW[1, 0, :, :48] != 255).all()
    assert (batch.images_BTCHW[:, :, :, :, 48:] == 0).all() and (batch.audio_BTA[1, 2] == 0).all()
    assert batch.to("cpu").uids == batch.uids and batch.to("meta").labels_BTHW.device.type == "meta"


def test_training_can_draw_fewer_frames_of_a_clip(manifest):
    numbered = {uid: np.arange(FRAMES, dtype=np.float32)[:, None].repeat(128, axis=1) for uid in features()}
    whole = AVSDataset(manifest, numbered, 48)[0]
    cut = AVSDataset(manifest, numbered, 48, frames=2)
    drawn = {}
    for epoch in range(20):
        sample = cut[epoch, 0]
        start = int(sample.audio_TA[0, 0])
        drawn[start] = drawn.get(start, 0) + 1
        window = slice(start, start + 2)
        assert torch.equal(sample.images_TCHW, whole.images_TCHW[window])
        assert torch.equal(sample.labels_THW, whole.labels_THW[window])
        assert torch.equal(sample.audio_TA, whole.audio_TA[window]) and sample.labeled == 2
    assert set(drawn) == {0, 1}
    first_labeled = manifest.assign(labeled=1)
    only = AVSDataset(first_labeled, numbered, 48, frames=2)
    assert {int(only[epoch, 0].audio_TA[0, 0]) for epoch in range(20)} == {0} and only[0].labeled == 1
    assert torch.equal(AVSDataset(manifest, numbered, 48, frames=9)[0].images_TCHW, whole.images_TCHW)


def test_missing_or_misshapen_features_name_the_clip(manifest):
    partial = features()
    del partial["b"]
    partial["c"] = np.zeros((2, 128), np.float32)
    dataset = AVSDataset(manifest, partial, image_size=48)
    with pytest.raises(DataError, match="clip b: no audio features"):
        dataset[1]
    with pytest.raises(DataError, match=r"clip c: audio features are \[2, 128\]; expected \[3, 128\]"):
        dataset[2]


def test_batches_do_not_depend_on_workers_nor_on_torch_state(manifest):
    def epochs(workers, state):
        torch.manual_seed(state)
        dataset = AVSDataset(manifest, features(), 48, Augment(flip=0.5, crop=0.5, color=0.3), seed=1)
        loader = build_loader(dataset, 2, shuffle=True, workers=workers)
        batches = []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            batches += list(loader)
        assert torch.initial_seed() == state
        return batches

    alone, helped = epochs(0, 5), epochs(2, 6)
    assert [batch.uids for batch in alone] == [batch.uids for batch in helped]
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one.images_BTCHW, two.images_BTCHW) and torch.equal(one.labels_BTHW, two.labels_BTHW)


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_divide_the_batches_that_one_process_has(shuffle):
    alone = EpochSampler(9, 4, shuffle, seed=0)
    shares = [EpochSampler(9, 4, shuffle, seed=0, rank=rank, world_size=3) for rank in range(3)]
    for sampler in (alone, *shares):
        sampler.set_epoch(4)
    assert [len(sampler) for sampler in (alone, *shares)] == [3, 3, 3, 3]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert all(key.part == "whole" and key.epoch == 4 for key in whole)
        for rank, part in enumerate(parts):
            assert [key.clip for key in part if key.part == "whole"] == [key.clip for key in whole][rank::3]
            assert {key.clip for key in part} == {key.clip for key in whole}  # all sizes are known
            assert len([key for key in part if key.part != "size"]) == max(1, len(whole[rank::3]))
    assert [[key.part for key in part] for part in parts] == [["whole"], ["size", "filler"], ["size", "filler"]]
    assert sorted(key.clip for batch in alone for key in batch) == list(range(9))


def test_an_epoch_continues_at_a_batch():
    sampler = EpochSampler(9, 2, shuffle=True, seed=0)
    whole = list(sampler)
    sampler.set_epoch(0, first_batch=2)
    assert list(sampler) == whole[2:] and len(sampler) == len(whole) == 5


def test_more_ranks_than_clips_of_a_batch_are_refused():
    with pytest.raises(InputError, match=r"train.batch_size: 4 clips cannot be divided among 5 workers; use at most 4"):
        EpochSampler(100, 4, shuffle=True, seed=0, rank=0, world_size=5)


@pytest.mark.parametrize("resize", ["longest", "squash", "crop"])
def test_a_part_of_a_batch_is_padded_as_the_whole(manifest, tmp_path, resize):
    tall = tmp_path / "tall.png"
    Image.new("RGB", (20, 90)).save(tall)
    clips = manifest.copy()
    clips.at[clips.index[1], "images"] = [tall]
    clips.at[clips.index[1], "frames"] = clips.at[clips.index[1], "labeled"] = 1
    clips.at[clips.index[1], "labels"] = [None]
    sounds = features() | {clips["uid"].iloc[1]: np.zeros((1, 128), np.float32)}
    dataset = AVSDataset(clips, sounds, 64, Augment(flip=0.5, crop=0.5, color=0.3), resize=resize)
    whole = collate([dataset[0, index] for index in range(3)])
    for rank in range(2):
        sampler = EpochSampler(3, 3, shuffle=False, seed=0, rank=rank, world_size=2)
        part = collate([dataset[key] for key in next(iter(sampler))])
        assert part.uids == whole.uids[rank::2]
        for name in ("images_BTCHW", "audio_BTA", "labels_BTHW", "valid_BT", "labeled_BT"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::2]), name


def test_a_filler_has_no_valid_frame(manifest):
    dataset = AVSDataset(manifest, features(), 48)
    batch = collate([dataset[0, 1, "size"], dataset[0, 0, "filler"]])
    assert batch.uids == ["a"] and not batch.valid_BT.any() and not batch.labeled_BT.any()


def test_other_sounds_of_the_same_pictures(manifest):
    batch = collate([AVSDataset(manifest, features(1.0), image_size=48)[index] for index in range(2)])
    other = batch.with_sound(features(2.0))
    expected = collate([AVSDataset(manifest, features(2.0), image_size=48)[index] for index in range(2)])
    assert torch.equal(other.audio_BTA, expected.audio_BTA) and not torch.equal(other.audio_BTA, batch.audio_BTA)
    assert other.images_BTCHW is batch.images_BTCHW
    with pytest.raises(DataError, match="clip b: no audio features"):
        batch.with_sound({"a": features()["a"]})


def test_separated_tracks_are_batched_like_sounds(manifest):
    tracks = {uid: np.stack([audio, audio + 1], axis=1) for uid, audio in features(1.0).items()}
    items = [
        AVSDataset(manifest, sounds, image_size=48)[index] for sounds in (tracks, features(1.0)) for index in (0, 1)
    ]
    batch, plain = collate(items[:2]), collate(items[2:])
    assert batch.audio_BTA.shape == (*plain.audio_BTA.shape[:2], 2, 128)
    assert torch.equal(batch.audio_BTA[:, :, 0], plain.audio_BTA)
    assert torch.equal(batch.with_sound(tracks).audio_BTA, batch.audio_BTA)
    with pytest.raises(DataError, match=r"clip a: audio features of a frame are \[128\]; expected \[2, 128\]"):
        batch.with_sound(features(1.0))
    with pytest.raises(DataError, match=r"clip a: audio features are \[.*, 1, 64\]; expected"):
        AVSDataset(manifest, {"a": np.zeros((len(tracks["a"]), 1, 64), np.float32)}, 48)[0]


def test_order_changes_with_the_epoch():
    sampler = EpochSampler(50, 4, shuffle=True, seed=0)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert [key.clip for batch in first for key in batch] != [key.clip for batch in sampler for key in batch]


def test_shuffled_gives_every_clip_anothers_sound_once():
    uids = [f"clip{index}" for index in range(30)]
    store = {uid: np.full((5, 128), index) for index, uid in enumerate(uids)}
    frames = dict.fromkeys(uids, 5)
    shuffled = Shuffled(store, frames, seed=2)
    heard = [shuffled[uid][0, 0] for uid in uids]
    assert all(other != own for own, other in enumerate(heard)) and sorted(heard) == list(range(30))
    assert Shuffled(store, frames, seed=2).source == shuffled.source != Shuffled(store, frames, seed=3).source
    assert set(shuffled) == set(uids) and len(shuffled) == 30
    with pytest.raises(DataError, match="at least 2"):
        Shuffled(store, {uids[0]: 5}, seed=0)


def test_shuffled_keeps_to_clips_of_one_length():
    frames = {f"clip{index}": 5 if index % 3 else 10 for index in range(12)}
    store = {uid: np.full((length, 128), 0.0) for uid, length in frames.items()}
    shuffled = Shuffled(store, frames, seed=0)
    assert all(len(shuffled[uid]) == length for uid, length in frames.items())
    assert all(shuffled.source[uid] != uid for uid in frames)
    with pytest.raises(DataError, match="1 clip of 7 frames"):
        Shuffled(store, frames | {"odd": 7}, seed=0)


def test_constant_gives_every_clip_the_same():
    silence = Constant(np.arange(128), {"a": 5, "b": 10})
    assert silence["a"].shape == (5, 128) and silence["b"].shape == (10, 128)
    assert (silence["b"] == np.arange(128)).all() and set(silence) == {"a", "b"} and len(silence) == 2
    assert "c" not in silence
