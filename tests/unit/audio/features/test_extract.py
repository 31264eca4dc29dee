"""Feature extraction: one embedding per frame, reproducible bytes, unusable audio, and interrupted runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from qdformer.audio.features import extract as features_module
from qdformer.audio.features.extract import Clip, Embedder, EmbedderConfig, embed_in_threads, extract_features
from qdformer.audio.features.store import FeatureError, FeatureStore, Journal
from qdformer.audio.io.read import AudioError
from qdformer.audio.vggish.log_mel import log_mel, log_mel_patches
from qdformer.audio.vggish.model import VGGish, save_vggish
from tests.helpers import PROJECT

CONFIG = EmbedderConfig(Path("none"), "a" * 64, "repeat")


class Echo(torch.nn.Module):
    """A substitute for VGGish: the mean of a patch, 128 times."""

    def forward(self, patches):
        return patches.mean(dim=(1, 2, 3))[:, None].expand(-1, 128)


class Double(torch.nn.Module):
    """A substitute for the PCA step."""

    def forward(self, embeddings):
        return 2 * embeddings


@pytest.fixture
def echo(monkeypatch) -> None:
    monkeypatch.setattr(features_module, "load_vggish", lambda *_: Echo())


def write_clips(folder: Path, count: int, seconds: float = 2.0) -> list[Clip]:
    clips = []
    for index in range(count):
        path = folder / f"clip{index}.wav"
        soundfile.write(path, np.random.default_rng(index).uniform(-0.5, 0.5, int(16000 * seconds)), 16000)
        clips.append(Clip(f"clip{index}", path, 2))
    return clips


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(16000 * seconds)).astype(np.float32)


def embed(tmp_path: Path, audio: np.ndarray, frames: int, *options, **more) -> np.ndarray:
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    (result,) = Embedder(Echo(), *options, **more).embed([Clip("a", tmp_path / "a.wav", frames)])
    assert result.clip.uid == "a" and result.problem == ""
    assert result.embeddings.shape == (frames, 128) and result.embeddings.dtype == np.float32
    return result.embeddings


@pytest.mark.parametrize(
    ("seconds", "frames", "short_clips", "own"),
    [(5.0, 5, "repeat", 5), (10.0, 5, "repeat", 5), (3.0, 5, "repeat", 3), (3.0, 5, "zero", 3), (0.5, 2, "zero", 1)],
)
def test_one_embedding_per_frame(tmp_path, seconds, frames, short_clips, own):
    audio = noise(seconds)
    embeddings = embed(tmp_path, audio, frames, short_clips)
    padded = np.pad(audio, (0, max(0, 15600 - len(audio))))
    expected = log_mel_patches(padded, 16000).mean(dim=(1, 2, 3)).numpy()[:own]
    np.testing.assert_allclose(embeddings[:own, 0], expected, rtol=1e-5)
    rest = expected[-1] if short_clips == "repeat" else 0.0
    np.testing.assert_allclose(embeddings[own:, 0], rest, rtol=1e-5)


@pytest.mark.parametrize(("seconds", "own"), [(5.0, 5), (4.6, 5), (4.4, 4), (0.2, 1)])
def test_centered_patches(tmp_path, seconds, own):
    audio = noise(seconds)
    embeddings = embed(tmp_path, audio, 5, "zero", center=True)
    spectrogram = log_mel(np.pad(audio, (0, max(0, 15600 - len(audio)))), 16000).numpy()
    spectrogram = np.pad(spectrogram, ((0, 100), (0, 0)), mode="edge")
    expected = [spectrogram[100 * second + 2 : 100 * second + 98].mean() for second in range(own)]
    np.testing.assert_allclose(embeddings[:own, 0], expected, rtol=1e-5)
    assert not embeddings[own:].any() and embeddings[own - 1].any()


def test_padding_is_added_after_the_pca_step(tmp_path):
    plain, doubled = (embed(tmp_path, noise(1.0), 3, "zero", pca=pca) for pca in (None, Double()))
    np.testing.assert_allclose(doubled, 2 * plain)
    assert not doubled[1:].any()


def test_embed_silence_equals_a_silent_clip(tmp_path):
    for options in ({}, {"center": True}, {"pca": Double()}):
        silent = embed(tmp_path, np.zeros(32000, np.float32), 2, "repeat", **options)
        np.testing.assert_array_equal(Embedder(Echo(), "repeat", **options).embed_silence(2), silent)


def test_an_embedding_does_not_depend_on_its_batch(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96 * 64, 128))
    embedder, clips = Embedder(network, "repeat"), write_clips(tmp_path, 20)
    together = {result.clip: result.embeddings for result in embedder.embed(clips)}
    for clip in clips:
        (alone,) = embedder.embed([clip])
        assert np.array_equal(alone.embeddings, together[clip])


def test_batches_that_are_not_filled_give_the_same_embeddings():
    torch.manual_seed(0)
    network, seen = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96 * 64, 128)), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    filled, as_they_come = Embedder(network, "repeat"), Embedder(network, "repeat", patches_per_batch=None)
    sound = noise(3.0)
    (expected,), (found,) = (own.embed_waveforms([sound], [3]) for own in (filled, as_they_come))
    assert seen == [16, 3]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_number_of_workers_changes_no_byte(tmp_path, echo, monkeypatch):
    clips = write_clips(tmp_path, 50)
    written = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        path = tmp_path / f"{threads}.h5"
        summary = extract_features(path, clips, CONFIG, "clean", tmp_path / "cache", progress=False)
        assert (summary.written, summary.resumed, summary.left_out) == (50, 0, [])
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert list(FeatureStore(path, weights_sha256="a" * 64)) == [clip.uid for clip in clips]


def test_chunks_are_taken_only_when_needed(tmp_path, echo):
    drawn = 0

    def chunks():
        nonlocal drawn
        for clip in clips:
            drawn += 1
            yield [clip]

    clips = write_clips(tmp_path, 30, seconds=1.0)
    bound = 2 * torch.get_num_threads() + 1
    for taken, _ in enumerate(embed_in_threads(CONFIG, chunks()), start=1):
        assert drawn <= taken + bound
    assert drawn == 30


def bad_files(folder: Path) -> dict[str, str]:
    """Write unusable audio files and return the expected message of each."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no sound at all")
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    soundfile.write(folder / "none.flac", np.zeros(0), 16000)
    return {
        "empty.wav": "the file is empty",
        "text.wav": "cannot be read as audio",
        "nan.wav": "sample 1 is NaN or infinite",
        "none.flac": "holds no samples|cannot be read",
        "missing.wav": "no such file",
    }


