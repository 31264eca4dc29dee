import json

import pytest

from qdformer.data.layout import DataError
from qdformer.data.manifest import read_classes, read_manifest
from tests.helpers.dataset import write_small


@pytest.fixture
def root(tmp_path):
    return write_small(tmp_path / "dataset")


def test_one_row_a_clip(root):
    manifest = read_manifest(root)
    assert manifest["uid"].tolist() == ["a", "b", "c", "quiet"]
    assert manifest["split"].tolist() == ["train", "train", "test", "val"]
    assert manifest["classes"].tolist() == [("cat", "dog")] * 3 + [()] == manifest["visible"].tolist()
    assert manifest["silent"].tolist() == [False, False, False, True]
    assert manifest["unseen"].tolist() == [False, False, True, False]
    assert set(manifest["frames"]) == set(manifest["labeled"]) == {3}
    assert manifest["audio"][0] == root / "v1m" / "a" / "audio.wav"
    assert all(path.is_file() for column in ("images", "labels") for paths in manifest[column] for path in paths)
    assert all(path.is_file() for path in manifest["audio"])
    assert manifest["images"][0][2] == root / "v1m" / "a" / "frames" / "2.jpg"
    assert manifest["labels"].map(len).tolist() == [3] * 4
    assert set(manifest["video"]) == {""}


def test_classes_in_the_order_of_their_ids(root):
    classes = read_classes(root)
    assert classes.names == ("dog", "cat") and classes.unseen == (True, False)
    assert len(classes) == 2 and classes.id("cat") == 2


def test_the_published_columns_are_enough(root):
    (root / "metadata.csv").write_text(
        "vid,uid,s_min,s_sec,a_obj,split,label\nAbcdefghij-,Abcdefghij-_0_5000,0,0,dog,val,v1s\ny,y,0,9,cat_off-the-screen,val,v2\n"
    )
    manifest = read_manifest(root)
    assert manifest["frames"].tolist() == [5, 10]
    assert manifest["video"].tolist() == ["Abcdefghij-", "y"]
    assert manifest["classes"].tolist() == [("dog",), ("cat",)]
    assert manifest["visible"].tolist() == [None, None]
    assert manifest["unseen"].all() and not manifest["silent"].any()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("b,b,", "b,../b,", r"line 3, clip '../b': uid '../b' is not a plain name"),
        ("b,b,", "b,x/b,", r"line 3, clip 'x/b'"),
        ("b,b,", "b,a,", "clip 'a' is listed twice"),
        ("quiet,quiet,", "quiet,,", "line 5, clip ''"),
        (",val,", ",validation,", "unknown split 'validation'; expected train, val, test"),
        ("background", "h orse", "clip 'quiet': unknown class 'h orse'"),
        (",v1m,3,1", ",v1m,none,1", "clip 'c': frames is 'none'"),
        (",v1m,3,1", ",v1m,0,1", "clip 'c': frames is '0'"),
        (",v1m,3,1", ",v1m,3,yes", "clip 'c': unseen is 'yes'"),
        (",v1m,3,1,cat_dog", ",v1m", "clip 'c': frames is ''"),
        (",v1m,3,1", ",v1m,3,1,9", "metadata.csv: not a readable table"),
        (",v1m,3,1", ",..,3,1", r"clip 'c': label '\.\.' is not a plain name"),
        ("a_obj", "objects", "no column a_obj"),
    ],
)
def test_a_wrong_row_is_named(root, old, new, problem):
    path = root / "metadata.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=problem) as caught:
        read_manifest(root)
    assert "metadata.csv" in str(caught.value)


def test_missing_empty_and_binary_tables(root):
    path = root / "metadata.csv"
    path.write_text("")
    with pytest.raises(DataError, match="metadata.csv: not a readable table"):
        read_manifest(root)
    path.write_text("vid,uid,s_min,s_sec,a_obj,split,label\n")
    with pytest.raises(DataError, match="no clips"):
        read_manifest(root)
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match="metadata.csv: "):
        read_manifest(root)
    path.unlink()
    with pytest.raises(DataError, match="metadata.csv: missing"):
        read_manifest(root)


@pytest.mark.parametrize("indices", [{"background": 1, "dog": 2}, {"dog": 0, "cat": 1}, {"background": 0}, ["dog"], {}])
def test_class_ids_count_up_from_background(root, indices):
    (root / "label2idx.json").write_text(json.dumps(indices))
    with pytest.raises(DataError, match="label2idx.json: expected"):
        read_classes(root)


def test_class_tables_must_agree(root):
    (root / "classes.csv").write_text("id,name,unseen\n1,cat,0\n2,dog,1\n")
    with pytest.raises(DataError, match="classes.csv: its ids and names"):
        read_classes(root)
    (root / "label2idx.json").write_text("{")
    with pytest.raises(DataError, match="label2idx.json: not valid JSON"):
        read_classes(root)
