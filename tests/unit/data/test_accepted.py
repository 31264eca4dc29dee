"""Accepted clips join the training split of a data set, and nothing else of it changes."""

from __future__ import annotations

import pandas
import pytest

from qdformer.data.accepted import join_accepted, read_accepted, write_accepted
from qdformer.data.layout import DataError, metadata_row, write_clip
from qdformer.data.manifest import read_manifest
from tests.helpers.dataset import FRAMES, clip_arrays, digests, write_small


def accept(folder, *uids, split="train"):
    rows = []
    for seed, uid in enumerate(uids, start=50):
        write_clip(folder, "v1m", uid, *clip_arrays(seed))
        row = metadata_row(uid, subset="v1m", split=split, classes=["dog", "cat"], frames=FRAMES)
        rows.append({key: str(value) for key, value in row.items()})
    write_accepted(folder, [*read_accepted(folder), *rows])


def test_without_accepted_clips_no_byte_changes(tmp_path):
    dataset = write_small(tmp_path / "dataset")
    before = digests(dataset)
    (tmp_path / "accepted").mkdir()
    assert join_accepted(dataset, tmp_path / "accepted") == 0
    assert digests(dataset) == before


def test_accepted_clips_join_the_training_split_whatever_split_they_name(tmp_path):
    dataset = write_small(tmp_path / "dataset")
    before = digests(dataset)
    accept(tmp_path / "accepted", "new-1", "new-2", split="test")
    assert join_accepted(dataset, tmp_path / "accepted") == 2
    after = digests(dataset)
    assert {name for name in before if before[name] != after[name]} == {"metadata.csv"}
    clips = read_manifest(dataset).set_index("uid")
    assert clips.index.tolist() == ["a", "b", "c", "quiet", "new-1", "new-2"]
    assert clips["split"].value_counts().to_dict() == {"train": 4, "test": 1, "val": 1}
    joined = clips.loc["new-1"]
    assert joined["classes"] == ("cat", "dog") and joined["frames"] == FRAMES and not joined["unseen"]
    assert all(path.is_file() for path in (*joined["images"], *joined["labels"], joined["audio"]))
    old = pandas.read_csv(dataset / "metadata.csv", dtype=str).head(4)
    assert old["uid"].tolist() == ["a", "b", "c", "quiet"]


def test_a_name_that_is_taken_or_leads_elsewhere_is_refused(tmp_path):
    dataset = write_small(tmp_path / "dataset")
    accept(tmp_path / "accepted", "c")
    with pytest.raises(DataError, match=r"clip 'c': the data set has a clip of this name"):
        join_accepted(dataset, tmp_path / "accepted")
    accept(tmp_path / "other", "fine")
    write_accepted(tmp_path / "other", [{**read_accepted(tmp_path / "other")[0], "uid": "../fine"}])
    with pytest.raises(DataError, match=r"'\.\./fine' is not a plain name"):
        join_accepted(dataset, tmp_path / "other")
