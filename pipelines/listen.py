"""Hear and see a clip as the stage mix lays noise under it: listen/CLIP-snr5.wav and its spectrograms, .png."""

from __future__ import annotations

import argparse
import difflib
import math
from pathlib import Path

import numpy as np

from pipelines.cli import command_main
from pipelines.workspace import open_workspace, preset_settings
from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.io.write import quantize, write_audio
from qdformer.audio.noise.collect import read_noise_table
from qdformer.audio.noise.mixing import mix_at_snr, select_noise
from qdformer.config.settings import Settings
from qdformer.data.layout import DataError
from qdformer.data.manifest import read_manifest
from qdformer.reporting import plots
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.errors import InputError


def listen(settings: Settings, workspace: Path, uid: str, snr_db: float | None) -> tuple[Path, Path]:
    """Write a wav and a picture of clip `uid` under its own noise at `snr_db` (None: without) and return their paths.

    Noise and offset are those that the stage `mix` takes at every SNR.

    Raises:
        DataError: there is no such clip; the message names those with a like name.
        AudioError: the clip cannot be read or mixed, or the stage noise has not run.
    """
    clips = read_manifest(workspace / "data" / "dataset").set_index("uid")
    if uid not in clips.index:
        near = difflib.get_close_matches(uid, clips.index, 5, cutoff=0.5)
        hint = f"; near it: {', '.join(near)}" if near else f"; expected one of {len(clips)}, such as {clips.index[0]}"
        raise DataError(f"no clip {uid!r} in {workspace / 'data' / 'dataset' / 'metadata.csv'}{hint}")
    clip = clips.loc[uid]
    clean = read_audio(clip["audio"])
    if snr_db is None:
        target, title, bits, audio = (
            workspace / "listen" / f"{uid}-clean",
            f"{uid} · without noise",
            16,
            quantize(clean, 16),
        )
        panels = {"clip": clean}
    else:
        noises = read_noise_table(workspace / "data" / "noise")
        pool = list(noises["path"][noises["split"] == clip["split"]])
        if not pool:
            raise AudioError(f"{workspace / 'data' / 'noise'}: no noise of the split {clip['split']}; try SNR=clean")
        noise = select_noise(pool, settings.mix.seed, uid, len(clean))
        mix = mix_at_snr(clean, noise.audio, snr_db)
        target, bits, audio = workspace / "listen" / f"{uid}-snr{snr_db:g}", mix.bits, mix.audio
        start, scaled = noise.offset / SAMPLE_RATE, f", both × {mix.scale:.3f}" if mix.scale < 1 else ""
        title = f"{uid} · SNR {_decibels(mix.snr_db)} · noise {noise.path.name} from {start:.2f} s{scaled}"
        panels = {
            "clip": clean * np.float32(mix.scale),
            "noise": noise.audio * np.float32(mix.gain * mix.scale),
            "mix": mix.audio,
        }
    sound, picture = target.with_name(f"{target.name}.wav"), target.with_name(f"{target.name}.png")
    sound.parent.mkdir(exist_ok=True)
    write_audio(sound, audio, bits)
    plots.save(plots.spectrograms(panels, SAMPLE_RATE, title), picture)
    return sound, picture


def _decibels(snr_db: float) -> str:
    return f"{snr_db:.2f} dB".replace("-", "−") if math.isfinite(snr_db) else "−∞ dB (the clip is silent)"


def parse_snr(text: str) -> float | None:
    """A number of decibels, or 'clean' for none; `InputError` for anything else."""
    if text == "clean":
        return None
    try:
        snr_db = float(text)
    except ValueError:
        snr_db = math.nan
    if not -60 <= snr_db <= 60:
        raise InputError(f"SNR={text}: expected a number of decibels from -60 to 60, or clean")
    return snr_db


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="a preset in pipelines/presets/ (default: params.yaml as it is)")
    parser.add_argument("--clip", required=True, help="its uid, such as test-00004")
    parser.add_argument("--snr", required=True, help="in dB, or clean")
    arguments = parser.parse_args()
    if not arguments.clip:
        raise InputError("CLIP is missing; expected the uid of a clip, as in: make listen CLIP=test-00004 SNR=5")
    snr_db = parse_snr(arguments.snr)
    settings = preset_settings(arguments.data)
    for path in listen(settings, open_workspace(arguments.data), arguments.clip, snr_db):
        print(path)


if __name__ == "__main__":
    command_main(main)
