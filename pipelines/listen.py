"""Write a clip mixed with noise as the stage `mix` does: listen/CLIP-snr5.wav, and its spectrograms as .png."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

import numpy as np

from pipelines.cli import command_main, preset_parser
from pipelines.settings import preset_settings
from pipelines.workspace import open_workspace
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
    """Write the sound and the spectrograms of clip `uid`, mixed with its noise at `snr_db` (None: without noise).

    Noise and offset are those of the stage `mix`, which are the same at every SNR. Returns the two paths.

    Raises:
        DataError: there is no such clip; the message lists clips with similar names.
        AudioError: the clip cannot be read or mixed, or the stage `noise` has not run.
    """
    clips = read_manifest(workspace / "data" / "dataset").set_index("uid")
    if uid not in clips.index:
        near = difflib.get_close_matches(uid, clips.index, 5, cutoff=0.5)
        hint = (
            f"; similar names: {', '.join(near)}"
            if near
            else f"; expected one of {len(clips)}, such as {clips.index[0]}"
        )
        raise DataError(f"no clip {uid!r} in {workspace / 'data' / 'dataset' / 'metadata.csv'}{hint}")
    clip = clips.loc[uid]
    clean = read_audio(clip["audio"])
    if snr_db is None:
        name, title = f"{uid}-clean", f"{uid} · without noise"
        bits, audio = 16, quantize(clean, 16)
        panels = {"clip": clean}
    else:
        noises = read_noise_table(workspace / "data" / "noise")
        pool = list(noises["path"][noises["split"] == clip["split"]])
        if not pool:
            raise AudioError(f"{workspace / 'data' / 'noise'}: no noise of the split {clip['split']}; try SNR=clean")
        noise = select_noise(pool, settings.mix.seed, uid, len(clean))
        mix = mix_at_snr(clean, noise.audio, snr_db)
        name, bits, audio = f"{uid}-snr{snr_db:g}", mix.bits, mix.audio
        start = noise.offset / SAMPLE_RATE
        scaled = f", both × {mix.scale:.3f}" if mix.scale < 1 else ""
        title = f"{uid} · SNR {_decibels(mix.snr_db)} · noise {noise.path.name} from {start:.2f} s{scaled}"
        panels = {
            "clip": clean * np.float32(mix.scale),
            "noise": noise.audio * np.float32(mix.gain * mix.scale),
            "mix": mix.audio,
        }
    sound, picture = (workspace / "listen" / f"{name}.{suffix}" for suffix in ("wav", "png"))
    sound.parent.mkdir(exist_ok=True)
    write_audio(sound, audio, bits)
    plots.save(plots.spectrograms(panels, SAMPLE_RATE, title), picture)
    return sound, picture


def _decibels(snr_db: float) -> str:
    return f"{snr_db:.2f} dB".replace("-", "−") if math.isfinite(snr_db) else "−∞ dB (the clip is silent)"


def parse_snr(text: str) -> float | None:
    """The SNR in dB, or None for 'clean'; raises `InputError` for anything else."""
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
    parser = preset_parser(__doc__)
    parser.add_argument("--clip", required=True, help="the uid of the clip, such as test-00004")
    parser.add_argument("--snr", required=True, help="signal-to-noise ratio in dB, or clean")
    arguments = parser.parse_args()
    if not arguments.clip:
        raise InputError("CLIP is missing; expected the uid of a clip, as in: make listen CLIP=test-00004 SNR=5")
    snr_db = parse_snr(arguments.snr)
    settings = preset_settings(arguments.data)
    for path in listen(settings, open_workspace(arguments.data), arguments.clip, snr_db):
        print(path)


if __name__ == "__main__":
    command_main(main)
