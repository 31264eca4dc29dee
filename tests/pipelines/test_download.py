import json

import pytest

from pipelines.stages import download as stage
from qdformer.digests import tree_sha256
from qdformer.settings import Clips, Download

SETTINGS = Download(dataset="toy", seed=0, clips=Clips(train=1, val=1, test=1), frames=2, image_size=32)

OUTS = ["dataset", "digests.json", "sounds"]


def test_both_outs_are_whole_and_nothing_else_is_left(tmp_path):
    data = tmp_path / "data"
    (data / "dataset").mkdir(parents=True)
    (data / "dataset" / "old").touch()
    stage.download(SETTINGS, data, tmp_path / "cache")
    assert sorted(path.name for path in data.iterdir()) == OUTS
    assert (data / "dataset" / "metadata.csv").is_file() and (data / "sounds" / "sounds.csv").is_file()
    assert not (data / "dataset" / "old").exists()
    digests = json.loads((data / "digests.json").read_text())
    assert digests == {name: tree_sha256(data / name) for name in ("dataset", "sounds")}


def test_a_download_that_breaks_off_never_becomes_an_out(tmp_path, monkeypatch):
    def break_off(dataset, *arguments):
        compose(dataset, *arguments)
        raise KeyboardInterrupt

    compose = stage.compose_toy
    monkeypatch.setattr(stage, "compose_toy", break_off)
    data = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt):
        stage.download(SETTINGS, data, tmp_path / "cache")
    assert not (data / "dataset").exists() and not (data / "sounds").exists()
    monkeypatch.undo()
    stage.download(SETTINGS, data, tmp_path / "cache")  # what it left is no hindrance
    assert sorted(path.name for path in data.iterdir()) == OUTS
