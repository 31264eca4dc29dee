"""Mix background noise into clips at a given signal-to-noise ratio (SNR).

Shapes: S samples.

Rules:
- Power is the mean square over the whole clip. A clip gets the same noise, from the same offset, at every SNR: both
  depend on the seed and the clip's id only, not on the order of the clips or on which others are mixed.
- If the sum would clip, the clip and the noise are scaled down together, which keeps the SNR.
- Files are 16-bit FLAC. If rounding to 16 bits changes the SNR by more than `SNR_TOLERANCE_DB` (a nearly silent clip,
  or noise far below the clip), the file is 24-bit FLAC. No dither is added.
- The SNR is measured on the samples of the written file; an error above `SNR_TOLERANCE_DB` is an `AudioError`.
- A signal with an RMS of `SILENCE_RMS` or less is silent. The SNR of a silent clip is minus infinity; its noise gets
  the level that it would have for a clip with an RMS of `SILENT_CLIP_REFERENCE_RMS`.
- If the noise is silent at an offset, another offset is drawn; noise that remains silent is an `AudioError`.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from tqdm import tqdm

from qdformer.audio.io.level import SILENCE_RMS, amplitude_to_db, db_to_amplitude, rms
from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.io.write import PCM16_MAX, quantize, write_audio
from qdformer.utils.digests import rendezvous_hash
from qdformer.utils.files import new_folder, write_text
from qdformer.utils.tables import read_table

SILENT_CLIP_REFERENCE_RMS = 0.05
SNR_TOLERANCE_DB = 0.01
_MAX_OFFSETS = 20  # offsets drawn in a noise that is silent in places
_CACHED_RECORDINGS = 64  # in memory; a segment of AudioSet takes 0.6 MB
_MAX_LISTED = 10  # clips named in one message
MANIFEST_COLUMNS = ("uid", "split", "frames", "audio", "noise", "offset", "gain", "scale", "snr_asked", "snr_achieved")


@dataclass(frozen=True)
class Mixture:
    """A clip with noise: scale * (clean + gain * noise), rounded to `bits`."""

    audio: np.ndarray
    """[S] float32, each a multiple of 2 ** (1 - bits)."""
    gain: float
    """Factor of the noise."""
    scale: float
    """Factor of the sum; 1 if the sum would not clip."""
    snr_db: float
    """In dB, after scaling and rounding; minus infinity for a silent clip."""
    bits: int
    """Bits per sample: 16, or 24 if 16 bits do not keep the SNR."""


@dataclass(frozen=True)
class NoiseSegment:
    """The part of a recording that is mixed into a clip."""

    path: Path
    offset: int
    """First sample in the 16 kHz recording, which is repeated if it is shorter than the clip."""
    audio: np.ndarray
    """[S] float32."""


def mix_at_snr(clean: np.ndarray, noise: np.ndarray, snr_db: float) -> Mixture:
    """Add `noise` [S] to `clean` [S] at `snr_db` over the whole clip.

    Raises:
        AudioError: the noise is silent, the lengths differ, or 24 bits do not keep the SNR.
    """
    if clean.shape != noise.shape or clean.ndim != 1:
        raise AudioError(f"clip {list(clean.shape)} and noise {list(noise.shape)} must be mono and of one length")
    clean, noise = clean.astype(np.float64), noise.astype(np.float64)
    if rms(noise) <= SILENCE_RMS:
        raise AudioError("the noise is silent")
    silent = rms(clean) <= SILENCE_RMS
    gain = (SILENT_CLIP_REFERENCE_RMS if silent else rms(clean)) / rms(noise) * db_to_amplitude(-snr_db)
    mixed = clean + gain * noise
    scale = min(1.0, PCM16_MAX / float(np.abs(mixed).max()))
    for bits in (16, 24):
        audio = quantize(mixed * scale, bits)
        achieved = measure_snr(clean, audio, scale)
        if silent or abs(achieved - snr_db) <= SNR_TOLERANCE_DB:
            return Mixture(audio, gain, scale, achieved, bits)
    level = amplitude_to_db(rms(clean))
    raise AudioError(
        f"an SNR of {snr_db:g} dB cannot be kept: a clip of {level:.0f} dB full scale gets {achieved:.3f} dB in 24 bits"
    )


def measure_snr(clean: np.ndarray, mixed: np.ndarray, scale: float) -> float:
    """The SNR in dB of `mixed` [S]: `scale * clean` [S] is the signal, the difference to `mixed` is the noise.

    It is minus infinity for a silent clip, and infinity if there is no noise.
    """
    if rms(clean) <= SILENCE_RMS:
        return -math.inf
    added = rms(mixed - scale * clean.astype(np.float64))
    return amplitude_to_db(scale * rms(clean) / added) if added else math.inf


def select_noise(
    noises: Sequence[Path], seed: int, uid: str, samples: int, read: Callable[[Path], np.ndarray] = read_audio
) -> NoiseSegment:
    """Select the noise of clip `uid`: a recording and an offset in it, which depend on `seed` and `uid` only.

    The recording is selected by `rendezvous_hash` of the file names, so adding or removing a recording changes no clip
    that does not use it.

    Args:
        noises: the recordings of the clip's split.
        seed: of the selection.
        uid: the clip.
        samples: length of the clip at 16 kHz.
        read: reads a recording.

    Raises:
        AudioError: `noises` is empty, or the selected recording is silent.
    """
    if not noises:
        raise AudioError(f"clip {uid}: no noise to select from")
    path = min(noises, key=lambda candidate: rendezvous_hash(seed, uid, candidate.name))
    random = np.random.default_rng(np.frombuffer(rendezvous_hash(seed, uid, path.name), np.uint32))
    recording = read(path)
    for _ in range(_MAX_OFFSETS):
        offsets = len(recording) - samples + 1 if len(recording) >= samples else len(recording)
        offset = int(random.integers(offsets))
        audio = np.take(recording, np.arange(offset, offset + samples), mode="wrap")
        if rms(audio) > SILENCE_RMS:
            return NoiseSegment(path, offset, audio)
    raise AudioError(f"{path}: the noise is silent")


def write_condition(
    folder: str | Path,
    clips: pandas.DataFrame,
    noises: pandas.DataFrame,
    snr_db: float | None,
    splits: Iterable[str],
    seed: int,
) -> pandas.DataFrame:
    """Write one condition, `{uid}.flac` for each clip and `manifest.csv`, and return the manifest.

    Without noise (`snr_db` is None) nothing is copied: the manifest lists all clips with the data set's own files. With
    noise it lists the clips of `splits`, each mixed with a noise of its own split. A clip that cannot be mixed is
    reported and the remaining clips are processed. The folder is written atomically.

    Args:
        folder: where to write; an existing folder is replaced.
        clips: `qdformer.data.manifest.read_manifest`: uid, split, frames, audio.
        noises: `qdformer.audio.noise.collect.read_noise_table`: path, split.

    Raises:
        AudioError: clips or noises are not usable (the message counts and names them), or a split has no noise.
    """
    folder = Path(folder)
    with new_folder(folder) as partial:
        if snr_db is None:
            rows = [_row(clip, os.path.relpath(clip.audio, folder)) for clip in clips.itertuples()]
        else:
            selected = clips[clips["split"].isin(list(splits))]
            rows = _write_noisy(partial, selected, noises, snr_db, seed)
        manifest = pandas.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
        write_text(partial / "manifest.csv", manifest.to_csv(index=False, lineterminator="\n"))
    return manifest


def read_condition(folder: str | Path) -> pandas.DataFrame:
    """Read the `manifest.csv` of a condition, with `audio` as a Path.

    Raises:
        AudioError: the manifest is missing, damaged or lacks a column.
    """
    numbers = [name for name in MANIFEST_COLUMNS if name not in ("uid", "split", "audio", "noise")]
    table = read_table(Path(folder) / "manifest.csv", MANIFEST_COLUMNS, AudioError, writer="mix", numbers=numbers)
    return table.assign(audio=[Path(folder) / value for value in table["audio"]])


def _write_noisy(
    folder: Path, clips: pandas.DataFrame, noises: pandas.DataFrame, snr_db: float, seed: int
) -> list[dict]:
    pools = {split: list(noises["path"][noises["split"] == split]) for split in clips["split"].unique()}
    read_noise = functools.lru_cache(_CACHED_RECORDINGS)(read_audio)
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
        more = [f"and {len(bad) - _MAX_LISTED} more"] if len(bad) > _MAX_LISTED else []
        listed = "\n  ".join(bad[:_MAX_LISTED] + more)
        raise AudioError(f"{len(bad)} of {len(clips)} clips cannot be mixed at {snr_db:g} dB:\n  {listed}")
    return rows


def _write_checked(path: Path, clean: np.ndarray, mix: Mixture, snr_db: float) -> float:
    """Write the mixture as FLAC and return the SNR measured on the written file."""
    import soundfile

    write_audio(path, mix.audio, mix.bits)
    written, _ = soundfile.read(path, dtype="float32")
    achieved = measure_snr(clean, written, mix.scale)
    if math.isfinite(mix.snr_db) and not abs(achieved - snr_db) <= SNR_TOLERANCE_DB:
        raise AudioError(f"{path.name}: written with an SNR of {achieved:.3f} dB, expected {snr_db:g} dB")
    return achieved


def _row(clip, audio: str) -> dict:
    return {"uid": clip.uid, "split": clip.split, "frames": clip.frames, "audio": audio}
