"""The stage `check`, the command `make check`, and their files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import check as command
from pipelines.stages import check as stage
from pipelines.stages import download
from qdformer.audio.io.sound_table import write_sound_table
from qdformer.config.check import Check
from qdformer.config.download import Clips, Download
from qdformer.config.settings import load_settings
from qdformer.data.layout import DataError
from qdformer.utils.digests import tree_sha256
from tests.helpers import PROJECT

DOWNLOAD = Download(dataset="toy", seed=0, clips=Clips(train=2, val=1, test=1), frames=2, image_size=32)
CHECK = Check(min_component_area=0.0003, tolerate=[])


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    download.download(DOWNLOAD, Path("data"), Path("cache"))
    return tmp_path


def run_check(settings=CHECK):
    stage.check(settings, Path("data"), Path("reports"))


def test_a_valid_data_set_gets_its_digest(place, capsys):
    run_check()
    for name in ("dataset", "sounds"):
        assert (place / "data" / f"{name}.sha256").read_text().strip() == tree_sha256(place / "data" / name)
    assert "data/dataset: 2 train, 1 val, 1 test" in capsys.readouterr().out
    reports = {path.name: path.read_bytes() for path in (place / "reports").iterdir()}
    assert sorted(reports) == ["check.html", "check.json"]
    assert set(json.loads(reports["check.json"])) == {"data/dataset", "data/sounds"}
    run_check()
    assert reports == {path.name: path.read_bytes() for path in (place / "reports").iterdir()}


def test_an_error_prevents_the_digests(place, capsys):
    (place / "data" / "dataset" / "v1m" / "val-0000" / "audio.wav").write_bytes(b"")
    with pytest.raises(DataError, match="clip val-0000: v1m/val-0000/audio.wav: the file is empty"):
        run_check()
    assert not list((place / "data").glob("*.sha256"))
    assert "Unreadable files" in capsys.readouterr().out
    assert "val-0000" in (place / "reports" / "check.html").read_text()


def test_an_unreadable_sound_prevents_the_digests(place):
    sound = next((place / "data" / "sounds").rglob("*.flac"))
    sound.write_bytes(b"")
    with pytest.raises(DataError, match=f"data/sounds: .*{sound.name}: the file is empty"):
        run_check()
    assert not list((place / "data").glob("*.sha256"))


def test_a_set_without_single_sounds(place):
    write_sound_table(place / "data" / "sounds", [])
    run_check()
    assert set(json.loads((place / "reports" / "check.json").read_text())) == {"data/dataset"}
    assert (place / "data" / "sounds.sha256").is_file()


LIST = "vid,uid,s_min,s_sec,a_obj,split,label\n"


def test_a_modified_data_set_is_checked_as_it_is(place, monkeypatch, capsys):
    monkeypatch.setattr(command, "open_workspace", lambda name: place)
    monkeypatch.setattr(command, "preset_settings", lambda name: load_settings(PROJECT / "params.yaml"))
    assert not command.modified_folders(place / "data")
    broken = next((place / "data" / "dataset").rglob("audio.wav"))
    broken.write_bytes(broken.read_bytes()[:30])
    with pytest.raises(DataError, match="dataset: changed since the stage download wrote it.*make repro DATA=toy"):
        command.check_workspace("toy")
    assert "audio.wav" in capsys.readouterr().out
    assert len(broken.read_bytes()) == 30


def test_a_list_of_clips_is_checked_without_media(tmp_path, capsys):
    path = tmp_path / "metadata.csv"
    path.write_text(LIST + "AAAAAAAAAA0_1,a,0,0,horse,train,v2\nAAAAAAAAAA0_2,b,0,0,h orse,test,v2\n")
    command.check_list(path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "'h orse' is not a class; probably 'horse' is meant" in printed
    assert "1 of 1 videos have clips in more than one split" in printed
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["check.html", "check.json"]


def test_the_exit_code_tells_whether_there_are_errors(tmp_path):
    path = tmp_path / "metadata.csv"
    call = [sys.executable, "-m", "pipelines.check", "--metadata", str(path)]
    for rows, code, said in [
        ("a,a,0,0,horse,train,v2\n", 0, ""),
        ("a,a,0,0,horse,dev,v2\n", 1, f"error: {path}: clip a: metadata.csv: line 2: unknown split 'dev'"),
    ]:
        path.write_text(LIST + rows)
        done = subprocess.run(call, cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == code and done.stderr.startswith(said), done.stderr
        assert bool(said) == bool(done.stderr)


def test_paths_are_relative_to_the_user_s_directory(place, monkeypatch, capsys):
    monkeypatch.setenv("QDFORMER_USER_DIRECTORY", str(place.parent))
    run_check()
    reports = f"{place.name}/reports"
    assert f"All findings: {reports}/check.html, {reports}/check.json" in capsys.readouterr().out
    monkeypatch.setenv("QDFORMER_USER_DIRECTORY", str(place / "elsewhere"))
    run_check()
    assert f"All findings: {place}/reports/check.html" in capsys.readouterr().out
