"""Stage `noise`: data/sounds or AudioSet -> data/noise and its digest."""

from __future__ import annotations

from pathlib import Path

from pipelines.cli import stage_main
from qdformer.audio.io.sound_table import read_sound_table
from qdformer.audio.noise.audioset import read_class_mapping
from qdformer.audio.noise.collect import collect_audioset_noises, copy_dataset_noises, write_empty_noise_table
from qdformer.config.noise import Noise
from qdformer.config.settings import Settings
from qdformer.data.manifest import read_sounding_names
from qdformer.utils.digests import tree_sha256
from qdformer.utils.files import new_folder, write_text


def noise(settings: Noise, data: Path, cache: Path) -> None:
    """Write `data/noise`, complete or not at all, and then its digest.

    Downloads are kept in `cache`, because DVC empties the outs before a rerun.
    """
    with new_folder(data / "noise") as folder:
        if settings.source == "dataset":
            table = copy_dataset_noises(folder, data / "sounds", read_sound_table(data / "sounds"))
        elif settings.source == "audioset":
            table = collect_audioset_noises(
                folder, settings, read_sounding_names(data / "dataset") or read_class_mapping(), cache
            )
        else:
            table = write_empty_noise_table(folder)
    write_text(data / "noise.sha256", tree_sha256(data / "noise") + "\n")
    print(f"noise: {len(table)} recordings from {settings.source}")


def main(settings: Settings) -> None:
    noise(settings.noise, Path("data"), Path(".cache/audioset"))


if __name__ == "__main__":
    stage_main(main)
