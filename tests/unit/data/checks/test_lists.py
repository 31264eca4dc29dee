"""The checks of lists, on small lists with the columns of the published ones."""

import json
import time

import pytest

from qdformer.data.checks import check_clip_list, check_dataset
from qdformer.data.checks.findings import SplitOverlap, VideoSpan
from qdformer.data.checks.lists import closest_class
from qdformer.data.layout import DataError
from tests.helpers.dataset import write_small

AVSS = "vid,uid,s_min,s_sec,a_obj,split,label\n"
VIDEOS = ["AAAAAAAAAA-", "BBBBBBBBBB_", "CCCCCCCCCC0", "DDDDDDDDDD1"]


def row(vid, uid, names, split, subset="v2"):
    return f"{vid},{uid},0,0,{names},{split},{subset}\n"


@pytest.fixture
def avss(tmp_path):
    def write(*rows, classes=("cat", "dog", "emergency-car", "horse")):
        path = tmp_path / "metadata.csv"
        path.write_text(AVSS + "".join(rows))
        indices = {name: index for index, name in enumerate(["background", *classes], start=1)}
        (tmp_path / "label2idx.json").write_text(json.dumps(indices))
        return check_clip_list(path)

    return write


def messages(report, kind):
    return [str(finding) for finding in report.by_kind().get(kind, [])]


def test_misspelled_and_unknown_categories(avss):
    report = avss(
        row("a", "a", "h orse", "train"),
        row("b", "b", "dog_emergency-cars", "train"),
        row("c", "c", "Cat", "val"),
        row("d", "d", "banana", "test"),
        row("e", "e", "cat__dog", "test"),
    )
    assert messages(report, "class-typo") == [
        "clip b: metadata.csv: line 3: 'emergency-cars' is not a class; probably 'emergency-car' is meant",
        "clip c: metadata.csv: line 4: 'Cat' is not a class; probably 'cat' is meant",
        "clip a: metadata.csv: line 2: 'h orse' is not a class; probably 'horse' is meant",
    ]
    assert messages(report, "unknown-class") == [
        "clip d: metadata.csv: line 5: 'banana' is not a class",
        "clip e: metadata.csv: line 6: '' is not a class",
    ]
    # Only spaces are removed when the list is read.
    assert {error.clip for error in report.errors} == {"b", "c", "d", "e"}


def test_similar_names_of_classes_are_not_typos(avss):
    assert not messages(avss(row("a", "a", "man_woman", "train"), classes=("man", "woman")), "class-typo")
    assert closest_class("man", {"woman", "horse"}) is None and closest_class("wo man", {"man", "woman"}) == "woman"


