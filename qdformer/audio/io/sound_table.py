"""A folder of single sounds and its table, `sounds.csv`: recordings of the object classes and background noises.

{root}/sounds.csv    path,role,split,label; written last, so its presence means that the folder is complete
{root}/{path}        mono, 16 bits
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas

from qdformer.audio.io.read import AudioError
from qdformer.audio.io.write import PCM16_MAX, check_waveform, quantize, write_audio
from qdformer.utils.constants import SAMPLE_RATE, SPLITS
from qdformer.utils.files import write_rows
from qdformer.utils.tables import read_table

SOUND_COLUMNS = ("path", "role", "split", "label")


def sound_row(path: str, *, role: str, split: str, label: str = "") -> dict[str, str]:
    """One row of `sounds.csv`: `path` relative to it, and role 'source' (with a class as label) or 'noise'."""
    return {"path": path, "role": role, "split": split, "label": label}


def write_single_sound(root: Path, path: str, audio: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write one mono sound, float [samples] within -1..1, as the 16-bit file `{root}/{path}` (.flac or .wav)."""
    check_waveform(f"sound {path}", audio)
    write_audio(Path(root) / path, quantize(audio * PCM16_MAX, 16), sample_rate=sample_rate)


def write_sound_table(root: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write `sounds.csv` from rows of `sound_row`. Call it after all sounds are written."""
    write_rows(Path(root) / "sounds.csv", SOUND_COLUMNS, rows)


def read_sound_table(root: str | Path) -> pandas.DataFrame:
    """Read `sounds.csv`; one row per sound, in the file's order.

    Columns: path (Path, includes `root`), role ('source' or 'noise'), split, label (class name, '' for noise).
    A sound of several splits has a row for each.

    Raises:
        AudioError: the table is missing or damaged, or a row is not valid.
    """
    root = Path(root)
    path = root / "sounds.csv"
    table = read_table(path, SOUND_COLUMNS, AudioError)
    for line, row in enumerate(table.to_dict("records"), start=2):
        where = f"{path}, line {line}, sound {row['path']!r}"
        relative = PurePosixPath(row["path"])
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise AudioError(f"{where}: expected a path inside {root}")
        if row["role"] not in ("source", "noise"):
            raise AudioError(f"{where}: unknown role {row['role']!r}; expected source or noise")
        if row["split"] not in SPLITS:
            raise AudioError(f"{where}: unknown split {row['split']!r}; expected {', '.join(SPLITS)}")
        if bool(row["label"]) != (row["role"] == "source"):
            raise AudioError(f"{where}: label is {row['label']!r}; expected a class for a source, nothing for noise")
    if repeated := table["path"][table.duplicated(["path", "split"])].tolist():
        raise AudioError(f"{path}: sound {repeated[0]!r} is listed twice for one split")
    return table[list(SOUND_COLUMNS)].assign(path=[root / value for value in table["path"]])
