"""A published set, from the folders, archives or URLs that a user names to one folder in its published layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from qdformer.data.layout import DataError
from qdformer.data.manifest import read_classes, read_manifest
from qdformer.data.readers.avsbench import LAYOUTS, DatasetRecord, Kind, Layout, SplitRule, write_dataset_record
from qdformer.utils.archives import unpack
from qdformer.utils.constants import SPLITS
from qdformer.utils.download import check_sha256, download, is_url
from qdformer.utils.tables import read_table

_DEPTH = 6  # folders of a release lie no deeper than this in what is named
_LISTED = 5


def import_published(
    kind: Kind,
    sources: Iterable[str],
    digests: Iterable[str],
    split: SplitRule,
    dataset: Path,
    cache: Path,
    progress: bool = True,
) -> DatasetRecord:
    """Write the folder `dataset`: the set's files under their published names, none of them changed, and its record.

    Args:
        kind: which set.
        sources: folders, archives (tar, zip) or their URLs, or single tables, that hold its parts, at any depth.
        digests: the SHA-256 that each source must have, in the order of `sources`, or none.
        split: see `qdformer.data.readers.avsbench.youtube_disjoint`; the record has the sizes.
        dataset: must not exist. A user's files are copied into it; unpacked ones are linked from the cache.
        cache: folder for what is downloaded and unpacked.
        progress: show bars where the error output is a terminal.

    Raises:
        DataError: a source or a part of the set is missing, or is there twice.
        DownloadError, ArchiveError: a source cannot be fetched, has another digest, or cannot be unpacked.
    """
    sources, digests = list(sources), list(digests)
    roots, records = [], []
    for source, sha256 in zip(sources, digests or [""] * len(sources), strict=True):
        path = download(source, cache, sha256, progress) if is_url(source) else Path(source).expanduser()
        name = source.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
        if path.is_dir():
            if sha256:
                raise DataError(f"{path}: a folder has no SHA-256; expected none for it in download.sha256, or a file")
            roots.append((path, False))
            records.append({"name": name, "sha256": None})
            continue
        if not path.is_file():
            raise DataError(f"{path}: no such file or folder (download.source)")
        found = check_sha256(path, sha256)
        records.append({"name": name, "sha256": found})
        if path.suffix in (".csv", ".json"):
            roots.append((path, False))
            continue
        unpacked = cache / "unpacked" / found[:16]
        if not unpacked.is_dir():
            unpack(path, unpacked, progress=progress)
        roots.append((unpacked, True))
    _assemble(LAYOUTS[kind], kind, roots, dataset, progress)
    return _record(kind, split, tuple(records), dataset)


def _assemble(layout: Layout, kind: Kind, roots: list[tuple[Path, bool]], dataset: Path, progress: bool) -> None:
    """Bring the parts of the set that lie below `roots` (path, whether it is ours to link from) together."""
    folders = {*layout.folders, *layout.audio}
    parts: dict[str, list[tuple[Path, bool]]] = {}
    for root, ours in roots:
        for name, path in _find(root, layout, folders):
            parts.setdefault(name, []).append((path, ours))
    for name in (layout.table, *layout.others):
        found = parts.get(name, [])
        if not found:
            raise DataError(f"{kind}: no {name} in {_listed(roots)}")
        if len({path.read_bytes() for path, _ in found}) > 1:
            raise DataError(f"{kind}: several tables could be {name}: {_listed(found)}; name the right one alone")
        parts[name] = found[:1]
    table = read_table(parts[layout.table][0][0], layout.columns, DataError)
    needed = sorted(set(table["label"]) & set(layout.folders)) if kind == "avss" else layout.folders
    if missing := [name for name in needed if name not in parts]:
        raise DataError(f"{kind}: no folder {', '.join(missing)} in {_listed(roots)}")
    if layout.audio and not any(name in parts for name in layout.audio):
        raise DataError(f"{kind}: no folder {' or '.join(layout.audio)} in {_listed(roots)}")
    files = [item for name, found in parts.items() for path, ours in found for item in _files(path, name, ours)]
    dataset.mkdir(parents=True, exist_ok=True)
    for path, relative, ours in tqdm(files, desc=f"place {kind}", unit="file", disable=None if progress else True):
        target = dataset / relative
        if target.exists():
            raise DataError(f"{kind}: {relative} is in the sources twice, the second time as {path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        _place(path, target, ours)


def _find(root: Path, layout: Layout, folders: set[str]) -> Iterator[tuple[str, Path]]:
    """The parts of the set below `root`, each with its published name; what lies in a part is none."""
    if root.is_file():
        yield from _as_table(root, layout)
        return
    for folder, inner, names in os.walk(root):
        here = Path(folder)
        for name in sorted(names):
            yield from _as_table(here / name, layout)
        for name in sorted(folders.intersection(inner)):
            yield name, here / name
        deep = len(here.relative_to(root).parts) >= _DEPTH
        inner[:] = [] if deep else sorted(set(inner) - folders - {*layout.elsewhere, "__MACOSX"})


def _as_table(path: Path, layout: Layout) -> Iterator[tuple[str, Path]]:
    """A table is known by its columns, for it goes by several names; other files by their own."""
    if path.name in layout.others:
        yield path.name, path
    elif path.suffix == ".csv" and not path.name.startswith("."):
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            if file.readline().strip().split(",") == list(layout.columns):
                yield layout.table, path


def _files(path: Path, name: str, ours: bool) -> Iterator[tuple[Path, Path, bool]]:
    """Each plain file of a part with its place in the set. Links, which a user's folder may hold, are followed."""
    if path.is_file():
        yield path, Path(name), ours
        return
    for folder, inner, names in os.walk(path, followlinks=not ours):
        inner.sort()
        for file in sorted(names):
            if not file.startswith("."):
                yield Path(folder, file), Path(name, Path(folder, file).relative_to(path)), ours


def _place(path: Path, target: Path, ours: bool) -> None:
    """A user's file is copied, for DVC makes what it keeps read-only; one that we unpacked is linked."""
    if ours:
        try:
            os.link(path, target)
            return
        except OSError:  # another file system
            pass
    shutil.copyfile(path, target)


def _record(kind: Kind, split: SplitRule, sources: tuple[dict[str, str | None], ...], dataset: Path) -> DatasetRecord:
    """Write `dataset.json`, with the sizes that the split rule gives; reads the tables, and so judges them."""
    write_dataset_record(dataset, DatasetRecord(kind, "published"))
    read_classes(dataset)
    published = read_manifest(dataset)["split"].value_counts()
    write_dataset_record(dataset, DatasetRecord(kind, split))
    clips = read_manifest(dataset)["split"].value_counts()
    sizes = {name: int(clips.get(name, 0)) for name in SPLITS}
    left_out = {name: int(published.get(name, 0)) - sizes[name] for name in SPLITS}
    about = DatasetRecord(kind, split, sources, sizes, left_out)
    write_dataset_record(dataset, about)
    return about


def _listed(paths: list[tuple[Path, bool]]) -> str:
    names = [str(path) for path, _ in paths]
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
