"""Feature extraction compared with torchvggish 0.2, which has the same weights: from 5 s wav files to HDF5.

Both run with their defaults: torchvggish clip by clip with PyTorch's threads and without gradients; ours with as many
workers as PyTorch has threads. Loading of the weights is not measured. The steps of a clip are measured one by one on
one thread, the network and the whole extraction on all threads. Each number is the median of rounds in which the two
alternate.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from torchvggish import torchvggish, vggish_input
from tqdm import tqdm

from qdformer.audio.features.extract import (
    CLIPS_PER_CHUNK,
    PATCHES_PER_BATCH,
    Clip,
    Embedder,
    EmbedderConfig,
    extract_features,
)
from qdformer.audio.features.store import FeatureStore, write_features
from qdformer.audio.io.read import read_audio
from qdformer.audio.noise.mixing import mix_at_snr
from qdformer.audio.vggish.log_mel import log_mel_patches
from qdformer.audio.vggish.model import VGGish
from qdformer.utils.constants import SAMPLE_RATE

SECONDS, ROUNDS = 5, 2
CLIPS, RIVAL_CLIPS = 2 * CLIPS_PER_CHUNK * torch.get_num_threads(), 6
FORMATS = {"16 kHz mono": (16_000, 1), "44.1 kHz stereo": (44_100, 2)}
GOALS = {"16 kHz mono": 1.8, "44.1 kHz stereo": 3.0}
NETWORK_GOAL = 1.25
MATRIX = 2048


@dataclass(frozen=True)
class Loaded(EmbedderConfig):
    """A configuration whose network is already in memory."""

    embedder: Embedder | None = None

    def load(self) -> Embedder:
        return self.embedder


class Clock:
    """Durations in seconds by name, one entry per round."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, call: Callable[[], object], per: int = 1) -> None:
        """Call once and record the duration divided by `per`."""
        started = time.perf_counter()
        call()
        self._seconds[name].append((time.perf_counter() - started) / per)

    def __getitem__(self, name: str) -> float:
        return median(self._seconds[name])


def run() -> None:
    """Measure and print the table."""
    torch.manual_seed(0)
    ours, theirs = VGGish().eval().requires_grad_(False), torchvggish._vgg(postprocess=False).eval()
    theirs.load_state_dict(ours.state_dict())
    embedder, clock = Embedder(ours, "repeat"), Clock()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        clips = {
            name: _write_clips(Path(folder) / str(rate), rate, channels) for name, (rate, channels) in FORMATS.items()
        }
        with tqdm(total=(ROUNDS + 1) * (len(FORMATS) + 1), desc="features", leave=False) as bar:
            for measured in (Clock(), *[clock] * ROUNDS):  # the first round is a warm-up
                _network(measured, embedder, theirs)
                bar.update()
                for name in FORMATS:
                    _steps(measured, name, clips[name], Path(folder))
                    _end_to_end(measured, name, clips[name], embedder, theirs, Path(folder))
                    bar.update()
        differences = [_difference(Path(folder), name) for name in FORMATS]
    _print(clock, max(differences))


def _write_clips(folder: Path, rate: int, channels: int) -> list[Clip]:
    folder.mkdir()
    clips = []
    for index in range(CLIPS):
        samples = np.random.default_rng(index).uniform(-0.5, 0.5, (SECONDS * rate, channels))
        soundfile.write(folder / f"{index}.wav", samples, rate)
        clips.append(Clip(str(index), folder / f"{index}.wav", SECONDS))
    return clips


def _network(clock: Clock, embedder: Embedder, theirs: torch.nn.Module) -> None:
    """The network alone, and the current speed of a matrix product on this machine."""
    threads = torch.get_num_threads()
    patches = torch.randn(CLIPS_PER_CHUNK * threads * SECONDS, 1, 96, 64)
    batches = patches.split(PATCHES_PER_BATCH)
    matrix = torch.randn(MATRIX, MATRIX)
    clock.time(
        "matrix product, all threads together", lambda: [matrix @ matrix for _ in range(2 * threads)], 2 * threads
    )
    with _workers() as pool:
        product = partial(torch.matmul, matrix, matrix)
        clock.time("matrix product, one per thread", lambda: _all(pool, [product] * 2 * threads), 2 * threads)
        clock.time(
            "ours network",
            lambda: _all(pool, [partial(embedder._run, batch) for batch in batches]),
            CLIPS_PER_CHUNK * threads,
        )
    rival = patches.split(SECONDS)[:RIVAL_CLIPS]
    clock.time("torchvggish network", lambda: [theirs(clip) for clip in rival], RIVAL_CLIPS)


