"""Accepted clips are moved to quarantine by name; without names there must be a champion to compare them with."""

from __future__ import annotations

import pytest

from qdformer.data.accepted import read_accepted, write_accepted

ROW = {"vid": "a", "uid": "a", "s_min": "0", "s_sec": "0", "a_obj": "dog", "split": "train", "label": "v1s"}


@pytest.fixture
def accepted(project):
    folder = project.root / "accepted"
    for uid in ("a", "b"):
        (folder / "v1s" / uid).mkdir(parents=True)
        (folder / "v1s" / uid / "audio.wav").write_bytes(b"sound")
    write_accepted(folder, [ROW, ROW | {"uid": "b"}])
    return folder


def test_named_clips_are_moved_with_the_reason(project, accepted):
    done = project.python("-m", "pipelines.set_apart", "--clips", "b", "--reason", "a dog of the neighbor")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Moved to quarantine/withdrawn (1): b\n"
    assert [row["uid"] for row in read_accepted(accepted)] == ["a"]
    moved = project.root / "quarantine" / "withdrawn" / "b"
    assert (moved / "reason.txt").read_text() == "a dog of the neighbor\n" and (moved / "audio.wav").is_file()


def test_an_unknown_clip_is_one_line_and_nothing_is_moved(project, accepted):
    done = project.python("-m", "pipelines.set_apart", "--clips", "a nobody")
    assert done.returncode == 1 and done.stderr.endswith("no accepted clip nobody; expected uids of this table\n")
    assert done.stderr.count("\n") == 1 and len(read_accepted(accepted)) == 2


def test_without_names_and_champion_the_names_are_asked_for(project, accepted):
    done = project.python("-m", "pipelines.set_apart")
    assert done.returncode == 1 and len(read_accepted(accepted)) == 2
    assert (
        done.stderr == 'error: model qdformer-stamps: no champion yet; name the clips to set apart: CLIPS="UID ..."\n'
    )
