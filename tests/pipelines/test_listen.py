"""`make listen`: the mix of the stage `mix`, as sound and as spectrograms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipelines.listen import listen, parse_snr
from pipelines.stages.download import download
from pipelines.stages.mix import mix
from pipelines.stages.noise import noise
from qdformer.audio.io.read import AudioError, read_audio
from qdformer.config.download import Clips, Download
from qdformer.config.settings import load_settings
from qdformer.data.layout import DataError, audio_path
from qdformer.data.readers.toy import compose_toy
from qdformer.reporting import plots
from qdformer.utils.errors import InputError
from tests.helpers.avsbench import made_up, write_fake

TOY = Download(dataset="toy", seed=0, clips=Clips(train=1, val=1, test=12), frames=2, image_size=32)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    compose_toy(root / "data" / "dataset", root / "data" / "sounds", TOY)
    noise(load_settings().noise, root / "data", root / "cache")
    return root


def test_the_wav_is_the_stage_s_mix(workspace):
    settings = load_settings()
    mix(settings, "snr-5", workspace / "data")
    for uid in ("test-0000", "test-0003"):
        sound, picture = listen(settings, workspace, uid, -5.0)
        assert sound == workspace / "listen" / f"{uid}-snr-5.wav"
        assert np.array_equal(read_audio(sound), read_audio(workspace / "data" / "mixed" / "snr-5" / f"{uid}.flac"))
        assert picture.name == f"{uid}-snr-5.png" and Image.open(picture).size > (900, 600)


def test_any_snr_and_any_split(workspace):
    sound, _ = listen(load_settings(), workspace, "train-0000", 7.25)
    assert sound.name == "train-0000-snr7.25.wav" and soundfile.info(sound).samplerate == 16000


def test_without_noise_it_is_the_clip(workspace):
    sound, picture = listen(load_settings(), workspace, "test-0001", None)
    clip = audio_path(next((workspace / "data" / "dataset").glob("*/test-0001")))
    assert sound.name == "test-0001-clean.wav" and picture.is_file()
    assert np.array_equal(read_audio(sound), read_audio(clip))


def test_a_published_clip_with_its_sound_and_with_a_spectrogram_in_its_place(tmp_path):
    for log_mel in (False, True):
        root = tmp_path / str(log_mel)
        fake = write_fake(tmp_path / f"fake-{log_mel}", "s4", made_up("s4", 1), log_mel=log_mel)
        download(Download(dataset="s4", source=[str(fake)]), root / "data", tmp_path / "cache")
        noise(load_settings().noise.model_copy(update={"source": "none"}), root / "data", tmp_path / "cache")
        if log_mel:
            with pytest.raises(AudioError, match=r"test__-0000\.pkl: .*need the audio itself"):
                listen(load_settings(), root, "test__-0000", None)
            continue
        sound, _ = listen(load_settings(), root, "test__-0000", None)
        assert soundfile.info(sound).duration == 5
        with pytest.raises(AudioError, match="no noise of the split test; try SNR=clean"):
            listen(load_settings(), root, "test__-0000", 5.0)


def test_the_spectrograms_are_those_of_the_mix(workspace, monkeypatch):
    shown = []
    draw = plots.spectrograms
    monkeypatch.setattr(plots, "spectrograms", lambda *arguments: shown.append(arguments) or draw(*arguments))
    listen(load_settings(), workspace, "test-0002", 5.0)
    panels, rate, title = shown[0]
    assert list(panels) == ["clip", "noise", "mix"] and rate == 16000
    np.testing.assert_allclose(panels["clip"] + panels["noise"], panels["mix"], atol=1e-4)
    assert title.startswith("test-0002 · SNR 5.00 dB · noise noise-") and ".flac from " in title


def test_an_unknown_clip_lists_similar_names(workspace):
    with pytest.raises(DataError, match=r"no clip 'test-001' in .*metadata.csv; similar names: .*test-0001"):
        listen(load_settings(), workspace, "test-001", 5.0)
    with pytest.raises(DataError, match=r"no clip 'x' .*; expected one of 14, such as train-0000"):
        listen(load_settings(), workspace, "x", 5.0)


def test_the_snr_is_a_number_of_decibels_or_clean():
    assert parse_snr("clean") is None
    assert (parse_snr("5"), parse_snr("-2.5")) == (5.0, -2.5)
    for text in ("", "loud", "nan", "inf", "400"):
        with pytest.raises(InputError, match=f"SNR={text}: expected a number of decibels from -60 to 60, or clean"):
            parse_snr(text)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--clip=", "--snr=5"], 1, "CLIP is missing"),
        (["--clip=test-0000", "--snr=loud"], 1, "SNR=loud"),
        (
            ["--clip=test-0000", "--snr=5", "--data=nope"],
            2,
            "no preset 'nope'; there are: avsegformer, avss, avss-avsegformer, avss-avsegformer-pvt,",
        ),
        (["--clip=test-0000", "--snr=5", "--data=toy"], 1, "metadata.csv: missing"),
    ],
)
def test_wrong_options_are_one_line(project, options, code, words):
    done = project.python("-m", "pipelines.listen", *options)
    assert done.returncode == code and words in done.stderr and done.stderr.count("\n") == 1


def test_the_command_prints_both_paths(project):
    root = project.root / "workspaces" / "toy"
    compose_toy(root / "data" / "dataset", root / "data" / "sounds", TOY)
    noise(load_settings().noise, root / "data", root / "cache")
    done = project.python("-m", "pipelines.listen", "--data=toy", "--clip=test-0000", "--snr=-3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(root / "listen" / f"test-0000-snr-3.{kind}") for kind in ("wav", "png")]
