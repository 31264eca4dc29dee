"""Audio tokens of clips, and the codebook entries of each class.

Shapes: C object classes, K codebook entries, D token dimensions, N tokens of a clip, P points.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from qdformer.reporting.plots.colors import OKABE_ITO
from qdformer.reporting.plots.style import FAINT, heat_map, new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    from qdformer.data.manifest import Classes
    from qdformer.evaluation.tokens import ClipTokens

_OTHER = "#c9ccd3"
_MIXED = "D"


def codebook_use(code_counts_CK: np.ndarray, classes: Classes) -> Figure:
    """The share of the tokens of each class (rows) assigned to each codebook entry (columns).

    `code_counts_CK` holds numbers of tokens, [C, K], as `qdformer.evaluation.tokens.AudioTokens` counts them. Only
    codes in use and classes with a token are shown; the codes of one class are side by side.
    """
    codes, named = np.flatnonzero(code_counts_CK.any(axis=0)), np.flatnonzero(code_counts_CK.any(axis=1))
    if not len(named):
        with new_figure(4, 1) as figure:
            figure.text(0.5, 0.5, "No query predicts a class.", ha="center", va="center")
        return figure
    shown = code_counts_CK[np.ix_(named, codes)]
    share = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    order = np.lexsort((-share.max(axis=0), share.argmax(axis=0)))
    with new_figure(2.6 + 0.13 * max(len(codes), 24), 1.8 + 0.2 * max(len(named), 4)) as figure:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        image = heat_map(axes, share[:, order], codes[order].tolist(), [classes.names[index] for index in named])
        axes.tick_params(axis="x", labelsize=6)
        axes.set_xlabel("code")
        axes.set_title(f"Codes by class: {len(codes)} of {code_counts_CK.shape[1]} codes represent a class")
        figure.colorbar(image, ax=axes, label="share of the class's tokens", pad=0.015)
    return figure


def token_map(clips: Sequence[ClipTokens], sounding: Mapping[str, Sequence[str]], classes: Classes) -> Figure:
    """Audio tokens before and after decomposition (the paper's Fig. 6) in the plane by t-SNE (van der Maaten, 2008).

    `sounding` maps the uid of a clip to the names of the classes that sound in it. Before decomposition, a clip is one
    point: in the color of its class if one class sounds ("S" in the paper), half in the color of each of its first two
    classes if several do ("M"). After it, each token is one point in the color of the class that its query predicts;
    tokens of mixed clips should lie with those of single sources. The most frequent classes have colors; points
    without a colored class are small and gray. Raises `ValueError` for fewer than 3 clips.
    """
    if len(clips) < 3:
        raise ValueError(f"{len(clips)} clips for a map of tokens; expected at least 3")
    classes_of = [
        [classes.names.index(name) + 1 for name in sounding[clip.uid] if name in classes.names] for clip in clips
    ]
    mixed = np.array([len(sounding[clip.uid]) > 1 for clip in clips])
    query_class = np.stack([clip.query_class_N for clip in clips])
    counts = np.bincount([*chain(*classes_of), *query_class.ravel()], minlength=len(classes.names) + 1)
    counts[0] = 0
    frequent = [int(class_id) for class_id in np.argsort(-counts, kind="stable")[: len(OKABE_ITO)] if counts[class_id]]
    colors = dict(zip(frequent, OKABE_ITO, strict=False))
    fused = np.stack([clip.fused_D for clip in clips])
    tokens = np.concatenate([clip.tokens_ND for clip in clips])
    with new_figure(9.6, 5.4) as figure:
        before, after = figure.subplots(1, 2)
        _draw_points(before, fused, classes_of, mixed, colors)
        before.set_title("Before decomposition: fused audio of each clip")
        _draw_points(
            after, tokens, [[label] for label in query_class.ravel()], mixed.repeat(query_class.shape[1]), colors
        )
        after.set_title("After decomposition: tokens of each clip")
        handles = [_legend_dot(after, "s", color, classes.names[class_id - 1]) for class_id, color in colors.items()]
        handles += [
            _legend_dot(after, "s", _OTHER, "another class or none"),
            _legend_dot(after, "o", FAINT, "S: clip with one source"),
            _legend_dot(after, _MIXED, FAINT, "M: clip with several sources"),
        ]
        figure.tight_layout(w_pad=2, rect=(0, 0.13, 1, 1))
        figure.legend(handles=handles, loc="lower center", ncols=6, fontsize=8.5, handletextpad=0.2, columnspacing=1.2)
    return figure


def _draw_points(
    axes: Axes, points_PD: np.ndarray, classes_of: Sequence[Sequence[int]], mixed_P: np.ndarray, colors: dict[int, str]
) -> None:
    """Draw the layout of the points; the first two of its classes that have colors are the colors of a point."""
    xy_P2 = _tsne_layout(points_PD)
    colors_of = [[colors[label] for label in labels if label in colors][:2] for labels in classes_of]
    for labels, own in zip(classes_of, colors_of, strict=True):
        if len(own) == 1 < len(labels):
            own.append(_OTHER)
    for several, marker in ((False, "o"), (True, _MIXED)):
        for color in (None, *colors.values()):
            wanted = [] if color is None else [color]
            chosen_P = (mixed_P == several) & np.array([own == wanted for own in colors_of])
            size, alpha = (7, 0.6) if color is None else (20, 0.9)
            x_P, y_P = xy_P2[chosen_P].T
            axes.scatter(x_P, y_P, s=size, marker=marker, color=color or _OTHER, linewidths=0, alpha=alpha)
    for (x, y), own in zip(xy_P2, colors_of, strict=True):
        if len(own) == 2:
            (point,) = axes.plot(x, y, marker=_MIXED, markersize=6, markeredgewidth=0, fillstyle="left")
            point.set_markerfacecolor(own[0])
            point.set_markerfacecoloralt(own[1])
    axes.set_xticks([])
    axes.set_yticks([])


def _tsne_layout(points_PD: np.ndarray) -> np.ndarray:
    """Coordinates [P, 2] of points by t-SNE that do not depend on the BLAS kernels or the number of threads.

    t-SNE amplifies differences in the last bit. So the points are rounded to multiples of 2**-12 of the largest value,
    the start by PCA is rounded too and has fixed signs, and the gradient is computed by one thread. The layouts under
    9 settings of OpenBLAS kernels and threads were equal in every bit.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    points_PD = points_PD.astype(np.float64)
    points_PD = np.round(points_PD / (np.abs(points_PD).max() or 1) * 2**12) / 2**12
    perplexity = min(30.0, (len(points_PD) - 1) / 3)
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init=_rounded_pca(points_PD)).fit_transform(points_PD)


def _rounded_pca(points_PD: np.ndarray) -> np.ndarray:
    """The first two principal components, rounded and scaled to the start of t-SNE: float32 [P, 2]."""
    centered_PD = points_PD - points_PD.mean(axis=0)
    axes_2D = np.linalg.svd(centered_PD, full_matrices=False)[2][:2]
    largest_21 = np.take_along_axis(axes_2D, np.abs(axes_2D).argmax(axis=1, keepdims=True), axis=1)
    components_P2 = centered_PD @ (axes_2D * np.sign(largest_21)).T  # LAPACK's signs are arbitrary
    components_P2 /= components_P2[:, 0].std() or 1
    return (1e-4 * np.round(components_P2, 3)).astype(np.float32)


def _legend_dot(axes: Axes, marker: str, color: str, label: str) -> PathCollection:
    return axes.scatter([], [], s=26, marker=marker, color=color, linewidths=0, label=label)