def test_unusable_audio_is_reported_and_the_rest_is_kept(tmp_path, echo, monkeypatch):
    clips = write_clips(tmp_path, 20)
    reasons = bad_files(tmp_path)
    for place, name in enumerate(reasons):
        clips.insert(3 * place, Clip(name, tmp_path / name, 2))
    path, cache = tmp_path / "clean.h5", tmp_path / "cache"
    with pytest.raises(AudioError, match=r"5 of 25 clips cannot be used, and features.bad_clips allows 10.0%") as error:
        extract_features(path, clips, CONFIG, "clean", cache, bad_clips=0.1, progress=False)
    for name, reason in reasons.items():
        assert f"clip {name}: {tmp_path / name}: " in str(error.value)
        assert any(part in str(error.value) for part in reason.split("|"))
    assert not path.exists()

    summary = extract_features(path, clips, CONFIG, "clean", cache, bad_clips=0.2, progress=False)
    assert (summary.written, summary.resumed) == (20, 20)
    assert [uid for uid, _ in summary.left_out] == list(reasons)
    store = FeatureStore(path)
    assert store.left_out == set(reasons) and len(store) == 20

    for name in reasons:  # after the repair only these are computed
        soundfile.write(tmp_path / name, np.zeros(32000), 16000)
    summary = extract_features(path, clips, CONFIG, "clean", cache, progress=False)
    assert (summary.written, summary.left_out) == (25, [])


