"""Background noise under clips at a chosen signal-to-noise ratio (SNR).

Shapes: S samples.

Rules:
- Power is the mean square over the whole clip. The same clip gets the same noise, from the same
  place, at every SNR.
- Where the sum would clip, clip and noise are scaled down together, which keeps the SNR.
- The result is what a 16-bit file holds, and its SNR is measured after rounding.
- A silent clip has no power to measure against: noise is laid as if its RMS were `SILENT_CLIP_RMS`,
  and its SNR is minus infinity.
- A piece of noise that is silent is drawn anew; a noise that stays silent is an `AudioError`.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from qdformer.audio.read import SAMPLE_RATE, AudioError, read_audio

SILENT_RMS = 1e-5  # a third of a 16-bit step
SILENT_CLIP_RMS = 0.05
_STEPS = 32768  # of 16-bit samples
_DRAWS = 20
MANIFEST_COLUMNS = ("uid", "split", "frames", "audio", "noise", "offset", "gain", "scale", "snr_asked", "snr_achieved")


@dataclass(frozen=True)
class Mix:
    """A clip with noise: round(scale * (clean + gain * noise)) in 16-bit steps."""

    audio: np.ndarray
    """[S] float32, each a multiple of 1 / 32768."""
    gain: float
    """Factor on the noise."""
    scale: float
    """Factor on the sum; 1 where nothing would clip."""
    achieved_snr: float
    """In dB, after scaling and rounding; minus infinity for a silent clip."""


@dataclass(frozen=True)
class NoisePiece:
    """Where a clip's noise comes from."""

    path: Path
    offset: int
    """First sample in the 16 kHz recording, which is repeated where it is shorter than the clip."""
    audio: np.ndarray
    """[S] float32."""


def mix_at_snr(clean: np.ndarray, noise: np.ndarray, snr_db: float) -> Mix:
    """Add `noise` [S] to `clean` [S] at `snr_db` over the whole clip.

    Raises:
        AudioError: the noise is silent, or the lengths differ.
    """
    if clean.shape != noise.shape or clean.ndim != 1:
        raise AudioError(f"clip {list(clean.shape)} and noise {list(noise.shape)} must be mono and of one length")
    clean, noise = clean.astype(np.float64), noise.astype(np.float64)
    if _rms(noise) <= SILENT_RMS:
        raise AudioError("the noise is silent")
    silent = _rms(clean) <= SILENT_RMS
    gain = (SILENT_CLIP_RMS if silent else _rms(clean)) / _rms(noise) * 10.0 ** (-snr_db / 20.0)
    mixed = clean + gain * noise
    peak, limit = float(np.abs(mixed).max()), 1.0 - 1.0 / _STEPS
    scale = min(1.0, limit / peak)
    audio = np.round(mixed * scale * _STEPS) / _STEPS
    added = _rms(audio - scale * clean)
    achieved = -math.inf if silent else 20.0 * math.log10(scale * _rms(clean) / added) if added else math.inf
    return Mix(audio.astype(np.float32), gain, scale, achieved)


def choose_noise(
    noises: Sequence[Path], seed: int, uid: str, samples: int, read: Callable[[Path], np.ndarray] = read_audio
) -> NoisePiece:
    """The noise of clip `uid`: a recording and a place in it that depend on `seed` and `uid` alone.

    Raises:
        AudioError: there is no noise to choose from, or the one chosen is silent wherever tried.
    """
    if not noises:
        raise AudioError(f"clip {uid}: no noise to choose from")
    digest = hashlib.sha256(f"{seed}/{uid}".encode()).digest()
    random = np.random.default_rng(np.frombuffer(digest, np.uint32))
    path = noises[int(random.integers(len(noises)))]
    recording = read(path)
    for _ in range(_DRAWS):
        places = len(recording) - samples + 1 if len(recording) >= samples else len(recording)
        offset = int(random.integers(places))
        piece = np.take(recording, np.arange(offset, offset + samples), mode="wrap")
        if _rms(piece) > SILENT_RMS:
            return NoisePiece(path, offset, piece)
    raise AudioError(f"{path}: the noise is silent")


def write_condition(
    folder: str | Path,
    clips: pandas.DataFrame,
    sounds: pandas.DataFrame,
    snr_db: float | None,
    splits: Iterable[str],
    seed: int,
) -> pandas.DataFrame:
    """Write one condition: `{uid}.flac` for each clip and `manifest.csv`, which is returned too.

    Without noise (`snr_db` None) nothing is copied: the manifest covers all clips and points at the
    data set's own files. With noise it covers the clips of `splits`, each under a noise of its own split.
    `folder` appears only when it is complete.

    Args:
        folder: where to write; replaced if it is there.
        clips: `qdformer.data.manifest.read_manifest`: uid, split, frames, audio.
        sounds: `qdformer.data.manifest.read_sounds`: path, role, split.

    Raises:
        AudioError: a clip or a noise is not usable, or a split has no noise.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if snr_db is None:
        rows = [_row(clip, os.path.relpath(clip.audio, folder)) for clip in clips.itertuples()]
    else:
        chosen = clips[clips["split"].isin(list(splits))]
        rows = _write_noisy(partial, chosen, sounds[sounds["role"] == "noise"], snr_db, seed)
    manifest = pandas.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
    manifest.to_csv(partial / "manifest.csv", index=False, lineterminator="\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return manifest


def read_condition(folder: str | Path) -> pandas.DataFrame:
    """Read a condition's `manifest.csv`: the columns written, `audio` as a Path.

    Raises:
        AudioError: the manifest is missing or lacks a column.
    """
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        raise AudioError(f"{path}: missing; the stage mix writes it")
    table = pandas.read_csv(path, dtype={"uid": str, "split": str, "audio": str, "noise": str})
    if missing := [name for name in MANIFEST_COLUMNS if name not in table.columns]:
        raise AudioError(f"{path}: column {missing[0]} is missing")
    return table.assign(audio=[Path(folder) / value for value in table["audio"]])


def _write_noisy(
    folder: Path, clips: pandas.DataFrame, noises: pandas.DataFrame, snr_db: float, seed: int
) -> list[dict]:
    import soundfile

    pools = {split: list(noises["path"][noises["split"] == split]) for split in clips["split"].unique()}
    recordings: dict[Path, np.ndarray] = {}

    def read_once(path: Path) -> np.ndarray:
        if path not in recordings:
            recordings[path] = read_audio(path)
        return recordings[path]

    rows = []
    for clip in clips.itertuples():
        if not pools[clip.split]:
            raise AudioError(f"sounds.csv: no noise of the split {clip.split}, which clip {clip.uid} needs")
        clean = read_audio(clip.audio)
        noise = choose_noise(pools[clip.split], seed, clip.uid, len(clean), read_once)
        mix = mix_at_snr(clean, noise.audio, snr_db)
        name = f"{clip.uid}.flac"
        soundfile.write(folder / name, (mix.audio * _STEPS).astype(np.int16), SAMPLE_RATE, subtype="PCM_16")
        rows.append(
            _row(clip, name)
            | {
                "noise": noise.path.name,
                "offset": noise.offset,
                "gain": round(mix.gain, 8),
                "scale": round(mix.scale, 8),
                "snr_asked": snr_db,
                "snr_achieved": round(mix.achieved_snr, 4),
            }
        )
    return rows


def _row(clip, audio: str) -> dict:
    return {"uid": clip.uid, "split": clip.split, "frames": clip.frames, "audio": audio}


def _rms(samples: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