def _steps(clock: Clock, name: str, clips: Sequence[Clip], folder: Path) -> None:
    """All steps of a clip except the network, on one thread."""
    with _workers(1) as pool:

        def timed(part: str, calls: Sequence[Callable[[], object]]) -> list:
            results: list = []
            clock.time(f"{part} {name}", lambda: results.extend(_all(pool, calls)), len(calls))
            return results

        clips = clips[:RIVAL_CLIPS]
        audio = timed("ours decode", [partial(read_audio, clip.path) for clip in clips])
        timed(
            "ours mix",
            [partial(mix_at_snr, clean, noise, 0.0) for clean, noise in zip(audio, audio[1:] + audio[:1], strict=True)],
        )
        timed("ours log-mel", [partial(log_mel_patches, samples, SAMPLE_RATE) for samples in audio])
        features = [(clip.uid, np.zeros((SECONDS, 128), np.float32)) for clip in clips]
        info = EmbedderConfig(Path(), "", "repeat").info(name)
        clock.time(f"ours write {name}", lambda: write_features(folder / "write.h5", features, info), len(clips))
        sounds = timed("torchvggish decode", [partial(soundfile.read, clip.path, dtype="int16") for clip in clips])
        timed(
            "torchvggish log-mel",
            [partial(vggish_input.waveform_to_examples, samples / 32768.0, rate) for samples, rate in sounds],
        )


def _end_to_end(
    clock: Clock, name: str, clips: Sequence[Clip], embedder: Embedder, theirs: torch.nn.Module, folder: Path
) -> None:
    config = Loaded(Path(), "", "repeat", embedder=embedder)
    path = folder / f"ours {name}.h5"
    make = partial(extract_features, path, clips, config, name, folder / "cache", progress=False)
    clock.time(f"ours end to end {name}", make, len(clips))

    def torchvggish_path() -> None:
        with h5py.File(folder / f"torchvggish {name}.h5", "w") as file:
            for clip in clips[:RIVAL_CLIPS]:
                file[clip.uid] = theirs(vggish_input.wavfile_to_examples(str(clip.path))).numpy()

    clock.time(f"torchvggish end to end {name}", torchvggish_path, RIVAL_CLIPS)


@contextmanager
def _workers(threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Worker threads like those of feature extraction."""
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads or before, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool
    torch.set_num_threads(before)


def _all(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], object]]) -> list:
    return [future.result() for future in [pool.submit(call) for call in calls]]


def _difference(folder: Path, name: str) -> float:
    """Largest difference between the embeddings of the two, relative to the largest embedding."""
    store = FeatureStore(folder / f"ours {name}.h5")
    with h5py.File(folder / f"torchvggish {name}.h5") as file:
        return max(float(np.abs(store[uid] - file[uid][()]).max() / np.abs(file[uid][()]).max()) for uid in file)


def _print(clock: Clock, difference: float) -> None:
    console = Console(width=112)
    table = Table(title=f"Features of {SECONDS} s clips: clips/s (× real time), {torch.get_num_threads()} threads")
    for heading in ("", "ours", "torchvggish 0.2", "ratio", "goal"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(title: str, ours: float, theirs: float | None, goal: float | None = None) -> None:
        table.add_row(
            title,
            f"{1 / ours:.1f} ({SECONDS / ours:.0f}×)",
            f"{1 / theirs:.1f} ({SECONDS / theirs:.0f}×)" if theirs else "",
            f"{theirs / ours:.2f}" if theirs else "",
            f"≥ {goal}" if goal else "",
        )

    for name in FORMATS:
        for part in ("decode", "mix", "log-mel", "write"):
            rival = f"torchvggish {part} {name}"
            label = f"{part}, {name}"
            row(label, clock[f"ours {part} {name}"], clock[rival] if part in ("decode", "log-mel") else None)
        table.add_section()
    row("network", clock["ours network"], clock["torchvggish network"])
    for name in FORMATS:
        row(
            f"end to end, {name}",
            clock[f"ours end to end {name}"],
            clock[f"torchvggish end to end {name}"],
            GOALS[name],
        )
    console.print(table)
    with FlopCounterMode(display=False) as counter:
        VGGish()(torch.zeros(SECONDS, 1, 96, 64))
    operations = counter.get_total_flops()
    fastest = min(clock["matrix product, all threads together"], clock["matrix product, one per thread"])
    rate = 2 * MATRIX**3 / fastest
    bound = operations / rate
    console.print(
        f"Network: {clock['ours network'] * 1e3:.0f} ms per clip; its {operations / 1e9:.2f} GFLOP take "
        f"{bound * 1e3:.0f} ms at the {rate / 1e9:.0f} GFLOP/s of a {MATRIX} × {MATRIX} matrix product: "
        f"{clock['ours network'] / bound:.2f} × (goal ≤ {NETWORK_GOAL})."
    )
    console.print(
        "Decoding includes resampling in ours, log-mel in torchvggish's. All but the network runs on one thread."
    )
    console.print(f"Largest difference between the embeddings: {difference:.1e} of the largest.")
