"""Clips that arrive for a preset: its folders `incoming`, `accepted` and `quarantine`, and batches to try them with.

`python -m pipelines.arrivals [--data PRESET] --clips N` composes a batch of new clips (data sets toy and stamps).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cli import command_main, preset_parser
from pipelines.environment import shown_path
from pipelines.settings import preset_settings
from pipelines.workspace import ACCEPTED, open_workspace
from qdformer.config.download import PUBLISHED, Clips, Download
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from qdformer.config.settings import Settings
    from qdformer.data.incoming import Intake

INCOMING, QUARANTINE = Path("incoming"), Path("quarantine")


def arrived_batches(workspace: Path) -> list[Path]:
    """The complete batches that wait in the workspace."""
    return sorted(table.parent for table in (workspace / INCOMING).glob("*/metadata.csv"))


def has_arrivals(workspace: Path) -> bool:
    """Whether a complete batch waits in the workspace."""
    return bool(arrived_batches(workspace))


def take_in_arrivals(settings: Settings, workspace: Path) -> Intake:
    """Check the batches in `incoming` and move their clips to `accepted` or `quarantine`.

    Raises `InputError` if the data set has another layout, or if there is none yet whose clips they could repeat.
    """
    from qdformer.data.incoming import take_in  # this import takes seconds

    if settings.download.dataset in ("s4", "ms3"):
        raise InputError(f"{workspace / INCOMING}: {settings.download.dataset} has another layout than the clips here")
    dataset = workspace / "data" / "dataset"
    if not (dataset / "metadata.csv").is_file():
        raise InputError(f"{workspace / INCOMING}: no data set yet to check the clips against; run make repro first")
    return take_in(
        workspace / INCOMING,
        workspace / ACCEPTED,
        workspace / QUARANTINE,
        dataset,
        settings.check.min_component_area,
        settings.check.tolerate,
    )


def compose_batch(download: Download, incoming: Path, cache: Path, count: int) -> Path:
    """Compose `count` clips as the data set's own training clips, but from another seed; return the batch's folder."""
    from pipelines.stages import download as stage  # these imports take seconds
    from qdformer.data.accepted import read_accepted, write_accepted
    from qdformer.data.layout import clip_folder

    if download.dataset in PUBLISHED or download.seed is None:
        raise InputError(f"download.dataset: {download.dataset} is not composed; expected toy or stamps for new clips")
    now = int(time.time())
    name = f"batch-{now}"
    clips = Clips(train=count, val=1, test=1)
    other = download.model_copy(update={"seed": download.seed + now, "clips": clips})
    incoming.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=incoming, prefix=".") as folder:
        stage.download(other, Path(folder), cache)
        dataset, batch = Path(folder, "dataset"), Path(folder, name)
        rows = [row for row in read_accepted(dataset) if row["split"] == "train"]
        for index, row in enumerate(rows):
            uid = f"{name}-{index:04}"
            batch.joinpath(row["label"]).mkdir(parents=True, exist_ok=True)
            shutil.move(clip_folder(dataset, row["label"], row["uid"]), clip_folder(batch, row["label"], uid))
            row |= {"vid": uid, "uid": uid}
        write_accepted(batch, rows)
        shutil.move(batch, incoming / name)
    return incoming / name


def main() -> None:
    parser = preset_parser(__doc__)
    parser.add_argument("--clips", type=int, default=64, help="number of clips (%(default)s)")
    arguments = parser.parse_args()
    if arguments.clips < 1:
        raise InputError(f"N={arguments.clips}: expected at least 1 clip")
    settings, workspace = preset_settings(arguments.data), open_workspace(arguments.data)
    batch = compose_batch(settings.download, workspace / INCOMING, workspace / ".cache", arguments.clips)
    print(f"{arguments.clips} new clips in {shown_path(batch)}; make retrain takes them in")


if __name__ == "__main__":
    command_main(main)
