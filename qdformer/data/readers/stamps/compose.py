"""Composes clips from the cut-outs and sounds of the catalogue, so that the sounding pixels are known exactly.

Each clip is first planned (`plan`) and then rendered (`render`) with its own random generator, seeded by (`seed`,
split, index): equal settings give equal bytes, whatever the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from qdformer.audio.io.sound_table import sound_row, write_single_sound, write_sound_table
from qdformer.data.layout import metadata_row, write_clip, write_metadata
from qdformer.data.readers.composition import composition_of
from qdformer.data.readers.stamps.assets import Assets, load_assets
from qdformer.data.readers.stamps.catalogue import read_catalogue
from qdformer.data.readers.stamps.fetch import fetch
from qdformer.data.readers.stamps.plan import clip_uid, plan_scene
from qdformer.data.readers.stamps.render import render_scene
from qdformer.utils.constants import SPLITS

if TYPE_CHECKING:
    from qdformer.config.download import Download


def compose_stamps(
    root_dataset: str | Path, root_sounds: str | Path, download: Download, cache: str | Path, progress: bool = True
) -> None:
    """Fetch the files of the catalogue and compose the data set and the folder of single sounds.

    Both tables are written last, so an interrupted call leaves nothing that could be mistaken for a complete data set.
    Raises `FetchError` if a file cannot be fetched.
    """
    items = read_catalogue()
    paths = fetch((item.source for item in items), Path(cache), progress)
    assets = load_assets(items, paths)
    write_sounds(Path(root_sounds), assets)
    write_scenes(Path(root_dataset), assets, download, progress)


def write_sounds(root: Path, assets: Assets) -> None:
    """Write every recording and noise of the catalogue, and the table that assigns them to splits."""
    rows = []
    for number, (item, audio) in enumerate(assets.sounds.items()):
        role = "source" if item.role == "sound" else "noise"
        path = f"{role}/{item.split}/{number:03d}{'-' if item.name else ''}{item.name}.flac"
        write_single_sound(root, path, audio)
        for split in SPLITS if item.split == "all" else (item.split,):
            rows.append(sound_row(path, role=role, split=split, label=item.name))
    write_sound_table(root, rows)


def write_scenes(root: Path, assets: Assets, download: Download, progress: bool = True) -> None:
    """Compose the clips of all splits on all processors, then write the metadata."""
    jobs = [(split, index) for split in SPLITS for index in range(getattr(composition_of(download).clips, split))]
    rows = {}
    # Forked processes share the pictures and sounds in memory.
    with multiprocessing.get_context("fork").Pool(
        os.cpu_count(), initializer=_start_worker, initargs=(root, assets, download)
    ) as pool:
        clips = pool.imap_unordered(_compose_job, jobs, chunksize=4)
        for row in tqdm(
            clips, total=len(jobs), desc="compose", unit="clip", disable=None if progress else True, leave=False
        ):
            rows[row["uid"]] = row
    order = [clip_uid(split, index) for split, index in jobs]
    write_metadata(root, [rows[uid] for uid in order], assets.classes)


_worker: tuple[Path, Assets, Download]


def _start_worker(root: Path, assets: Assets, download: Download) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent also receives Ctrl-C and stops the workers
    _worker = (root, assets, download)


def _compose_job(job: tuple[str, int]) -> dict[str, str | int]:
    root, assets, download = _worker
    scene, generator = plan_scene(assets, download, *job)
    frames_TSS3, labels_TSS, audio, tracks = render_scene(scene, assets, download, generator)
    kept_tracks = tracks if scene.split == "test" else []  # only evaluation needs them
    write_clip(root, scene.subset, scene.uid, frames_TSS3, labels_TSS, audio, tracks=kept_tracks)
    labeled = [assets.classes[label - 1] for label in np.unique(labels_TSS) if label]
    visible = {actor.label for actor in scene.actors}
    return metadata_row(
        scene.uid,
        subset=scene.subset,
        split=scene.split,
        classes=[info.name for info in labeled],
        frames=len(frames_TSS3),
        off_screen=any(event.label not in visible for event in scene.sound_events),
        unseen=all(info.unseen for info in labeled),
        visible=[assets.classes[label - 1].name for label in visible if label],
    )