def test_only_clips_that_are_new_or_changed_are_embedded_again(tmp_path, echo):
    clips, cache = write_clips(tmp_path, 6), tmp_path / "cache"
    path = tmp_path / "clean.h5"
    extract_features(path, clips[:4], CONFIG, "clean", cache, progress=False)
    summary = extract_features(path, clips, CONFIG, "clean", cache, progress=False)
    assert (summary.written, summary.resumed) == (6, 4)
    fresh = tmp_path / "fresh" / "clean.h5"
    extract_features(fresh, clips, CONFIG, "clean", tmp_path / "other", progress=False)
    assert path.read_bytes() == fresh.read_bytes()

    status = clips[0].path.stat()
    samples, _ = soundfile.read(clips[0].path)
    soundfile.write(clips[0].path, samples[::-1], 16000)
    os.utime(clips[0].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert extract_features(path, clips, CONFIG, "clean", cache, progress=False).resumed == 5


def test_two_processes_cannot_extract_the_same_features(tmp_path, echo):
    path, clips = tmp_path / "clean.h5", write_clips(tmp_path, 3)
    extract_features(path, clips, CONFIG, "clean", tmp_path / "cache", progress=False)
    before = path.read_bytes()
    with (
        Journal(tmp_path / "cache" / "clean.journal", CONFIG.info("clean")),
        pytest.raises(FeatureError, match="another process is extracting the features of clean"),
    ):
        extract_features(path, clips[:1], CONFIG, "clean", tmp_path / "cache", progress=False)
    assert path.read_bytes() == before


def test_no_usable_clip_is_always_an_error(tmp_path, echo):
    clips = [Clip("a", tmp_path / "a.wav", 2)]
    with pytest.raises(AudioError, match="1 of 1 clips cannot be used"):
        extract_features(tmp_path / "a.h5", clips, CONFIG, "clean", tmp_path, bad_clips=1.0, progress=False)


def write_container(path: Path, samples: np.ndarray, rate: int, layout: str) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize(("channels", "layout"), [(1, "mono"), (2, "stereo"), (6, "5.1")])
def test_every_format_gives_the_same_embeddings(tmp_path, rate, channels, layout):
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate).astype(np.float32)
    samples = np.repeat(wave[:, None], channels, axis=1)
    formats = ["wav", "flac"]
    if rate <= 48000:  # mp3 has no higher rates and at most two channels
        formats += ["ogg", "mp3"] if channels <= 2 else ["ogg"]
    for name in formats:
        soundfile.write(tmp_path / f"a.{name}", samples, rate)
    write_container(tmp_path / "a.mp4", samples, rate, layout)
    (tmp_path / "a.mp4").rename(tmp_path / "really-mp4.wav")
    (tmp_path / "a.flac").rename(tmp_path / "really-flac.mp4")
    clips = [Clip(path.name, path, 2) for path in sorted(tmp_path.iterdir())]
    results = Embedder(Echo(), "repeat").embed(clips)
    assert [result.problem for result in results] == [""] * len(clips)
    expected = log_mel_patches(0.4 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000), 16000).mean(dim=(1, 2, 3))
    for result in results:  # lossy codecs add some noise in the empty bands of a tone
        np.testing.assert_allclose(result.embeddings[:, 0], expected, atol=0.4, err_msg=result.clip.uid)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, torch
from qdformer.audio.features import extract as features, store
from tests.unit.audio.features.test_extract import Echo, CONFIG, read_clips

folder, moment, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted(function, before=lambda *arguments: None):
    calls = 0
    def call(*arguments):
        nonlocal calls
        calls += 1
        if calls == when:
            before(*arguments)
            die()
        return function(*arguments)
    return call

def half_a_line(uid, stamp, embeddings):
    with (folder / "cache" / "clean.journal").open("ab") as file:
        file.write(line(uid, stamp, embeddings)[:1000])

line = store._line
features.load_vggish = lambda *_: Echo()
if moment == "embed":
    Echo.forward = counted(Echo.forward)
if moment == "journal":
    store._line = counted(line, half_a_line)
if moment == "hdf5":
    store.clip_digest = counted(store.clip_digest)
if moment == "replace":
    store.os.replace = counted(store.os.replace)
if moment == "finish":
    store.Journal.finish = lambda journal, clips: die()
