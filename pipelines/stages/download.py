"""Stage `download`: the network, what the user has, or nothing -> data/dataset, data/sounds, data/digests.json."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from pipelines.cli import stage_main
from qdformer.audio.io.sound_table import write_sound_table
from qdformer.config.base import SettingsError
from qdformer.config.download import Download
from qdformer.config.settings import Settings
from qdformer.data.published import import_published
from qdformer.data.readers.toy import compose_toy
from qdformer.utils.digests import tree_sha256


def download(settings: Download, data: Path, cache: Path) -> None:
    """Write `data/dataset` and `data/sounds`, both whole, or neither, and then their digests.

    The published sets have no single sounds: their `data/sounds` is an empty table.

    The later stages depend on digests in place of the folders: DVC would look at every one of their files again for
    each stage. The stage `check` passes them on. What was fetched is kept below `cache`, for DVC empties the outs
    before a rerun.
    """
    partial = data / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    dataset, sounds = partial / "dataset", partial / "sounds"
    if settings.dataset == "toy":
        compose_toy(dataset, sounds, settings)
    elif settings.dataset == "stamps":
        from qdformer.data.readers.stamps import compose_stamps

        compose_stamps(dataset, sounds, settings, cache / "stamps", progress=True)
    else:
        if not settings.source:
            raise SettingsError(
                f"download.source is empty; name the folder, the archives or URLs that hold {settings.dataset}, as in:"
                f" make data DATASET={settings.dataset} SOURCE=/path/of/it"
            )
        about = import_published(
            settings.dataset, settings.source, settings.sha256, settings.split, dataset, cache / settings.dataset
        )
        write_sound_table(sounds, [])
        left_out = f", {sum(about.left_out.values())} left out" if settings.split != "published" else ""
        sizes = ", ".join(f"{name} {count}" for name, count in about.clips.items())
        print(f"{settings.dataset}, split {settings.split}: {sizes}{left_out}")
    for whole in (dataset, sounds):
        shutil.rmtree(data / whole.name, ignore_errors=True)
        os.replace(whole, data / whole.name)
    partial.rmdir()
    digests = {folder: tree_sha256(data / folder) for folder in ("dataset", "sounds")}
    (data / "digests.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="ascii")


def main(settings: Settings) -> None:
    download(settings.download, Path("data"), Path(".cache"))


if __name__ == "__main__":
    stage_main(main)
