import pytest

from pipelines.stages import download as stage
from qdformer.data.layout import DataError
from qdformer.settings import Clips, Download

SETTINGS = Download(dataset="toy", seed=0, clips=Clips(train=1, val=1, test=1), frames=2, image_size=32)

OUTS = ["dataset", "dataset.sha256", "sounds", "sounds.sha256"]


def test_both_outs_are_whole_and_nothing_else_is_left(tmp_path):
    data = tmp_path / "data"
    (data / "dataset").mkdir(parents=True)
    (data / "dataset" / "old").touch()
    stage.download(SETTINGS, data, tmp_path / "cache")
    assert sorted(path.name for path in data.iterdir()) == OUTS
    assert (data / "dataset" / "metadata.csv").is_file() and (data / "sounds" / "sounds.csv").is_file()
    assert not (data / "dataset" / "old").exists()


def test_data_that_fails_the_checks_never_becomes_an_out(tmp_path, monkeypatch):
    def compose_damaged(dataset, *arguments):
        compose(dataset, *arguments)
        (dataset / "v1m" / "val-0000" / "audio.wav").write_bytes(b"")

    compose = stage.compose_toy
    monkeypatch.setattr(stage, "compose_toy", compose_damaged)
    data = tmp_path / "data"
    with pytest.raises(DataError, match="clip val-0000: .*audio.wav"):
        stage.download(SETTINGS, data, tmp_path / "cache")
    assert not (data / "dataset").exists() and not (data / "sounds").exists()
    monkeypatch.undo()
    stage.download(SETTINGS, data, tmp_path / "cache")  # what the failure left is no hindrance
    assert sorted(path.name for path in data.iterdir()) == OUTS
