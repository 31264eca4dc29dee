"""Stage `download`: the network or nothing -> data/dataset, data/sounds and their digests in data/digests.json."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from pipelines.cli import stage_main
from qdformer.data.toy import compose_toy
from qdformer.digests import tree_sha256
from qdformer.settings import Download, Settings


def download(settings: Download, data: Path, cache: Path) -> None:
    """Write `data/dataset` and `data/sounds`, both whole, or neither, and then their digests.

    The later stages depend on digests in place of the folders: DVC would look at every one of their files again for
    each stage. The stage `check` passes them on. What was fetched is kept in `cache`, for DVC empties the outs before
    a rerun.
    """
    partial = data / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    dataset, sounds = partial / "dataset", partial / "sounds"
    if settings.dataset == "toy":
        compose_toy(dataset, sounds, settings)
    else:
        from qdformer.data.stamps import compose_stamps

        compose_stamps(dataset, sounds, settings, cache, progress=True)
    for whole in (dataset, sounds):
        shutil.rmtree(data / whole.name, ignore_errors=True)
        os.replace(whole, data / whole.name)
    partial.rmdir()
    digests = {folder: tree_sha256(data / folder) for folder in ("dataset", "sounds")}
    (data / "digests.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="ascii")


def main(settings: Settings) -> None:
    download(settings.download, Path("data"), Path(".cache/stamps"))


if __name__ == "__main__":
    stage_main(main)