features.extract_features(folder / "clean.h5", read_clips(folder), CONFIG, "clean", folder / "cache", progress=False)
print("saved")
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new process in the project's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=PROJECT,
        env=kept | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def read_clips(folder: Path) -> list[Clip]:
    return [Clip(uid, folder / f"{uid}.wav", 2) for uid in json.loads((folder / "clips.json").read_text())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "when", "resumed"),
    [("embed", 1, 0), ("embed", 7, 0), ("journal", 1, 0), ("journal", 30, 1), ("journal", 64, 1)]
    + [("hdf5", 150, 64), ("replace", 1, 64), ("finish", 1, 64)],
)
def test_a_killed_run_is_resumed(tmp_path, echo, monkeypatch, moment, when, resumed):
    """After SIGKILL at different points, the second run resumes from the finished clips and gives the same bytes."""
    clips = write_clips(tmp_path, 64)
    (tmp_path / "clips.json").write_text(json.dumps([clip.uid for clip in clips]))
    extract_features(tmp_path / "whole.h5", clips, CONFIG, "clean", tmp_path / "other", progress=False)
    done = run_python(KILLED, tmp_path, moment, when)
    assert done.returncode == -9 and done.stdout == "", done.stderr
    assert (tmp_path / "clean.h5").exists() == (moment == "finish")

    summary = extract_features(tmp_path / "clean.h5", clips, CONFIG, "clean", tmp_path / "cache", progress=False)
    assert resumed <= summary.resumed and (resumed != 1 or summary.resumed < 64)
    assert summary.written == 64
    assert (tmp_path / "clean.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not (tmp_path / ".clean.h5.partial").exists()


EXECUTORS = """
import sys
from pathlib import Path
import ray
from qdformer.audio.features.ray_executor import embed_on_ray
from qdformer.audio.features.extract import Clip, EmbedderConfig, extract_features
from qdformer.utils.digests import file_sha256

folder = Path(sys.argv[1])
weights = folder / "vggish.safetensors"
config = EmbedderConfig(weights, file_sha256(weights), "repeat")
clips = [Clip(path.stem, path, 2) for path in sorted(folder.glob("*.wav"))]
ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
summary = extract_features(folder / "ray.h5", clips, config, "clean", folder / "ray", 0.1, embed_on_ray, progress=False)
print(summary.written, summary.left_out)
"""


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(tmp_path):
    """VGGish with random weights, two workers, and one unusable audio file."""
    torch.manual_seed(0)
    weights = tmp_path / "vggish.safetensors"
    digest = save_vggish(VGGish(), weights)
    clips = write_clips(tmp_path, 40)
    clips[7].path.write_bytes(b"no sound")
    clips.sort(key=lambda clip: clip.path.name)
    config = EmbedderConfig(weights, digest, "repeat")
    extract_features(tmp_path / "here.h5", clips, config, "clean", tmp_path / "here", 0.1, progress=False)
    done = run_python(EXECUTORS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("39 [('clip7', ")
    assert (tmp_path / "ray.h5").read_bytes() == (tmp_path / "here.h5").read_bytes()


MEMORY = """
import sys, threading, time
from pathlib import Path
import psutil, torch
from qdformer.audio.features import extract as features
from qdformer.audio.features.extract import Clip, EmbedderConfig, extract_features

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 64, 3, padding=1)  # as wide as the largest layer of VGGish
    def forward(self, patches):
        return self.first(patches).mean(dim=(2, 3)).repeat(1, 2)

features.load_vggish = lambda *_: Small()
folder, count = Path(sys.argv[1]), int(sys.argv[2])
clips = [Clip(f"{i:05}", folder / f"clip{i % 8}.wav", 5) for i in range(count)]
peak, process, over = 0, psutil.Process(), threading.Event()
def watch():
    global peak
    while not over.wait(0.01):
        peak = max(peak, process.memory_info().rss)
watcher = threading.Thread(target=watch)
watcher.start()
extract_features(folder / f"{count}.h5", clips, EmbedderConfig(Path("none"), "a", "repeat"), "clean",
                 folder / str(count), progress=False)
over.set()
watcher.join()
print(peak)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    """The peaks of 100 and 2,000 clips differ by less than 10 %. One layer suffices: weights need constant memory."""
    write_clips(tmp_path, 8, seconds=5.0)
    peaks = []
    for count in (100, 2000):
        done = run_python(MEMORY, tmp_path, count)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    print(f"peak memory: {peaks[0] / 1e6:.0f} MB for 100 clips, {peaks[1] / 1e6:.0f} MB for 2,000")
    assert peaks[1] < 1.1 * peaks[0]
