"""Figures of data, training and results, drawn without a display.

Every function returns a matplotlib `Figure`; `save` writes it. matplotlib is imported when the first
figure is drawn. A class has the same colour in every figure.

Shapes: T frames, H W pixels, C object classes.
"""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas

from qdformer.utils.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qdformer.data.manifest import Classes
    from qdformer.evaluation.evaluate import Picture
    from qdformer.evaluation.tokens import ClipTokens

INK, FAINT, ACCENT, SECOND = "#22262e", "#8b919c", "#2f6fb0", "#d9822b"
TITLES = {
    "miou_dataset": "mIoU, dataset-level",
    "miou_per_frame": "mIoU, per frame (AVSS)",
    "avsbench_j": "J (AVSBench)",
    "avsbench_f": "F (AVSBench)",
    "davis_j": "J (DAVIS)",
    "davis_f": "F (DAVIS)",
    "davis_jf": "J&F (DAVIS)",
}
OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#a6940b", "#000000")
"""Told apart by all kinds of colour vision (Okabe and Ito, 2008); their yellow darkened, to be seen on white."""
_STYLE = {
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


def class_colours(classes: int) -> np.ndarray:
    """Colours of class ids 0..`classes`: float [classes + 1, 3] in 0..1, the background's black.

    Each is the strong colour that is furthest from all before it to the eye (in the OKLab space), be it one that
    lacks red or green cones, so that a class's colour does not depend on how many there are.
    """
    shades = [(strength, value) for strength in (0.4, 0.65, 0.9) for value in (0.6, 0.78, 0.95)]
    candidates = np.array([colorsys.hsv_to_rgb(hue / 72, *shade) for hue in range(72) for shade in shades])
    lightness = _oklab(candidates)[:, 0]
    candidates = candidates[(lightness > 0.42) & (lightness < 0.86)]  # neither lost on a frame nor on white paper
    as_seen = [_oklab(candidates), *(2 * _oklab(_dichromatic(candidates, kind)) for kind in _DICHROMATS)]
    places = np.stack(as_seen)  # twice: else most eyes would lose more than these gain
    chosen = [int(np.argmin(np.abs(candidates - (0.13, 0.47, 0.82)).sum(axis=1)))]
    distance = np.full(len(candidates), np.inf)
    while len(chosen) < classes:
        apart = np.linalg.norm(places - places[:, chosen[-1], None], axis=2).min(axis=0)
        distance = np.minimum(distance, apart)
        chosen.append(int(np.argmax(distance)))
    return np.concatenate([np.zeros((1, 3)), candidates[chosen[:classes]]])


_DICHROMATS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
"""On linear RGB, what eyes without red or green cones make of it (Machado et al., 2009)."""


def _dichromatic(rgb: np.ndarray, kind: str) -> np.ndarray:
    linear = (_linear(rgb) @ np.array(_DICHROMATS[kind]).T).clip(0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def _linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in 0..1 to OKLab (Ottosson, 2020), where distances are about what the eye sees."""
    linear = _linear(rgb)
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(linear @ to_cones.T) @ to_lab.T


def picture_grid(pictures: Sequence[Picture], classes: Classes, *, heard_from: float = 0.3, columns: int = 2) -> Figure:
    """One block per clip: its frames, the truth and the prediction over them, and what was heard.

    A block has a legend of the classes in its truth or prediction. Under each frame stand the classes heard
    with a probability of at least `heard_from`, the three likeliest at most. A frame without ground truth is
    shown faded in the truth's row. Raises `ValueError` if there is no picture.
    """
    if not pictures:
        raise ValueError("a picture grid needs at least one clip")
    colours = class_colours(len(classes.names))
    longest = max(len(picture.images_THWC) for picture in pictures)
    columns = min(columns, len(pictures)) if longest <= 5 else 1
    rows = math.ceil(len(pictures) / columns)
    cell_width = 1.3  # inches, for a frame as wide as the widest
    ratio = max(height / width for height, width in (picture.truth_THW.shape[1:] for picture in pictures))
    head, foot, label, gap = 0.42, 0.56, 0.75, 0.04
    block_width = label + longest * (cell_width + gap) + 0.2
    block_height = head + 3 * (cell_width * ratio + gap) + foot
    with _figure(columns * block_width, rows * block_height) as figure:
        for index, picture in enumerate(pictures):
            row, column = divmod(index, columns)
            axes = figure.add_axes((column / columns, 1 - (row + 1) / rows, 1 / columns, 1 / rows))
            axes.set(xlim=(0, block_width), ylim=(block_height, 0))
            axes.axis("off")
            _draw_block(axes, picture, classes, colours, heard_from, (head, label, gap, cell_width, cell_width * ratio))
    return figure


def robustness_curve(
    summaries: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    keys: Sequence[str] = ("miou_dataset", "davis_jf"),
) -> Figure:
    """Scores over the signal-to-noise ratio, with the controls as levels; one panel per key.

    `summaries` maps each condition (`clean`, `snr10`, `snr-5`, ..., and controls under any other name) to its
    scores, `intervals` to the `low` and `high` of each score, drawn as a band.
    """
    positions, labels = _snr_axis(summaries)
    controls = [name for name in summaries if name not in positions]
    with _figure(4.6 * len(keys), 3.4) as figure:
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
            tops = _draw_curve(axes, positions, summaries, intervals, key, ACCENT)
            for (name, position), top in zip(positions.items(), tops, strict=True):
                text = f"{summaries[name][key]:.3f}"
                axes.annotate(text, (position, top), (0, 4), textcoords="offset points", ha="center", fontsize=8)
            levels = {name: summaries[name][key] for name in controls}
            highest = max([*tops, *levels.values()], default=1) * 1.15 or 1
            _finish_snr_axes(axes, key, positions, labels, highest)
            heights = _spread(list(levels.values()), highest * 0.06)
            for (name, level), height in zip(levels.items(), heights, strict=True):
                axes.axhline(level, color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
                axes.annotate(
                    f"{name} {level:.3f}",
                    (1, height / highest),
                    (4, 0),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color="#5c626d",
                )
        figure.tight_layout(w_pad=2)
    return figure


def robustness_curves(
    runs: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
    keys: Sequence[str] = ("miou_dataset", "davis_jf"),
) -> Figure:
    """Scores of several runs over the signal-to-noise ratio (the paper's Fig. 7); one panel per key.

    `runs` maps each run's name to its intervals: per condition and score `value`, `low` and `high`. Conditions that
    are neither `clean` nor an SNR are not drawn. Raises `ValueError` without a run, or for more than there are colours.
    """
    if not 0 < len(runs) <= len(OKABE_ITO):
        raise ValueError(f"{len(runs)} runs for one plot; expected 1 to {len(OKABE_ITO)}")
    values = {
        name: {condition: {key: scores[key]["value"] for key in keys} for condition, scores in intervals.items()}
        for name, intervals in runs.items()
    }
    positions, labels = _snr_axis({condition: None for intervals in runs.values() for condition in intervals})
    with _figure(4.6 * len(keys), 3.8) as figure:
        grid = figure.subplots(1, len(keys), squeeze=False)[0]
        for axes, key in zip(grid, keys, strict=True):
            highest = 0.0
            for (name, summaries), colour, marker in zip(values.items(), OKABE_ITO, "osD^vPX*", strict=False):
                own = {condition: place for condition, place in positions.items() if condition in summaries}
                tops = _draw_curve(axes, own, summaries, runs[name], key, colour, marker, name)
                highest = max(highest, *tops, 0)
            _finish_snr_axes(axes, key, positions, labels, highest * 1.1 or 1)
        figure.tight_layout(w_pad=2, rect=(0, 0.09, 1, 1))
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="lower center", ncols=min(5, len(names)), fontsize=8.5)
    return figure


def _snr_axis(conditions: Mapping[str, object]) -> tuple[dict[str, float], list[str]]:
    """Where each noisy condition and `clean` stand on the axis, from left to right, and their labels."""
    noisy = sorted((int(match[1]), name) for name in conditions if (match := re.fullmatch(r"snr(-?\d+)", name)))
    positions = {name: snr for snr, name in noisy}
    labels = [str(snr).replace("-", "\u2212") for snr, _ in noisy]
    if "clean" in conditions:  # infinitely far to the right; drawn one broken step away
        positions["clean"] = max(positions.values(), default=0) + 8
        labels.append("clean")
    return positions, labels


def _draw_curve(
    axes: Axes,
    positions: Mapping[str, float],
    summaries: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Mapping[str, float]]] | None,
    key: str,
    colour: str,
    marker: str = "o",
    label: str | None = None,
) -> Sequence[float]:
    """One run's line, with its band; returns the highest point drawn at each position."""
    places, scores = list(positions.values()), np.array([summaries[name][key] for name in positions], float)
    ends = [intervals[name][key] for name in positions] if intervals else []
    if ends:
        low, high = ([end[side] for end in ends] for side in ("low", "high"))
        axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)
    noisy = len(places) - ("clean" in positions)
    axes.plot(places, scores, color=colour, linestyle=":", linewidth=1.6)
    axes.plot(places[:noisy], scores[:noisy], color=colour, linewidth=2)
    axes.plot(places, scores, color=colour, marker=marker, markersize=5, linestyle="", label=label)
    return [end["high"] for end in ends] or scores.tolist()


def _finish_snr_axes(axes: Axes, key: str, positions: Mapping[str, float], labels: list[str], highest: float) -> None:
    axes.set(ylim=(0, highest), xlabel="signal-to-noise ratio, dB")
    axes.margins(x=0.08)
    axes.set_xticks(list(positions.values()), labels)
    axes.set_title(TITLES.get(key, key))
    axes.grid(axis="x", visible=False)


def spectrograms(sounds: Mapping[str, np.ndarray], sample_rate: int, title: str) -> Figure:
    """One spectrogram under another of equally long sounds [S] in -1..1, by name, on a mel scale of frequency.

    Magnitudes of a 32 ms Hann window every 8 ms, in dB of a sine of full scale; all panels share the colours.
    """
    window, hop = round(0.032 * sample_rate), round(0.008 * sample_rate)
    lowest, highest = 60.0, sample_rate / 2
    ticks = [hertz for hertz in (250, 500, 1000, 2000, 4000, 8000, 16000) if hertz <= highest]
    hann = np.hanning(window + 1)[:-1]
    with _figure(8.4, 0.9 + 1.75 * len(sounds)) as figure:
        figure.set_layout_engine("constrained")
        column = figure.subplots(len(sounds), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (name, sound) in zip(column, sounds.items(), strict=True):
            padded = np.pad(sound, (window // 2, window))  # frame i is centred on sample i * hop
            frames_TW = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(sound) : hop]
            level_TF = np.abs(np.fft.rfft(frames_TW * hann)) * 2 / hann.sum()
            image = axes.pcolormesh(
                np.arange(len(level_TF)) * hop / sample_rate,
                np.fft.rfftfreq(window, 1 / sample_rate),
                20 * np.log10(np.maximum(level_TF.T, 1e-6)),
                vmin=-100,
                vmax=-10,
                cmap="magma",
                shading="nearest",
                rasterized=True,
            )
            axes.set_yscale("function", functions=(_mel, _hertz))
            axes.set_ylim(lowest, highest)
            axes.set_xlim(0, len(sound) / sample_rate)
            axes.set_yticks(ticks, [f"{hertz:,}".replace(",", "\u2009") for hertz in ticks])
            axes.set_yticks([], minor=True)
            axes.set_ylabel("Hz")
            axes.set_title(name, fontsize=9)
            axes.grid(visible=False)
        column[-1].set_xlabel("s")
        figure.suptitle(title, x=0.012, ha="left", fontweight="bold", fontsize=10)
        figure.colorbar(image, ax=list(column), label="dB of full scale", pad=0.015, aspect=14 * len(sounds))
        figure.get_layout_engine().set(h_pad=0.06, w_pad=0.08)
    return figure


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Losses, codebook, gradient norm and learning rate over the epochs of `qdformer.training`'s history.

    Every figure that is none of the others is a loss; a panel without figures is left out. Raises `ValueError` for
    an empty history.
    """
    if not history:
        raise ValueError("training curves need at least one epoch")
    table = pandas.DataFrame(list(history)).set_index("epoch")
    panels = {
        "codebook perplexity": ["codebook_perplexity", "codebook_perplexity_local"],
        "likeness of a clip's tokens": ["token_similarity"],
        "gradient norm": ["gradient_norm"],
        "learning rate": ["learning_rate"],
    }
    apart = {"total", "seconds", *(name for names in panels.values() for name in names)}
    parts = [name for name in table.columns if name not in apart]
    panels = {"total loss": ["total"], "losses": parts} | panels
    panels = {
        title: present for title, names in panels.items() if (present := [name for name in names if name in table])
    }
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _figure(3.9 * columns, 2.7 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, names) in zip(grid, panels.items(), strict=False):
            colours = class_colours(len(names))[1:] * 0.85 if len(names) > 1 else [ACCENT]
            for name, colour in zip(names, colours, strict=True):
                axes.plot(table.index, table[name], color=colour, marker="o", markersize=3, linewidth=1.6, label=name)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.set_xlim(table.index[0] - 0.3, table.index[-1] + 0.3)
            if title == "learning rate":
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            if len(names) > 1:
                axes.legend(fontsize=7.5, ncols=2 if len(names) > 4 else 1, handlelength=1.2, columnspacing=1)
        for axes in grid[len(panels) :]:
            axes.axis("off")
        figure.tight_layout(w_pad=2, h_pad=1.5)
    return figure


def class_bars(per_class: pandas.DataFrame, key: str = "iou") -> Figure:
    """IoU of every class, highest first, seen and unseen classes told apart, each kind's mean as a line.

    `per_class` is `Evaluation.per_class`; classes that never occur are named beneath, without a bar.
    """
    objects = per_class[per_class["id"] > 0]
    shown = objects.dropna(subset=key).sort_values(key, kind="stable")
    absent = objects.loc[objects[key].isna(), "name"].tolist()
    with _figure(6.4, 1.5 + 0.22 * max(len(shown), 3)) as figure:
        axes = figure.subplots()
        for kind, colour, name in ((False, ACCENT, "seen"), (True, SECOND, "unseen")):
            chosen = (shown["unseen"] == kind).to_numpy()
            if not chosen.any():
                continue
            scores = shown[key].to_numpy()[chosen]
            mean = scores.mean()
            axes.barh(np.flatnonzero(chosen), scores, height=0.68, color=colour, label=f"{name}, mean {mean:.3f}")
            axes.axvline(mean, color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
        for position, score in enumerate(shown[key]):
            text = axes.annotate(f"{score:.2f}", (score, position), (3, 0), textcoords="offset points", va="center")
            text.set(fontsize=7, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5})
        axes.set_yticks(range(len(shown)), shown["name"], fontsize=8)
        axes.set(xlim=(0, 1), ylim=(-0.6, len(shown) - 0.4), xlabel="IoU" if key == "iou" else key)
        axes.grid(axis="y", visible=False)
        if len(shown):
            axes.legend(loc="lower right", fontsize=8)
        axes.set_title("IoU by class, dataset-level" if key == "iou" else f"{key} by class")
        if absent:
            axes.set_xlabel(f"{axes.get_xlabel()}\nnever labeled nor predicted: {', '.join(absent)}")
        figure.tight_layout()
    return figure


def confusion_matrix(confusion_KK: np.ndarray, classes: Classes) -> Figure:
    """Of the pixels of each class (rows, background first) the share that was given each class (columns).

    `confusion_KK` holds numbers of pixels, [C + 1, C + 1]. The row of a class that never occurs is left empty.
    """
    names = ["background", *classes.names]
    total_K1 = confusion_KK.sum(axis=1, keepdims=True)
    share_KK = np.where(total_K1 > 0, confusion_KK / np.maximum(total_K1, 1), np.nan)
    side = 2.2 + 0.29 * max(len(names), 6)
    with _figure(side + 0.6, side) as figure:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        image = _heat_map(axes, share_KK, names, names)
        if len(names) <= 40:
            for row, column in np.argwhere(share_KK >= 0.005):
                share = share_KK[row, column]
                text = "1" if share >= 0.995 else f"{share:.2f}".removeprefix("0")
                colour = "white" if share > 0.5 else INK
                axes.text(column, row, text, ha="center", va="center", fontsize=5.5, color=colour)
        axes.set(xlabel="given", ylabel="truth")
        axes.set_title("Share of pixels given each class")
        figure.colorbar(image, ax=axes, label="share of the truth's pixels", shrink=0.6, pad=0.015)
    return figure


def codebook_use(code_counts_CK: np.ndarray, classes: Classes) -> Figure:
    """Which codes stand for which class: of each class's tokens (rows) the share that took each code (columns).

    `code_counts_CK` holds numbers of tokens, [C, K], as `qdformer.evaluation.tokens.AudioTokens` counts them. Only
    codes that are used are shown, those of one class side by side, and only classes that some token named.
    """
    codes, named = np.flatnonzero(code_counts_CK.any(axis=0)), np.flatnonzero(code_counts_CK.any(axis=1))
    if not len(named):
        with _figure(4, 1) as figure:
            figure.text(0.5, 0.5, "No token names a class.", ha="center", va="center")
        return figure
    shown = code_counts_CK[np.ix_(named, codes)]
    share = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-share.max(axis=0), share.argmax(axis=0)))
    with _figure(2.6 + 0.13 * max(len(codes), 24), 1.8 + 0.2 * max(len(named), 4)) as figure:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        image = _heat_map(axes, share[:, order], codes[order], [classes.names[index] for index in named])
        axes.tick_params(axis="x", labelsize=6)
        axes.set_xlabel("code")
        axes.set_title(f"Codes by class: {len(codes)} of {code_counts_CK.shape[1]} codes name one")
        figure.colorbar(image, ax=axes, label="share of the class's tokens", pad=0.015)
    return figure


def _heat_map(axes: Axes, share: np.ndarray, columns: Sequence[object], rows: Sequence[str]):
    image = axes.imshow(np.ma.masked_invalid(share), vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_facecolor("#eceef1")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=7.5)
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color="#e9ebef", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(False)
    return image


def token_map(
    clips: Sequence[ClipTokens], sounding: Mapping[str, Sequence[str]], classes: Classes, seed: int = 0
) -> Figure:
    """Audio tokens before and after decomposition (the paper's Fig. 6), laid out by t-SNE (van der Maaten, 2008).

    `sounding` maps a clip's uid to the names of what sounds in it. Before, a clip is one point, in the
    colour of its class where only one sounds; after, each token is one, in the colour of the class that its query
    names. The classes of most clips have colours, the others are grey, as are tokens whose query names none.
    Raises `ValueError` for fewer than 3 clips.
    """
    from sklearn.manifold import TSNE

    if len(clips) < 3:
        raise ValueError(f"{len(clips)} clips for a map of tokens; expected at least 3")
    heard = [sounding[clip.uid] for clip in clips]
    mixed = np.array([len(names) > 1 for names in heard])
    class_of = [
        classes.names.index(*names) + 1 if len(names) == 1 and {*names} <= {*classes.names} else 0 for names in heard
    ]
    said = np.stack([clip.query_class_N for clip in clips])
    counts = np.bincount([*class_of, *said.ravel()], minlength=len(classes.names) + 1)
    counts[0] = 0
    frequent = [int(class_id) for class_id in np.argsort(-counts, kind="stable")[: len(OKABE_ITO)] if counts[class_id]]
    panels = {
        "Before decomposition: each clip's fused audio": (
            np.stack([clip.fused_D for clip in clips]),
            np.array(class_of),
            mixed,
        ),
        "After it: single-source tokens": (
            np.concatenate([clip.tokens_ND for clip in clips]),
            said.ravel(),
            np.repeat(mixed, said.shape[1]),
        ),
    }
    with _figure(9.6, 5.2) as figure:
        grid = figure.subplots(1, 2)
        for axes, (title, (points, class_ids, several)) in zip(grid, panels.items(), strict=True):
            perplexity = min(30.0, (len(points) - 1) / 3)
            place_P2 = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
                points.astype(np.float64)
            )
            for many, marker, size in ((False, "o", 16), (True, "^", 20)):
                for class_id in (None, *frequent):
                    chosen = several == many
                    chosen &= ~np.isin(class_ids, frequent) if class_id is None else class_ids == class_id
                    colour = "#c9ccd3" if class_id is None else OKABE_ITO[frequent.index(class_id)]
                    axes.scatter(*place_P2[chosen].T, s=size, marker=marker, color=colour, linewidths=0, alpha=0.85)
            axes.set_title(title)
            axes.set_xticks([])
            axes.set_yticks([])
        handles = [
            _dot(axes, "s", colour, classes.names[class_id - 1])
            for class_id, colour in zip(frequent, OKABE_ITO, strict=False)
        ]
        handles += [
            _dot(axes, "s", "#c9ccd3", "another class, none or several"),
            _dot(axes, "o", FAINT, "clip with one source"),
            _dot(axes, "^", FAINT, "clip with several"),
        ]
        figure.tight_layout(w_pad=2, rect=(0, 0.13, 1, 1))
        figure.legend(handles=handles, loc="lower center", ncols=6, fontsize=8.5, handletextpad=0.2, columnspacing=1.2)
    return figure


def _dot(axes: Axes, marker: str, colour: str, label: str):
    return axes.scatter([], [], s=26, marker=marker, color=colour, linewidths=0, label=label)


def save(figure: Figure, path: str | Path, dpi: int = 120) -> Path:
    """Write a figure as a picture (kind by the ending), in a folder made if need be; equal figures, equal bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 4}} if path.suffix == ".png" else {}
    figure.savefig(path, dpi=dpi, facecolor="white", **options)
    return path


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    # No pyplot: it would keep every figure alive and look for a display.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height))


def _draw_block(
    axes: Axes,
    picture: Picture,
    classes: Classes,
    colours: np.ndarray,
    heard_from: float,
    layout: tuple[float, float, float, float, float],
) -> None:
    """One clip; all lengths in inches, y downwards."""
    head, left, gap, width, height = layout
    present = sorted((set(np.unique(picture.truth_THW)) | set(np.unique(picture.prediction_THW))) - {0, IGNORE_INDEX})
    axes.text(left, 0.15, picture.uid, fontsize=8, fontweight="bold", va="center")
    legend = [(classes.names[class_id - 1], colours[class_id]) for class_id in present]
    _chips(axes, left, 0.31, legend or [("nothing labeled, nothing predicted", (0.8, 0.8, 0.8))])
    for row, name in enumerate(("frame", "truth", "prediction")):
        top = head + row * (height + gap)
        axes.text(left - 0.08, top + height / 2, name, fontsize=7.5, color="#5c626d", ha="right", va="center")
        for frame, image_HWC in enumerate(picture.images_THWC):
            labels_HW = (np.zeros_like(picture.truth_THW), picture.truth_THW, picture.prediction_THW)[row][frame]
            tile = image_HWC if row == 0 else overlay(image_HWC, labels_HW, colours)
            start = left + frame * (width + gap)
            axes.imshow(tile, extent=(start, start + width, top + height, top), interpolation="bilinear", aspect="auto")
    bottom = head + 3 * (height + gap)
    for frame, heard_C in enumerate(picture.class_probs_TC):
        start = left + frame * (width + gap)
        likeliest = [index for index in np.argsort(-heard_C, kind="stable")[:3] if heard_C[index] >= heard_from]
        for line, index in enumerate(likeliest):
            text = f"{classes.names[index]} {heard_C[index]:.2f}"
            _chips(axes, start, bottom + 0.07 + 0.14 * line, [(text, colours[index + 1])])
        if not likeliest:
            axes.text(start, bottom + 0.07, "nothing heard", fontsize=6.5, color=FAINT, va="center")
    axes.set(xlim=axes.get_xlim())  # imshow moved the limits' margins
    axes.set_autoscale_on(False)


def overlay(image_HWC: np.ndarray, labels_HW: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The frame greyed, with every labeled object tinted and outlined in its class's colour: uint8 [H, W, 3].

    `image_HWC` is uint8; label 255 (no ground truth) is faded to white.
    """
    grey_HW1 = image_HWC.mean(axis=-1, keepdims=True) / 255
    labeled_HW = labels_HW != IGNORE_INDEX
    object_HW = (labels_HW > 0) & labeled_HW
    tint_HWC = colours[np.where(labeled_HW, labels_HW, 0)]
    inner_HW = object_HW.copy()
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        inner_HW &= np.roll(labels_HW, step, axis) == labels_HW
    result = np.where(object_HW[..., None], (0.45 + 0.55 * grey_HW1) * tint_HWC + 0.08, 0.1 + 0.55 * grey_HW1)
    result = np.where((object_HW & ~inner_HW)[..., None], 0.45 + 0.55 * tint_HWC, result)
    result = np.where(labeled_HW[..., None], result, 0.8 + 0.15 * grey_HW1)
    return (result.clip(0, 1) * 255).astype(np.uint8)


def _chips(axes: Axes, x: float, y: float, items: Sequence[tuple[str, Sequence[float]]], size: float = 6.5) -> None:
    """Coloured squares with their texts, one after another from `x`, in inches."""
    from matplotlib.patches import Rectangle

    side = 0.085
    for text, colour in items:
        axes.add_patch(Rectangle((x, y - side / 2), side, side, facecolor=colour, linewidth=0))
        axes.text(x + side + 0.04, y, text, fontsize=size, va="center")
        x += side + 0.14 + len(text) * size * 0.0088


def _mel(hertz: np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + np.maximum(hertz, 0) / 700)


def _hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)


def _spread(levels: list[float], least: float) -> list[float]:
    """Heights near `levels` that are `least` apart at least, so that their texts do not touch."""
    order = sorted(range(len(levels)), key=levels.__getitem__)
    heights = list(levels)
    for lower, upper in zip(order, order[1:], strict=False):
        heights[upper] = max(heights[upper], heights[lower] + least)
    return heights
