"""Imports a published data set from the folders, archives or URLs that a user names into one folder in its layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from qdformer.data.layout import DataError
from qdformer.data.readers.avsbench import (
    LAYOUTS,
    DatasetRecord,
    Kind,
    Layout,
    SplitRule,
    read_splits,
    write_dataset_record,
    youtube_disjoint,
)
from qdformer.utils.archives import unpack
from qdformer.utils.constants import SPLITS
from qdformer.utils.download import check_sha256, download, is_url
from qdformer.utils.tables import read_table

_MAX_DEPTH = 6  # how many folders deep a source is searched for the parts of a set
_MAX_LISTED = 5


class _Part(NamedTuple):
    """A source, or a part of the set in one. `unpacked`: we unpacked it, so its files may be linked, not copied."""

    path: Path
    unpacked: bool


def import_published(
    kind: Kind,
    sources: Iterable[str],
    digests: Iterable[str],
    split: SplitRule,
    dataset: Path,
    cache: Path,
    progress: bool = True,
) -> DatasetRecord:
    """Write the folder `dataset`: the files of the set under their published names, unchanged, and its record.

    The rows of the table are not validated here: `qdformer.data.checks` reports every problem in them at once.

    Args:
        kind: which data set.
        sources: folders, archives (tar, zip) or their URLs, or single tables, which contain the parts of the set at
            any depth.
        digests: the expected SHA-256 of each source, in the order of `sources`, or none.
        split: see `qdformer.data.readers.avsbench.youtube_disjoint`; the record has the sizes of the splits.
        dataset: a new or empty folder. Files of the user are copied into it; unpacked ones are linked from the cache.
        cache: folder for downloaded and unpacked files.
        progress: show progress bars if the error output is a terminal.

    Raises:
        DataError: a source or a part of the set is missing or occurs twice.
        DownloadError, ArchiveError: a source cannot be downloaded, has another digest, or cannot be unpacked.
    """
    sources, digests = list(sources), list(digests)
    parts: list[_Part] = []
    records: list[dict[str, str | None]] = []
    for source, sha256 in zip(sources, digests or [""] * len(sources), strict=True):
        path = download(source, cache, sha256, progress) if is_url(source) else Path(source).expanduser()
        name = source.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
        if path.is_dir():
            if sha256:
                raise DataError(f"{path}: a folder has no SHA-256; expected an archive, or an empty download.sha256")
            parts.append(_Part(path, unpacked=False))
            records.append({"name": name, "sha256": None})
            continue
        if not path.is_file():
            raise DataError(f"{path}: no such file or folder (download.source)")
        digest = check_sha256(path, sha256)
        records.append({"name": name, "sha256": digest})
        if path.suffix in (".csv", ".json"):
            parts.append(_Part(path, unpacked=False))
            continue
        folder = cache / "unpacked" / digest[:16]
        if not folder.is_dir():
            unpack(path, folder, progress=progress)
        parts.append(_Part(folder, unpacked=True))
    _assemble(LAYOUTS[kind], kind, parts, dataset, progress)
    record = _make_record(kind, split, tuple(records), dataset)
    write_dataset_record(dataset, record)
    return record


def _assemble(layout: Layout, kind: Kind, sources: list[_Part], dataset: Path, progress: bool) -> None:
    """Find the parts of the set below `sources` and copy or link their files into `dataset`."""
    folders = {*layout.folders, *layout.audio}
    parts: dict[str, list[_Part]] = {}
    for source in sources:
        for name, path in _find(source.path, layout, folders):
            parts.setdefault(name, []).append(_Part(path, source.unpacked))
    for name in (layout.table, *layout.others):
        found = parts.get(name, [])
        if not found:
            raise DataError(f"{kind}: no {name} in {_list_paths(sources)}")
        if len({part.path.read_bytes() for part in found}) > 1:
            raise DataError(f"{kind}: several tables could be {name}: {_list_paths(found)}; name only the right one")
        parts[name] = found[:1]
    table = read_table(parts[layout.table][0].path, layout.columns, DataError)
    needed = sorted(set(table["label"]) & set(layout.folders)) if kind == "avss" else layout.folders
    if missing := [name for name in needed if name not in parts]:
        raise DataError(f"{kind}: no folder {', '.join(missing)} in {_list_paths(sources)}")
    if layout.audio and not any(name in parts for name in layout.audio):
        raise DataError(f"{kind}: no folder {' or '.join(layout.audio)} in {_list_paths(sources)}")
    files = [(*file, part.unpacked) for name, found in parts.items() for part in found for file in _files(name, part)]
    dataset.mkdir(parents=True, exist_ok=True)
    for path, relative, unpacked in tqdm(files, desc=f"copy {kind}", unit="file", disable=None if progress else True):
        target = dataset / relative
        if target.exists():
            raise DataError(f"{kind}: {relative} occurs twice in the sources, the second time as {path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_or_link(path, target, unpacked)


def _find(root: Path, layout: Layout, folders: set[str]) -> Iterator[tuple[str, Path]]:
    """The parts of the set below `root` with their published names. Folders that are parts are not searched."""
    if root.is_file():
        yield from _match_table(root, layout)
        return
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        for name in sorted(names):
            yield from _match_table(here / name, layout)
        for name in sorted(folders.intersection(subfolders)):
            yield name, here / name
        too_deep = len(here.relative_to(root).parts) >= _MAX_DEPTH
        subfolders[:] = [] if too_deep else sorted(set(subfolders) - folders - {*layout.other_sets, "__MACOSX"})


def _match_table(path: Path, layout: Layout) -> Iterator[tuple[str, Path]]:
    """Recognize a table by its columns, because its name varies between releases, and other files by their name."""
    if path.name in layout.others:
        yield path.name, path
    elif path.suffix == ".csv" and not path.name.startswith("."):
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            if file.readline().strip().split(",") == list(layout.columns):
                yield layout.table, path


def _files(name: str, part: _Part) -> Iterator[tuple[Path, Path]]:
    """Each file of a part with its path in the set. Symbolic links in a user's folder are followed."""
    if part.path.is_file():
        yield part.path, Path(name)
        return
    for folder, subfolders, names in os.walk(part.path, followlinks=not part.unpacked):
        subfolders.sort()
        for file in sorted(names):
            if not file.startswith("."):
                yield Path(folder, file), Path(name, Path(folder, file).relative_to(part.path))


def _copy_or_link(path: Path, target: Path, unpacked: bool) -> None:
    """Link a file that we unpacked; copy a file of the user, because DVC makes the files that it caches read-only."""
    if unpacked:
        try:
            os.link(path, target)
            return
        except OSError:  # another file system
            pass
    shutil.copyfile(path, target)


def _make_record(
    kind: Kind, split: SplitRule, sources: tuple[dict[str, str | None], ...], dataset: Path
) -> DatasetRecord:
    """The record of the set with the sizes of its splits. It is computed from the rows as they stand."""
    published = read_splits(dataset, kind)
    used = youtube_disjoint(published) if split == "youtube_disjoint" else published
    before, after = published["split"].value_counts(), used["split"].value_counts()
    sizes = {name: int(after.get(name, 0)) for name in SPLITS}
    left_out = {name: int(before.get(name, 0)) - sizes[name] for name in SPLITS}
    return DatasetRecord(kind, split, sources, sizes, left_out)


def _list_paths(parts: list[_Part]) -> str:
    paths = [str(part.path) for part in parts]
    more = f" and {len(paths) - _MAX_LISTED} more" if len(paths) > _MAX_LISTED else ""
    return ", ".join(paths[:_MAX_LISTED]) + more
