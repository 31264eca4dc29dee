"""The checks on small sets in the published layouts."""

import pickle

import numpy as np
import pytest
from PIL import Image

from qdformer.data.checks import check_dataset
from qdformer.data.published import import_published
from qdformer.reporting.check_page import make_page
from tests.helpers.avsbench import made_up, write_fake


def import_fake(tmp_path, kind, split="published", change=None, **layout):
    table = made_up(kind, 2)
    if change is not None:
        change(table)
    source = write_fake(tmp_path / "fake", kind, table, **layout)
    import_published(kind, [str(source)], [], split, tmp_path / "dataset", tmp_path / "cache", progress=False)
    return tmp_path / "dataset"


@pytest.mark.parametrize(("kind", "files"), [("s4", 2 * 7 + 4 * 11), ("ms3", 6 * 11), ("avss", 2 * 39 + 4 * 43)])
def test_a_set_in_a_published_layout_has_no_error(tmp_path, kind, files):
    report = check_dataset(import_fake(tmp_path, kind))
    assert not report.errors and report.files == files
    assert "row-count" in report.by_kind() and not report.sharing


def test_masks_of_any_value_are_checked(tmp_path):
    root = import_fake(tmp_path, "ms3")
    masks = sorted((root / "gt_masks").rglob("*_1.png"))
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(masks[0])
    component = np.zeros((48, 64), np.uint8)
    component[10, 10] = 255
    Image.fromarray(component).save(masks[1])
    report = check_dataset(root, min_component_area=0.001)
    assert {kind: len(found) for kind, found in report.by_kind().items() if kind != "row-count"} == {
        "empty-mask": 1,
        "only-small-components": 1,
    }
    assert report.by_kind()["only-small-components"][0].message.endswith("the smallest is object, 1 of 3,072 pixels")
    assert make_page([report]).count("<img") == 3
    Image.fromarray(component).convert("RGB").save(masks[2])
    (error,) = check_dataset(root).errors
    assert error.kind == "wrong-mode" and error.file == str(masks[2].relative_to(root))


def test_spectrograms_instead_of_sounds(tmp_path):
    root = import_fake(tmp_path, "s4", log_mel=True)
    assert not check_dataset(root).errors
    first, second, *_ = sorted((root / "audio_log_mel").rglob("*.pkl"))
    first.write_bytes(b"")
    with second.open("wb") as file:
        pickle.dump(np.zeros((3, 1, 96, 64), np.float32), file)
    damaged, short = check_dataset(root).errors
    assert (damaged.kind, damaged.clip) == ("unreadable-file", first.stem)
    assert (short.kind, short.message) == ("audio-length", "3 patches of 0.96 s; expected 5")


def one_video(table):
    table.loc[0, "video_id"] = "AAAAAAAAAAA_0"  # in train
    table.loc[4, "video_id"] = "AAAAAAAAAAA_1"  # in test


@pytest.mark.parametrize(("split", "shared"), [("published", 1), ("youtube_disjoint", 0)])
def test_shared_videos_are_reported_for_the_splits_in_use(tmp_path, split, shared):
    report = check_dataset(import_fake(tmp_path, "ms3", split, one_video))
    assert len(report.by_kind().get("shared-video", [])) == len(report.sharing) == shared
    assert report.clips["train"] == 1 + shared
    assert str(report.by_kind()["row-count"][0]).startswith("ms3_meta_data.csv: 6 clips")


def test_a_space_in_a_published_name_is_not_an_error(tmp_path):
    def insert_space(table):
        table.loc[0, "a_obj"] = "b ird"

    report = check_dataset(import_fake(tmp_path, "avss", change=insert_space))
    assert [finding.values["likely"] for finding in report.by_kind()["class-typo"]] == ["bird"] and not report.errors
