"""Background noise under clips at a chosen signal-to-noise ratio (SNR).

Shapes: S samples.

Rules:
- Power is the mean square over the whole clip. The same clip gets the same noise, from the same
  place, at every SNR: they are drawn from the seed and the clip's id alone, so that neither the
  order of the clips nor which others are mixed matters.
- Where the sum would clip, clip and noise are scaled down together, which keeps the SNR.
- The file is FLAC of 16 bits. Where rounding to them would move the SNR by more than `SNR_TOLERANCE_DB`
  (a clip that is nearly silent, or noise far beneath it) it is FLAC of 24 bits. No dither is added.
- The SNR is measured on the samples of the written file; off by more than `SNR_TOLERANCE_DB` is an `AudioError`.
- What has an RMS of `SILENCE_RMS` or less is silent. A silent clip has no power to measure against: noise
  is laid as if the clip's RMS were `SILENT_CLIP_REFERENCE_RMS`, and its SNR is minus infinity.
- A piece of noise that is silent is drawn anew; a noise that stays silent is an `AudioError`.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from tqdm import tqdm

from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.io.write import quantize, write_audio
from qdformer.utils.tables import read_table

SILENCE_RMS = 1e-4  # -80 dB of full scale, three 16-bit steps: nothing but the dither of a recording
SILENT_CLIP_REFERENCE_RMS = 0.05
SNR_TOLERANCE_DB = 0.01
_PEAK = 1.0 - 1.0 / 32768  # the largest 16-bit sample
_DRAWS = 20
_RECORDINGS_KEPT = 64  # in memory; an AudioSet segment takes 0.6 MB
_LISTED = 10  # clips named in one message
MANIFEST_COLUMNS = ("uid", "split", "frames", "audio", "noise", "offset", "gain", "scale", "snr_asked", "snr_achieved")


@dataclass(frozen=True)
class Mixture:
    """A clip with noise: round(scale * (clean + gain * noise)) in steps of `bits`."""

    audio: np.ndarray
    """[S] float32, each a multiple of 2 ** (1 - bits)."""
    gain: float
    """Factor on the noise."""
    scale: float
    """Factor on the sum; 1 where nothing would clip."""
    snr_db: float
    """In dB, after scaling and rounding; minus infinity for a silent clip."""
    bits: int
    """Of a sample: 16, or 24 where 16 do not hold the SNR."""


@dataclass(frozen=True)
class NoiseSegment:
    """Where a clip's noise comes from."""

    path: Path
    offset: int
    """First sample in the 16 kHz recording, which is repeated where it is shorter than the clip."""
    audio: np.ndarray
    """[S] float32."""


def mix_at_snr(clean: np.ndarray, noise: np.ndarray, snr_db: float) -> Mixture:
    """Add `noise` [S] to `clean` [S] at `snr_db` over the whole clip.

    Raises:
        AudioError: the noise is silent, the lengths differ, or no 24-bit file holds the SNR.
    """
    if clean.shape != noise.shape or clean.ndim != 1:
        raise AudioError(f"clip {list(clean.shape)} and noise {list(noise.shape)} must be mono and of one length")
    clean, noise = clean.astype(np.float64), noise.astype(np.float64)
    if rms(noise) <= SILENCE_RMS:
        raise AudioError("the noise is silent")
    silent = rms(clean) <= SILENCE_RMS
    gain = (SILENT_CLIP_REFERENCE_RMS if silent else rms(clean)) / rms(noise) * 10.0 ** (-snr_db / 20.0)
    mixed = clean + gain * noise
    scale = min(1.0, _PEAK / float(np.abs(mixed).max()))
    for bits in (16, 24):
        audio = quantize(mixed * scale, bits)
        achieved = measure_snr(clean, audio, scale)
        if silent or abs(achieved - snr_db) <= SNR_TOLERANCE_DB:
            return Mixture(audio, gain, scale, achieved, bits)
    level = 20.0 * math.log10(rms(clean))
    raise AudioError(
        f"an SNR of {snr_db:g} dB cannot be held: a clip of {level:.0f} dB full scale gets {achieved:.3f} dB in 24 bits"
    )


def measure_snr(clean: np.ndarray, mixed: np.ndarray, scale: float) -> float:
    """The SNR in dB of `mixed` [S], over the whole clip, where `scale * clean` [S] is the signal and the rest is noise.

    Minus infinity for a silent clip, infinity where nothing was added.
    """
    if rms(clean) <= SILENCE_RMS:
        return -math.inf
    added = rms(mixed - scale * clean.astype(np.float64))
    return 20.0 * math.log10(scale * rms(clean) / added) if added else math.inf


