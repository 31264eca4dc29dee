"""The common style of all figures, the titles of metrics, and the writing of a figure to a file."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

INK, MUTED, FAINT, ACCENT, SECOND = "#22262e", "#5c626d", "#8b919c", "#2f6fb0", "#d9822b"
METRIC_TITLES = {
    "miou_dataset": "mIoU, dataset-level",
    "miou_per_frame": "mIoU, per frame (AVSS)",
    "fscore_per_frame": "F-score, per frame (AVSS)",
    "avsbench_j": "J (AVSBench)",
    "avsbench_f": "F (AVSBench)",
    "davis_j": "J (DAVIS)",
    "davis_f": "F (DAVIS)",
    "davis_jf": "J&F (DAVIS)",
    "miou_seen": "mIoU, seen classes",
    "miou_unseen": "mIoU, unseen classes",
    "avsbench_j_sounding": "J (AVSBench), sounding frames",
    "predicted_area": "Predicted area",
    "predicted_frames": "Frames with a prediction",
    "fpr": "False-positive rate",
    "g_miou": "G-mIoU (AVSBench-Robust)",
    "sounding_exact_1": "One of one right",
    "sounding_exact_2": "Two of two right",
    "sounding_exact_3": "Three of three right",
    "sounding_map": "mAP of sounding classes",
    "token_cosine_clip": "Cosine of a clip's tokens",
    "token_cosine_frame": "Cosine of a frame's tokens",
    "codes_1": "Codes, one source",
    "codes_2": "Codes, two sources",
    "codes_3": "Codes, three sources",
    "code_nmi": "NMI of codes and classes",
    "source_token_share": "Sources with their own token",
}
_CONDITION_TITLES = {
    "clean": "Clean sound",
    "shuffled": "Shuffled sound",
    "silence": "Silence",
    "noise": "Noise only",
    "offscreen": "Off-screen sound",
    "untrained": "Untrained model",
}


_RC_PARAMS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#c5c9d1",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ebef",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


def condition_title(name: str) -> str:
    """The name of a condition or control for readers: `snr-5` is "SNR −5 dB", `shuffled` is "Shuffled sound"."""
    if match := re.fullmatch(r"snr(-?\d+)", name):
        return f"SNR {match[1]} dB".replace("-", "\u2212")
    return _CONDITION_TITLES.get(name, name)


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of `width` x `height` inches; the style holds inside the `with` block."""
    # Not pyplot, which keeps every figure alive and looks for a display.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC_PARAMS):
        yield Figure(figsize=(width, height))


def heat_map(axes: Axes, share: np.ndarray, columns: Sequence[object], rows: Sequence[str]) -> AxesImage:
    """Draw shares in 0..1 as a grid of blue cells with the names of its columns and rows; NaN is an empty cell."""
    image = axes.imshow(np.ma.masked_invalid(share), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_facecolor("#eceef1")
    axes.set_xticks(range(len(columns)), [str(column) for column in columns], rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color="#e9ebef", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(False)
    return image


def save(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write a figure in the format that the suffix names, and create its folder; equal figures give equal bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":  # without matplotlib's version, which would change the bytes
        metadata, pil_kwargs = {"Software": None}, {"compress_level": 4}
        figure.savefig(path, dpi=dpi, facecolor="white", metadata=metadata, pil_kwargs=pil_kwargs)
    else:
        figure.savefig(path, dpi=dpi, facecolor="white")
    return path
