"""Clips that arrived after the data set was made and passed the checks. They join its training split."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from qdformer.data.layout import METADATA_COLUMNS, DataError, clip_folder, is_safe_name
from qdformer.data.readers.avsbench import SEMANTIC_FRAMES, read_dataset_record
from qdformer.utils.files import write_rows
from qdformer.utils.tables import read_table

TABLE = "metadata.csv"


def join_accepted(dataset: Path, accepted: Path) -> int:
    """Copy the clips of the folder `accepted` into `dataset`, with split `train`; return their number.

    Both have the AVSBench-Semantic layout. Without clips nothing is written. Raises `DataError` if a clip is in the
    data set already, or if the data set has another layout (S4 and MS3).
    """
    rows = read_accepted(accepted)
    if not rows:
        return 0
    record, table = read_dataset_record(dataset), dataset / TABLE
    if record and record.kind != "avss":
        raise DataError(f"{accepted}: {record.kind} has another layout; expected a data set of AVSBench-Semantic's")
    present = read_table(table, METADATA_COLUMNS, DataError)
    columns, known = list(present.columns), set(present["uid"])
    joined = []
    for row in rows:
        where, frames = f"{accepted / TABLE}, clip {row['uid']!r}", clip_seconds(row)
        if row["uid"] in known:
            raise DataError(f"{where}: the data set has a clip of this name; expected another uid")
        for name in (row["label"], row["uid"]):
            if not is_safe_name(name):
                raise DataError(f"{where}: {name!r} is not a plain name; expected no '/' and no '..'")
        known.add(row["uid"])
        shutil.copytree(clip_folder(accepted, row["label"], row["uid"]), clip_folder(dataset, row["label"], row["uid"]))
        extra = {"split": "train", "frames": frames, "unseen": 0}
        joined.append({column: (row | extra).get(column, "") for column in columns})
    write_rows(table, columns, [*present.to_dict("records"), *joined])
    return len(joined)


def read_accepted(accepted: Path) -> list[dict[str, str]]:
    """The rows of the accepted clips; empty if none were accepted yet."""
    path = accepted / TABLE
    return read_table(path, METADATA_COLUMNS, DataError).to_dict("records") if path.is_file() else []


def write_accepted(accepted: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the table of accepted clips, after the files of the clips are in place."""
    columns = list(dict.fromkeys([*METADATA_COLUMNS, *(key for row in rows for key in row)]))
    write_rows(accepted / TABLE, columns, rows)


def clip_seconds(row: Mapping[str, str]) -> str:
    """The number of frames of a clip: its column `frames`, or the published number of its subset."""
    return row.get("frames") or str(SEMANTIC_FRAMES.get(row["label"], ""))