def test_without_a_list_of_classes_the_plain_names_replace_it(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(AVSS + row("a", "a", "horse", "train") + row("b", "b", "h orse", "train"))
    assert "probably 'horse' is meant" in messages(check_clip_list(path), "class-typo")[0]


def test_background_and_off_screen_rows(avss):
    report = avss(
        row("a", "a", "background", "train"),
        row("b", "b", "off-the-screen", "train"),
        row("c", "c", "dog_off-the-screen", "val"),
    )
    assert messages(report, "background-row") == ["clip a: metadata.csv: line 2: background"]
    assert [finding.clip for finding in report.by_kind()["off-screen-row"]] == ["b", "c"]
    assert "unknown-class" not in report.by_kind()


def test_classes_absent_from_a_split(avss):
    report = avss(row("a", "a", "dog_cat_horse_emergency-car", "train"), row("b", "b", "cat_horse", "test"))
    assert messages(report, "absent-class") == ["metadata.csv: 2 classes in no clip of test: dog, emergency-car"]


def test_invalid_rows(avss):
    report = avss(
        row("a", "../a", "dog", "train"),
        row("b", "b", "dog", "validation"),
        row("c", "c", "dog", "train", ".."),
        row("d", "d", "dog", "train"),
        row("e", "d", "dog", "test"),
        row("f", "", "dog", "test"),
    )
    assert messages(report, "bad-row") == [
        "clip ../a: metadata.csv: line 2: '../a' is not a plain name; expected no '/' and no '..'",
        "clip b: metadata.csv: line 3: unknown split 'validation'; expected train, val, test",
        "clip c: metadata.csv: line 4: '..' is not a plain name; expected no '/' and no '..'",
        "metadata.csv: line 7: the name is empty; expected the uid of the clip",
    ]
    assert messages(report, "duplicate-uid") == ["clip d: metadata.csv: line 6: the same clip as in line 5"]
    assert len(report.errors) == 5
    assert report.clips == {"train": 3, "test": 2, "validation": 1}


def test_videos_in_several_splits(avss):
    a, b, c, d = VIDEOS
    report = avss(
        row(f"{a}_0", "a0", "dog", "train", "v1m"),
        row(f"{a}_1", "a1", "dog", "test", "v1m"),
        row(a, "a2", "dog", "test", "v1s"),
        row(b, f"{b}_0_5000", "dog", "train", "v1s"),
        row(f"{b}_12", "b2", "dog", "test", "v1m"),
        row(c, "c", "dog", "val"),
        row(c, "c2", "dog", "val"),
        row(d, "d", "dog", "test"),
    )
    assert messages(report, "shared-video") == [
        f"metadata.csv: video {a}: train a0; test a1, a2",
        f"metadata.csv: video {b}: train {b}_0_5000; test b2",
    ]
    assert report.sharing == (
        SplitOverlap("", "test", "train", clips=3, of=4, videos=2),
        SplitOverlap("v1m", "test", "train", clips=2, of=2, videos=2),
        SplitOverlap("v1s", "test", "train", clips=1, of=1, videos=1),
    )
    assert report.spanning == (
        VideoSpan("", 2, 4),
        VideoSpan("v1m", 1, 2),
        VideoSpan("v1s", 0, 2),
        VideoSpan("v2", 0, 2),
    )
    assert not report.errors


def test_composed_clips_have_no_source_video(tmp_path):
    report = check_dataset(write_small(tmp_path))
    assert not report.sharing and not report.spanning


def test_the_lists_of_s4_and_ms3(tmp_path):
    path = tmp_path / "s4.csv"
    path.write_text(f"name,start,category,split\n{VIDEOS[0]},0,race_car,train\n{VIDEOS[1]},0,male_speech,test\n")
    report = check_clip_list(path)
    assert not report.errors and report.clips == {"train": 1, "test": 1}
    assert messages(report, "absent-class") == [
        "s4.csv: 1 class in no clip of train: male_speech",
        "s4.csv: 1 class in no clip of test: race_car",
    ]
    assert "s4.csv: 2 clips; the paper of S4 states 4,932" in messages(report, "row-count")
    path = tmp_path / "ms3.csv"
    path.write_text(f"video_id,split\n{VIDEOS[0]}_0,train\n{VIDEOS[0]}_1,test\n{VIDEOS[1]},test\n")
    report = check_clip_list(path)
    assert report.sharing == (SplitOverlap("", "test", "train", clips=1, of=2, videos=1),)
    assert set(report.by_kind()) == {"shared-video", "row-count"}


def test_an_avss_list_as_long_as_the_published_one(avss):
    splits = {"train": 8498, "val": 1304, "test": 1554}
    rows = [row(f"{split}{n:07}", f"{split}{n}", "cat", split) for split, count in splits.items() for n in range(count)]
    started = time.monotonic()
    report = avss(*rows, classes=("cat",))
    assert time.monotonic() - started < 20
    assert [str(finding) for finding in report.findings] == [
        "metadata.csv: 11,356 clips; the paper of AVSS states 12,356"
    ]
    assert "metadata.csv: 8,497 clips in train; the published list of AVSS has 8,498" in messages(
        avss(*rows[1:], classes=("cat",)), "row-count"
    )


def test_unreadable_and_unknown_lists(tmp_path):
    path = tmp_path / "x.csv"
    with pytest.raises(DataError, match="x.csv: missing"):
        check_clip_list(path)
    path.write_text("video,start,split\na,0,train\n")
    with pytest.raises(DataError, match="its columns are video,start,split; expected those of a published list"):
        check_clip_list(path)
    path.write_text("video_id,split\n")
    with pytest.raises(DataError, match="x.csv: no clips"):
        check_clip_list(path)
    path.write_text(AVSS + row("a", "a", "dog", "train"))
    (tmp_path / "label2idx.json").write_text("{")
    with pytest.raises(DataError, match="label2idx.json: not valid JSON"):
        check_clip_list(path)
