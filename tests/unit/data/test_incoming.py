"""Batches that arrive: good clips are accepted, each kind of bad clip is set apart with its reason."""

from __future__ import annotations

import shutil

import pytest

from qdformer.data import incoming as room
from qdformer.data.accepted import join_accepted, read_accepted
from qdformer.data.incoming import take_in, withdraw
from qdformer.data.layout import DataError, metadata_row, write_clip, write_metadata
from qdformer.data.manifest import read_manifest
from tests.helpers.dataset import CLASSES, FRAMES, clip_arrays, digests, write_small


class Places:
    def __init__(self, root):
        self.incoming, self.accepted, self.quarantine = (root / n for n in ("incoming", "accepted", "quarantine"))
        self.dataset = write_small(root / "dataset")

    def take_in(self):
        return take_in(self.incoming, self.accepted, self.quarantine, self.dataset, 0.0003)

    def batch(self, name, *uids, first_seed=20):
        """Write a batch of good clips."""
        rows = []
        for seed, uid in enumerate(uids, start=first_seed):
            write_clip(self.incoming / name, "v1m", uid, *clip_arrays(seed))
            rows.append(metadata_row(uid, subset="v1m", split="test", classes=["dog", "cat"], frames=FRAMES))
        write_metadata(self.incoming / name, rows, CLASSES)
        return self.incoming / name / "v1m"

    def reason(self, *parts):
        return self.quarantine.joinpath(*parts, "reason.txt").read_text()


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


def test_good_clips_are_accepted_and_join_the_training_split(places):
    places.batch("monday", "new-1", "new-2")
    intake = places.take_in()
    assert intake.accepted == ["new-1", "new-2"] and not intake.quarantined
    assert not any(places.incoming.iterdir()) and not places.quarantine.exists()
    assert {row["split"] for row in read_accepted(places.accepted)} == {"train"}
    join_accepted(places.dataset, places.accepted)
    assert read_manifest(places.dataset).set_index("uid").loc["new-2"]["split"] == "train"
    assert not places.take_in()


def test_every_kind_of_bad_clip_is_set_apart_with_its_reason(places):
    clips = places.batch("bad", "cut", "lost", "id", "copy", "c", "good")
    (clips / "cut" / "audio.wav").write_bytes((clips / "cut" / "audio.wav").read_bytes()[:30])
    (clips / "lost" / "frames" / "1.jpg").unlink()
    shutil.copy(clips / "id" / "frames" / "0.jpg", clips / "id" / "labels_semantic" / "0.png")
    shutil.rmtree(clips / "copy")
    shutil.copytree(places.dataset / "v1m" / "c", clips / "copy")  # of the test split, under another name
    intake = places.take_in()
    assert intake.accepted == ["good"]
    assert set(intake.quarantined) == {f"bad/{uid}" for uid in ("cut", "lost", "id", "copy", "c")}
    assert "audio.wav" in places.reason("bad", "cut") and "frames/1.jpg: missing" in places.reason("bad", "lost")
    assert "labels_semantic/0.png" in places.reason("bad", "id")
    assert places.reason("bad", "copy") == "the same pictures or sound as c (test)\n"
    assert places.reason("bad", "c") == "a clip of this name is in the data set already (test)\n"
    assert (places.quarantine / "bad" / "copy" / "audio.wav").is_file()
    assert [row["uid"] for row in read_accepted(places.accepted)] == ["good"]


def test_a_batch_that_cannot_be_read_is_set_apart_as_a_whole(places):
    folder = places.batch("classes", "new-1").parent
    (folder / "label2idx.json").write_text('{"background": 0, "cat": 1, "dog": 2}')
    (places.batch("links", "new-2") / "new-2" / "more").symlink_to("/etc")
    (places.batch("table", "new-3").parent / "metadata.csv").write_text("nonsense\n")
    rows = places.batch("path", "new-4", "new-5").parent / "metadata.csv"
    rows.write_text(rows.read_text().replace("new-4,new-4", "../new-4,../new-4"))
    intake = places.take_in()
    assert intake.accepted == ["new-5"]
    assert set(intake.quarantined) == {"classes", "links", "table", "path/../new-4"}
    assert "the classes and ids differ" in places.reason("classes")
    assert "v1m/new-2/more: a symbolic link" in places.reason("links")
    assert "no column" in places.reason("table")
    assert not places.incoming.parent.joinpath("new-4").exists()


def test_a_batch_that_is_still_written_is_left_alone(places):
    folder = places.batch("later", "new-1").parent
    (folder / "metadata.csv").unlink()
    before = digests(folder)
    assert not places.take_in() and digests(folder) == before


@pytest.mark.parametrize("fails", ["write_accepted", "_set_apart", "shutil.rmtree"])
def test_an_interrupted_intake_is_repeated_with_the_same_result(places, monkeypatch, fails):
    clips = places.batch("monday", "good", "cut")
    (clips / "cut" / "audio.wav").write_bytes(b"")

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"{room.__name__}.{fails}", die)
        places.take_in()
    places.take_in()
    assert [row["uid"] for row in read_accepted(places.accepted)] == ["good"]
    assert "audio.wav" in places.reason("monday", "cut") and not any(places.incoming.iterdir())
    assert (places.accepted / "v1m" / "good" / "audio.wav").is_file()


def test_a_copy_of_a_clip_that_was_accepted_before_is_refused(places):
    places.batch("monday", "new-1")
    places.take_in()
    places.batch("tuesday", "other")  # the same seed, so the same pictures
    assert places.take_in().quarantined == {"tuesday/other": "the same pictures or sound as new-1 (train)"}


def test_accepted_clips_are_withdrawn_with_a_reason(places):
    places.batch("monday", "new-1", "new-2", "new-3")
    places.take_in()
    with pytest.raises(DataError, match="metadata.csv: no accepted clip nobody; expected uids of this table"):
        withdraw(places.accepted, places.quarantine, ["new-1", "nobody"], "drift")
    withdraw(places.accepted, places.quarantine, ["new-1", "new-3"], "drift")
    assert [row["uid"] for row in read_accepted(places.accepted)] == ["new-2"]
    assert [folder.name for folder in (places.accepted / "v1m").iterdir()] == ["new-2"]
    assert places.reason("withdrawn", "new-3") == "drift\n"
    assert (places.quarantine / "withdrawn" / "new-1" / "frames" / "0.jpg").is_file()
    withdraw(places.accepted, places.quarantine, ["new-2"], "drift")
    assert read_accepted(places.accepted) == []
    assert join_accepted(places.dataset, places.accepted) == 0
