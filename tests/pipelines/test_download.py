import json

import pytest

from pipelines.flows.__main__ import parse_source
from pipelines.stages import download as stage
from pipelines.stages.check import check
from qdformer.audio.io.sound_table import read_sound_table
from qdformer.config.base import SettingsError
from qdformer.config.check import Check
from qdformer.config.download import Clips, Download
from qdformer.data.layout import DataError
from qdformer.data.manifest import read_manifest
from qdformer.utils.digests import tree_sha256
from qdformer.utils.errors import InputError
from tests.helpers.avsbench import made_up, write_fake

SETTINGS = Download(dataset="toy", seed=0, clips=Clips(train=1, val=1, test=1), frames=2, image_size=32)

OUTS = ["dataset", "digests.json", "sounds"]


def test_both_outs_are_complete_and_nothing_else_is_left(tmp_path):
    data = tmp_path / "data"
    (data / "dataset").mkdir(parents=True)
    (data / "dataset" / "old").touch()
    stage.download(SETTINGS, data, tmp_path / "cache")
    assert sorted(path.name for path in data.iterdir()) == OUTS
    assert (data / "dataset" / "metadata.csv").is_file() and (data / "sounds" / "sounds.csv").is_file()
    assert not (data / "dataset" / "old").exists()
    digests = json.loads((data / "digests.json").read_text())
    assert digests == {name: tree_sha256(data / name) for name in ("dataset", "sounds")}


def test_a_published_set_has_no_single_sounds(tmp_path):
    fake = write_fake(tmp_path / "fake", "s4", made_up("s4", 1))
    settings = Download(dataset="s4", source=[str(fake)])
    stage.download(settings, tmp_path / "data", tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == OUTS
    assert len(read_manifest(tmp_path / "data" / "dataset")) == 3
    assert read_sound_table(tmp_path / "data" / "sounds").empty
    with pytest.raises(SettingsError, match=r"download.source is empty.*make data DATASET=s4 SOURCE="):
        stage.download(Download(dataset="s4"), tmp_path / "other", tmp_path / "cache")


def test_a_clip_listed_twice_passes_the_download_and_fails_the_check_with_all_faults(tmp_path):
    fake = write_fake(tmp_path / "fake", "s4", made_up("s4", 1))
    table = next(fake.glob("*.csv"))
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    next(fake.rglob("*_1.png")).write_bytes(b"")
    data = tmp_path / "data"
    stage.download(Download(dataset="s4", source=[str(fake)]), data, tmp_path / "cache")
    with pytest.raises(DataError) as caught:
        check(Check(min_component_area=0.0003, tolerate=[]), data, tmp_path / "reports", [str(fake)])
    message = str(caught.value)
    assert "s4_meta_data.csv: line 5: the same clip as in line 2" in message and "not a readable picture" in message
    assert f"correct the files in {fake}" in message and ".partial" not in message
    assert not list(data.glob("*.sha256"))
    with pytest.raises(DataError, match="s4_meta_data.csv: clip .* is listed twice"):
        read_manifest(data / "dataset")


def test_sources_are_split_as_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = [str(tmp_path / "a.zip"), "https://x.test/b.zip?k=1", str(tmp_path / "my data"), "/c"]
    assert parse_source("a.zip https://x.test/b.zip?k=1 'my data' /c") == expected
    with pytest.raises(InputError, match="SOURCE='a: No closing quotation"):
        parse_source("'a")


def test_an_interrupted_download_writes_no_out(tmp_path, monkeypatch):
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
    stage.download(SETTINGS, data, tmp_path / "cache")  # leftovers of the interrupted run do not matter
    assert sorted(path.name for path in data.iterdir()) == OUTS
