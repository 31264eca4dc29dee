"""The stage `noise`: its out is complete or absent, and has a digest."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys

import pytest

from pipelines.stages.mix import mix
from pipelines.stages.noise import noise
from qdformer.audio.io.read import AudioError
from qdformer.audio.noise.collect import read_noise_table
from qdformer.audio.noise.mixing import read_condition
from qdformer.config.download import Clips, Download
from qdformer.config.settings import load_settings, parse_settings
from qdformer.data.readers.toy import compose_toy
from tests.helpers import PROJECT

TOY = Download(dataset="toy", seed=0, clips=Clips(train=1, val=1, test=2), frames=2, image_size=32)


@pytest.fixture
def data(tmp_path):
    compose_toy(tmp_path / "data" / "dataset", tmp_path / "data" / "sounds", TOY)
    return tmp_path / "data"


def test_the_noises_of_the_data_set_are_mixed_with_clips(data, tmp_path):
    settings = load_settings()
    (data / "noise").mkdir()
    (data / "noise" / "old.flac").touch()
    noise(settings.noise, data, tmp_path / "cache")
    assert sorted(path.name for path in data.iterdir()) == ["dataset", "noise", "noise.sha256", "sounds"]
    assert not (data / "noise" / "old.flac").exists()
    mix(settings, "snr0", data)
    manifest = read_condition(data / "mixed" / "snr0")
    assert len(manifest) == 2 and manifest["snr_achieved"].tolist() == pytest.approx([0, 0], abs=0.01)
    assert set(manifest["noise"]) <= {path.name for path in (data / "noise" / "test").iterdir()}


def test_without_noise_the_table_is_empty(data, tmp_path):
    values = load_settings().model_dump()
    values["noise"]["source"], values["mix"]["conditions"] = "none", {"clean": None}
    values["sweep"]["conditions"], values["promote"]["max_drop"] = ["clean"], {}
    settings = parse_settings(values)
    noise(settings.noise, data, tmp_path / "cache")
    assert len(read_noise_table(data / "noise")) == 0 and (data / "noise.sha256").is_file()
    mix(settings, "clean", data)
    assert len(read_condition(data / "mixed" / "clean")) == 4


def test_the_digest_follows_the_noises(data, tmp_path):
    settings = load_settings().noise
    noise(settings, data, tmp_path / "cache")
    before = (data / "noise.sha256").read_text()
    noise(settings, data, tmp_path / "cache")
    assert (data / "noise.sha256").read_text() == before
    path = next((data / "sounds" / "test").glob("noise-*.flac"))
    path.write_bytes(path.with_name(next(p.name for p in path.parent.iterdir() if p != path)).read_bytes())
    noise(settings, data, tmp_path / "cache")
    assert (data / "noise.sha256").read_text() != before


def test_a_failure_leaves_the_outs_alone(data, tmp_path):
    settings = load_settings().noise
    noise(settings, data, tmp_path / "cache")
    before = (data / "noise.sha256").read_text()
    table = data / "sounds" / "sounds.csv"
    table.write_text("".join(line for line in table.open() if ",noise," not in line))
    with pytest.raises(AudioError, match="no sound with the role noise"):
        noise(settings, data, tmp_path / "cache")
    assert (data / "noise.sha256").read_text() == before and (data / "noise" / "noise.csv").is_file()


@pytest.mark.parametrize(("stage", "out"), [(["noise"], "noise"), (["mix", "snr0"], "mixed/snr0")])
def test_a_full_disk_is_an_error_and_leaves_no_out(data, tmp_path, stage, out):
    if stage[0] == "mix":
        noise(load_settings().noise, data, tmp_path / "cache")
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.stages.{stage[0]}", *stage[1:]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert not (data / out).exists()