def rms(samples: np.ndarray) -> float:
    """Root mean square; 0 of no samples."""
    return math.sqrt(float(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def select_noise(
    noises: Sequence[Path], seed: int, uid: str, samples: int, read: Callable[[Path], np.ndarray] = read_audio
) -> NoiseSegment:
    """The noise of clip `uid`: a recording and a place in it that depend on `seed` and `uid` alone.

    Every recording's name has a rank of its own for the clip, and the first is taken: one that comes or goes changes
    no clip but those that it is taken for (rendezvous hashing, Thaler and Ravishankar, 1998).

    Raises:
        AudioError: there is no noise to choose from, or the one chosen is silent wherever tried.
    """
    if not noises:
        raise AudioError(f"clip {uid}: no noise to choose from")

    def rank(path: Path) -> bytes:
        return hashlib.sha256(f"{seed}/{uid}/{path.name}".encode()).digest()

    path = min(noises, key=rank)
    random = np.random.default_rng(np.frombuffer(rank(path), np.uint32))
    recording = read(path)
    for _ in range(_DRAWS):
        places = len(recording) - samples + 1 if len(recording) >= samples else len(recording)
        offset = int(random.integers(places))
        piece = np.take(recording, np.arange(offset, offset + samples), mode="wrap")
        if rms(piece) > SILENCE_RMS:
            return NoiseSegment(path, offset, piece)
    raise AudioError(f"{path}: the noise is silent")


def write_condition(
    folder: str | Path,
    clips: pandas.DataFrame,
    noises: pandas.DataFrame,
    snr_db: float | None,
    splits: Iterable[str],
    seed: int,
) -> pandas.DataFrame:
    """Write one condition: `{uid}.flac` for each clip and `manifest.csv`, which is returned too.

    Without noise (`snr_db` None) nothing is copied: the manifest covers all clips and points at the
    data set's own files. With noise it covers the clips of `splits`, each under a noise of its own split.
    A clip that cannot be mixed is reported, the others are tried all the same; `folder` appears only
    when it is complete.

    Args:
        folder: where to write; replaced if it is there.
        clips: `qdformer.data.manifest.read_manifest`: uid, split, frames, audio.
        noises: `qdformer.audio.noise.collect.read_noise_table`: path, split.

    Raises:
        AudioError: clips or noises are not usable (the message counts and names them), or a split has no noise.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if snr_db is None:
        rows = [_row(clip, os.path.relpath(clip.audio, folder)) for clip in clips.itertuples()]
    else:
        chosen = clips[clips["split"].isin(list(splits))]
        rows = _write_noisy(partial, chosen, noises, snr_db, seed)
    manifest = pandas.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
    manifest.to_csv(partial / "manifest.csv", index=False, lineterminator="\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return manifest


def read_condition(folder: str | Path) -> pandas.DataFrame:
    """Read a condition's `manifest.csv`: the columns written, `audio` as a Path.

    Raises:
        AudioError: the manifest is missing, broken or lacks a column.
    """
    numbers = [name for name in MANIFEST_COLUMNS if name not in ("uid", "split", "audio", "noise")]
    table = read_table(Path(folder) / "manifest.csv", MANIFEST_COLUMNS, AudioError, writer="mix", numbers=numbers)
    return table.assign(audio=[Path(folder) / value for value in table["audio"]])


def _write_noisy(
    folder: Path, clips: pandas.DataFrame, noises: pandas.DataFrame, snr_db: float, seed: int
) -> list[dict]:
    pools = {split: list(noises["path"][noises["split"] == split]) for split in clips["split"].unique()}
    read_noise = functools.lru_cache(_RECORDINGS_KEPT)(read_audio)
    rows, bad = [], []
    for clip in tqdm(list(clips.itertuples()), desc=f"{snr_db:g} dB", unit="clip", disable=None):
        if not pools[clip.split]:
            raise AudioError(f"noise.csv: no noise of the split {clip.split}, which clip {clip.uid} needs")
        name = f"{clip.uid}.flac"
        try:
            clean = read_audio(clip.audio)
            noise = select_noise(pools[clip.split], seed, clip.uid, len(clean), read_noise)
            mix = mix_at_snr(clean, noise.audio, snr_db)
            achieved = _write_checked(folder / name, clean, mix, snr_db)
        except AudioError as error:
            bad.append(f"clip {clip.uid}: {error}")
            tqdm.write(bad[-1], file=sys.stderr)
            continue
        rows.append(
            _row(clip, name)
            | {
                "noise": noise.path.name,
                "offset": noise.offset,
                "gain": round(mix.gain, 8),
                "scale": round(mix.scale, 8),
                "snr_asked": snr_db,
                "snr_achieved": round(achieved, 4),
            }
        )
    if bad:
        more = [f"and {len(bad) - _LISTED} more"] if len(bad) > _LISTED else []
        listed = "\n  ".join(bad[:_LISTED] + more)
        raise AudioError(f"{len(bad)} of {len(clips)} clips cannot be mixed at {snr_db:g} dB:\n  {listed}")
    return rows


def _write_checked(path: Path, clean: np.ndarray, mix: Mixture, snr_db: float) -> float:
    """Write the mix as FLAC and return the SNR of what the file holds."""
    import soundfile

    write_audio(path, mix.audio, mix.bits)
    written, _ = soundfile.read(path, dtype="float32")
    achieved = measure_snr(clean, written, mix.scale)
    if math.isfinite(mix.snr_db) and not abs(achieved - snr_db) <= SNR_TOLERANCE_DB:
        raise AudioError(f"{path.name}: written with an SNR of {achieved:.3f} dB, asked {snr_db:g} dB")
    return achieved


def _row(clip, audio: str) -> dict:
    return {"uid": clip.uid, "split": clip.split, "frames": clip.frames, "audio": audio}
