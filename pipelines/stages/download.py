"""Stage `download`: downloads, the user's files or nothing, and accepted -> data/dataset, data/sounds and digests."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.cli import stage_main
from qdformer.audio.io.sound_table import write_sound_table
from qdformer.config.base import SettingsError
from qdformer.config.download import Download
from qdformer.config.settings import Settings
from qdformer.data.accepted import join_accepted
from qdformer.data.published import import_published
from qdformer.data.readers.toy import compose_toy
from qdformer.utils.digests import tree_sha256
from qdformer.utils.files import new_folder, write_text


def download(settings: Download, data: Path, cache: Path, accepted: Path | None = None) -> None:
    """Write `data/dataset` and `data/sounds`, either both complete or neither, and then their digests.

    The published data sets have no single sounds: their `data/sounds` is an empty table. The clips in `accepted`, which
    arrived later, join the training split.

    The later stages depend on digests in place of the folders, because DVC would look at each of their files again for
    every stage. The stage `check` passes the digests on. Downloads are kept below `cache`, because DVC empties the outs
    before a rerun.
    """
    with new_folder(data / "dataset") as dataset, new_folder(data / "sounds") as sounds:
        _fill(settings, dataset, sounds, cache)
        if accepted and (joined := join_accepted(dataset, accepted)):
            print(f"{joined} accepted clips joined the training split")
    digests = {folder: tree_sha256(data / folder) for folder in ("dataset", "sounds")}
    write_text(data / "digests.json", json.dumps(digests, indent=1) + "\n")


def _fill(settings: Download, dataset: Path, sounds: Path, cache: Path) -> None:
    """Write the data set and its single sounds to two folders."""
    if settings.dataset == "toy":
        compose_toy(dataset, sounds, settings)
    elif settings.dataset == "stamps":
        from qdformer.data.readers.stamps import compose_stamps

        compose_stamps(dataset, sounds, settings, cache / "stamps", progress=True)
    else:
        if not settings.source:
            raise SettingsError(
                f"download.source is empty; expected the folder, archives or URLs that hold {settings.dataset}, as in:"
                f" make data DATASET={settings.dataset} SOURCE=/path/of/it"
            )
        about = import_published(
            settings.dataset, settings.source, settings.sha256, settings.split, dataset, cache / settings.dataset
        )
        write_sound_table(sounds, [])
        assert about.clips is not None and about.left_out is not None, "known of every published data set"
        left_out = f", {sum(about.left_out.values())} left out" if settings.split != "published" else ""
        sizes = ", ".join(f"{name} {count}" for name, count in about.clips.items())
        print(f"{settings.dataset}, split {settings.split}: {sizes}{left_out}")


def main(settings: Settings) -> None:
    download(settings.download, Path("data"), Path(".cache"), Path("accepted"))


if __name__ == "__main__":
    stage_main(main)
