"""Audio tokens of clips, and the codebook entries of each class.

Shapes: C object classes, K codebook entries, D token dimensions, N tokens of a clip, P points.
"""

from __future__ import annotations

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

    `sounding` maps the uid of a clip to the names of the classes that sound in it. Before decomposition, a clip is
    one point in the color of its class if exactly one class sounds; after it, each token is one point in the color
    of the class that its query predicts. The most frequent classes have colors; other classes and queries without a
    class are gray. Raises `ValueError` for fewer than 3 clips.
    """
    if len(clips) < 3:
        raise ValueError(f"{len(clips)} clips for a map of tokens; expected at least 3")
    names_of = [sounding[clip.uid] for clip in clips]
    mixed = np.array([len(names) > 1 for names in names_of])
    class_of = np.array([_single_class(names, classes) for names in names_of])
    query_class = np.stack([clip.query_class_N for clip in clips])
    counts = np.bincount([*class_of, *query_class.ravel()], minlength=len(classes.names) + 1)
    counts[0] = 0
    frequent = [int(class_id) for class_id in np.argsort(-counts, kind="stable")[: len(OKABE_ITO)] if counts[class_id]]
    fused = np.stack([clip.fused_D for clip in clips])
    tokens = np.concatenate([clip.tokens_ND for clip in clips])
    panels = {
        "Before decomposition: each clip's fused audio": (fused, class_of, mixed),
        "After decomposition: single-source tokens": (
            tokens,
            query_class.ravel(),
            np.repeat(mixed, query_class.shape[1]),
        ),
    }
    with new_figure(9.6, 5.2) as figure:
        grid = figure.subplots(1, 2)
        for axes, (title, (points, class_ids, several)) in zip(grid, panels.items(), strict=True):
            xy_P2 = _tsne_layout(points)
            for many, marker, size in ((False, "o", 16), (True, "^", 20)):
                for class_id in (None, *frequent):
                    chosen = several == many
                    chosen &= ~np.isin(class_ids, frequent) if class_id is None else class_ids == class_id
                    color = _OTHER if class_id is None else OKABE_ITO[frequent.index(class_id)]
                    axes.scatter(*xy_P2[chosen].T, s=size, marker=marker, color=color, linewidths=0, alpha=0.85)
            axes.set_title(title)
            axes.set_xticks([])
            axes.set_yticks([])
        handles = [
            _legend_dot(axes, "s", color, classes.names[class_id - 1])
            for class_id, color in zip(frequent, OKABE_ITO, strict=False)
        ]
        handles += [
            _legend_dot(axes, "s", _OTHER, "another class, none or several"),
            _legend_dot(axes, "o", FAINT, "clip with one source"),
            _legend_dot(axes, "^", FAINT, "clip with several"),
        ]
        figure.tight_layout(w_pad=2, rect=(0, 0.13, 1, 1))
        figure.legend(handles=handles, loc="lower center", ncols=6, fontsize=8.5, handletextpad=0.2, columnspacing=1.2)
    return figure


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


def _single_class(names: Sequence[str], classes: Classes) -> int:
    """The class id (from 1) of the only sounding class; 0 for several classes, none, or one outside `classes`."""
    if len(names) == 1 and names[0] in classes.names:
        return classes.names.index(names[0]) + 1
    return 0


def _legend_dot(axes: Axes, marker: str, color: str, label: str) -> PathCollection:
    return axes.scatter([], [], s=26, marker=marker, color=color, linewidths=0, label=label)
