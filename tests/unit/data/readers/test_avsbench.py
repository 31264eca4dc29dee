"""The published layouts on small fake sets: rows, masks, classes, split rule and import."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile

import numpy as np
import pandas
import pytest
from PIL import Image

from qdformer.data.checks import check_dataset
from qdformer.data.dataset import AVSDataset, build_loader
from qdformer.data.labels import open_label_map
from qdformer.data.layout import DataError
from qdformer.data.manifest import read_classes, read_manifest, read_sounding_names
from qdformer.data.published import import_published
from qdformer.data.readers.avsbench import (
    LAYOUTS,
    DatasetRecord,
    read_dataset_record,
    write_dataset_record,
    youtube_disjoint,
)
from qdformer.utils.archives import ArchiveError
from qdformer.utils.download import DownloadError
from tests.helpers.avsbench import made_up, write_fake

KINDS = tuple(LAYOUTS)


def import_fake(tmp_path, kind, *sources, digests=(), split="published"):
    return import_published(
        kind, map(str, sources), digests, split, tmp_path / "dataset", tmp_path / "cache", progress=False
    )


@pytest.fixture
def fake_set(tmp_path):
    """A function that writes a fake set of a kind, imports it and returns its root."""

    def write(kind, clips=2, **options):
        import_fake(tmp_path, kind, write_fake(tmp_path / "fake", kind, made_up(kind, clips), **options))
        return tmp_path / "dataset"

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_of_the_manifest_exists(fake_set, kind):
    root = fake_set(kind)
    manifest = read_manifest(root)
    assert len(manifest) == (18 if kind == "avss" else 6) and manifest["uid"].is_unique
    for clip in manifest.itertuples():
        assert len(clip.images) == len(clip.labels) == clip.frames
        there = [path for path in clip.labels if path is not None]
        assert len(there) == clip.labeled and clip.labels[: clip.labeled] == tuple(there)
        assert all(path.is_file() for path in (*clip.images, *there, clip.audio))
        assert len(clip.video) == 11 and not clip.silent
    listed = {path for row in manifest.itertuples() for path in (*row.images, *row.labels, row.audio)}
    written = {path for path in root.rglob("*") if path.suffix in (".png", ".jpg", ".wav")}
    assert listed - {None} == written, "a file that no row refers to"
    assert not check_dataset(root).errors


def test_s4(fake_set):
    root = fake_set("s4")
    manifest = read_manifest(root).set_index("split")
    assert manifest["labeled"].groupby("split").unique().map(list).to_dict() == {"test": [5], "train": [1], "val": [5]}
    first = manifest.iloc[0]
    assert first["images"][4] == root / "visual_frames/train/bird_sounds/train_-0000/train_-0000_5.png"
    assert first["audio"] == root / "audio_wav/train/bird_sounds/train_-0000.wav"
    assert first["classes"] == ("bird_sounds",) and first["binary"]
    assert read_classes(root).names == ("object",) and read_sounding_names(root) == ("bird_sounds", "dog_sounds")


def test_ms3(fake_set):
    root = fake_set("ms3", log_mel=True)
    manifest = read_manifest(root)
    assert set(manifest["labeled"]) == {5}
    assert manifest["images"][0][0] == root / "visual_frames/train_-0000_0/train_-0000_0.mp4_1.png"
    assert manifest["labels"][0][0] == root / "gt_masks/train/train_-0000_0/train_-0000_0_1.png"
    assert manifest["audio"][0] == root / "audio_log_mel/train/train_-0000_0.pkl"
    assert manifest["video"][0] == "train_-0000" and read_sounding_names(root) == ()


def test_avss(fake_set):
    root = fake_set("avss")
    manifest = read_manifest(root)
    sizes = manifest.groupby(["subset", "split"])[["frames", "labeled"]].first()
    assert sizes.loc[("v1s", "train")].tolist() == [5, 1] and sizes.loc[("v1s", "val")].tolist() == [5, 5]
    assert sizes.loc[("v1m", "train")].tolist() == [5, 5] and sizes.loc[("v2", "train")].tolist() == [10, 10]
    assert set(manifest["classes"].map(len)) == {1}, "off-the-screen is not a class"
    names = read_classes(root).names
    indices = json.loads((root / "label2idx.json").read_text())
    assert all(index == 1 + position for position, index in enumerate(indices.values()))
    assert {name: read_classes(root).id(name) + 1 for name in names} == {
        name: index for name, index in indices.items() if name != "background"
    }


def test_a_published_typo_background_rows_and_invalid_rows(fake_set):
    root = fake_set("avss")
    path = root / "metadata.csv"
    text = path.read_text()
    path.write_text(text.replace(",bird,", ",b ird,", 1).replace(",dog,", ",background,", 1))
    manifest = read_manifest(root)
    assert manifest["classes"][0] == ("bird",) and manifest["silent"].sum() == 1
    for old, new, problem in [
        (",bird,", ",brid,", "unknown class 'brid' in a_obj"),
        (",train,v1s", ",exam,v1s", "unknown split 'exam'"),
        (",train,v1s", ",train,v3", "frames is ''"),
        (",train,v1s", ",train,../v1s", "label '../v1s' is not a plain name"),
    ]:
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DataError, match=problem):
            read_manifest(root)


@pytest.mark.parametrize("kind", ["s4", "ms3"])
def test_an_invalid_row_of_a_binary_set_is_named(fake_set, kind):
    root = fake_set(kind)
    path = root / LAYOUTS[kind].table
    text = path.read_text()
    for old, new, problem in [
        ("train_-0000", "../up", "line 2, clip '../up.*' is not a plain name"),
        (",train", ",exam", "unknown split 'exam'"),
        (LAYOUTS[kind].columns[0], "nothing", f"no column {LAYOUTS[kind].columns[0]}"),
    ]:
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DataError, match=problem) as caught:
            read_manifest(root)
        assert path.name in str(caught.value)
    path.write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(DataError, match="listed twice"):
        read_manifest(root)


@pytest.mark.parametrize("indices", ['{"background": 0, "bird": 1}', '{"bird": 1}', "[]", "{", '{"background": 1}'])
def test_a_label_index_that_does_not_count_from_one(fake_set, indices):
    root = fake_set("avss")
    (root / "label2idx.json").write_text(indices)
    with pytest.raises(DataError, match="label2idx.json: "):
        read_classes(root)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_become_class_ids_in_batches(fake_set, kind):
    root = fake_set(kind)
    manifest = read_manifest(root)
    features = {clip.uid: np.ones((clip.frames, 128), np.float32) for clip in manifest.itertuples()}
    for task in ("avs", "avss") if kind == "avss" else ("avs",):
        dataset = AVSDataset(manifest, features, 64, task=task)
        (batch,) = build_loader(dataset, len(manifest))
        assert batch.labels_BTHW.shape == (len(manifest), manifest["frames"].max(), 64, 64)
        assert batch.valid_BT.sum(1).tolist() == manifest["frames"].tolist()
        assert batch.labeled_BT.sum(1).tolist() == manifest["labeled"].tolist()
        for clip, labels_THW, labeled_T in zip(manifest.itertuples(), batch.labels_BTHW, batch.labeled_BT, strict=True):
            expected = read_classes(root).id(clip.classes[0]) if task == "avss" else 1
            assert labels_THW[labeled_T][:, 12:24, 16:32].unique().tolist() == [expected]
            assert (labels_THW[labeled_T] == expected).sum() == clip.labeled * 12 * 16
            assert (labels_THW[~labeled_T] == 255).all()


def test_the_split_rule():
    def disjoint(*rows):
        table = pandas.DataFrame(rows, columns=["uid", "video", "split"])
        return youtube_disjoint(table)["uid"].tolist()

    assert disjoint(("a0", "a", "train"), ("a1", "a", "test"), ("b", "b", "train")) == ["a1", "b"]
    assert disjoint(("a0", "a", "val"), ("a1", "a", "train"), ("a2", "a", "val")) == ["a0", "a2"]
    assert disjoint(("a0", "a", "train"), ("a1", "a", "val"), ("a2", "a", "test")) == ["a2"]
    assert disjoint(("x", "", "train"), ("y", "", "test")) == ["x", "y"], "clips without a video do not share one"
    assert disjoint(("b", "b", "test"), ("a", "a", "train")) == ["b", "a"], "the order is kept"


def test_the_record_has_the_split_rule_and_the_sizes(tmp_path):
    table = made_up("ms3", 3)
    table.loc[0, "video_id"] = table["video_id"].iloc[-1][:11] + "_7"  # a train clip of the video of a test clip
    write_fake(tmp_path / "fake", "ms3", table)
    about = import_fake(tmp_path, "ms3", tmp_path / "fake", split="youtube_disjoint")
    assert about.clips == {"train": 2, "val": 3, "test": 3} and about.left_out == {"train": 1, "val": 0, "test": 0}
    assert json.loads((tmp_path / "dataset" / "dataset.json").read_text())["left_out"]["train"] == 1
    assert read_dataset_record(tmp_path / "dataset").split == "youtube_disjoint"
    manifest = read_manifest(tmp_path / "dataset")
    assert len(manifest) == 8 and manifest.groupby("video")["split"].nunique().max() == 1
    write_dataset_record(tmp_path / "dataset", DatasetRecord("ms3", "published"))
    assert len(read_manifest(tmp_path / "dataset")) == 9


def test_rows_are_not_validated_at_import(tmp_path):
    table = made_up("s4", 2)
    table.loc[1, "split"] = "exam"
    table = pandas.concat([table, table.iloc[:1]])
    fake = write_fake(tmp_path / "fake", "s4", table)
    for split, train in (("published", 2), ("youtube_disjoint", 2)):
        root = tmp_path / split
        record = import_published("s4", [str(fake)], [], split, root, tmp_path / "cache", progress=False)
        assert record.clips == {"train": train, "val": 2, "test": 2}
        errors = check_dataset(root).errors
        assert [error.kind for error in errors] == ["bad-row", "duplicate-uid"]
        assert "line 8: the same clip as in line 2" in errors[1].message


@pytest.mark.parametrize("content", ["{", '{"kind": "s5", "split": "published"}', '{"kind": "s4"}', '{"sizes": 1}'])
def test_an_unreadable_record(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match="dataset.json: "):
        read_manifest(tmp_path)


def test_archives_folders_and_single_tables_together(tmp_path):
    """As released: the parts in several archives, the table next to them under another name."""
    fake = write_fake(tmp_path / "fake", "s4", made_up("s4", 2))
    with tarfile.open(tmp_path / "frames.tar.gz", "w:gz") as tar:
        tar.add(fake / "s4_data" / "visual_frames", "release/s4_data/visual_frames")
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as package:
        for path in (fake / "s4_data" / "gt_masks").rglob("*.png"):
            package.write(path, path.relative_to(fake))
    (fake / "s4_meta_data.csv").rename(tmp_path / "s4.csv")
    for part in ("visual_frames", "gt_masks"):
        (fake / "s4_data" / part).rename(tmp_path / f"was {part}")
    sources = [tmp_path / "frames.tar.gz", tmp_path / "masks.zip", fake, tmp_path / "s4.csv"]
    about = import_fake(tmp_path, "s4", *sources)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None for path in sources]
    assert [dict(source) for source in about.sources] == [
        {"name": path.name, "sha256": digest} for path, digest in zip(sources, digests, strict=True)
    ]
    for part, source in (("visual_frames", "was visual_frames"), ("gt_masks", "was gt_masks")):
        for path in (tmp_path / source).rglob("*.png"):
            placed = tmp_path / "dataset" / part / path.relative_to(tmp_path / source)
            assert placed.read_bytes() == path.read_bytes(), "re-encoded"
    sound = read_manifest(tmp_path / "dataset")["audio"][0]
    assert sound.stat().st_nlink == 1, "a file of the user is copied, not linked"
    assert read_manifest(tmp_path / "dataset")["images"][0][0].stat().st_nlink == 2, "an unpacked one is linked"


def test_two_sets_in_one_tree(tmp_path):
    """AVSBench-object is published with both sets in one tree."""
    for kind, folder in (("s4", "Single-source"), ("ms3", "Multi-sources")):
        write_fake(tmp_path / "avsbench_data" / folder, kind, made_up(kind, 1))
    for kind in ("s4", "ms3"):
        import_published(
            kind, [str(tmp_path / "avsbench_data")], [], "published", tmp_path / kind, tmp_path / "cache", False
        )
        assert set(read_manifest(tmp_path / kind)["subset"]) == {kind}
        assert not check_dataset(tmp_path / kind).errors


def test_missing_and_repeated_sources_are_named(tmp_path):
    fake = write_fake(tmp_path / "fake", "s4", made_up("s4", 1))
    with pytest.raises(DataError, match="none: no such file or folder"):
        import_fake(tmp_path, "s4", tmp_path / "none")
    with pytest.raises(DataError, match="ms3: no ms3_meta_data.csv in .*fake"):
        import_fake(tmp_path, "ms3", fake)
    (tmp_path / "other.csv").write_text("name,start,category,split\n")
    with pytest.raises(DataError, match="s4: several tables could be s4_meta_data.csv"):
        import_fake(tmp_path, "s4", fake, tmp_path / "other.csv")
    with pytest.raises(DataError, match="occurs twice in the sources"):
        import_fake(tmp_path, "s4", fake, write_fake(tmp_path / "again", "s4", made_up("s4", 1)))
    with pytest.raises(DataError, match="a folder has no SHA-256; expected an archive"):
        import_published("s4", [str(fake)], ["0" * 64], "published", tmp_path / "x", tmp_path / "cache", False)
    with pytest.raises(DownloadError, match="s4.csv: SHA-256 is .*, expected 0"):
        (tmp_path / "s4.csv").write_bytes((fake / "s4_meta_data.csv").read_bytes())
        import_published(
            "s4", [str(tmp_path / "s4.csv")], ["0" * 64], "published", tmp_path / "x", tmp_path / "cache", False
        )
    (fake / "s4_data" / "gt_masks").rename(tmp_path / "away")
    with pytest.raises(DataError, match="s4: no folder gt_masks"):
        import_published("s4", [str(fake)], [], "published", tmp_path / "x", tmp_path / "cache", False)
    (tmp_path / "away").rename(fake / "s4_data" / "gt_masks")
    (fake / "s4_data" / "audio_wav").rename(tmp_path / "away")
    with pytest.raises(DataError, match="s4: no folder audio_wav or audio_log_mel"):
        import_published("s4", [str(fake)], [], "published", tmp_path / "x", tmp_path / "cache", False)


def test_an_archive_with_a_path_outside_it_is_refused(tmp_path):
    with tarfile.open(tmp_path / "s4.tar", "w") as tar:
        info = tarfile.TarInfo("../../evil")
        tar.addfile(info)
    with pytest.raises(ArchiveError, match="s4.tar: '../../evil' leads out of the archive; refused"):
        import_fake(tmp_path, "s4", tmp_path / "s4.tar")
    assert not list(tmp_path.rglob("evil")) and not (tmp_path / "dataset").exists()


def test_masks_of_every_mode_are_equivalent(fake_set):
    root = fake_set("s4")
    mask = read_manifest(root).query("split == 'test'")["labels"].iloc[0][0]
    expected = np.asarray(Image.open(mask).convert("L")) > 0
    for mode in ("1", "L", "P", "RGB"):
        Image.open(mask).convert("L").convert(mode).save(mask)
        assert np.array_equal(np.asarray(open_label_map(mask, True, "avs")) == 1, expected), mode
