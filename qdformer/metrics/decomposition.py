"""How well the audio is decomposed into its sources: the sounding classes of each frame, and the tokens that hold them.

The truth of a frame are its *sources*: the classes that sound in it and are visible, which are those in its label map.
Two accumulators measure a test set, clip by clip: `SoundingScores` compares class probabilities with the sources, for
any method or control; `TokenScores` measures the tokens, codes and queries of a model that has them. A metric is NaN
where it is undefined: no frame has so many sources, or the model has no such tokens.

Shapes: F frames of one clip, C object classes, N tokens or queries, D token dimensions, K codes, S sources,
R resamples, U thresholds.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator
from qdformer.metrics.semantic import nanmean
from qdformer.utils.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_SOURCES = 3
"""The metrics by number of sources are reported for frames with 1 to this many."""
EXACT_METRICS = tuple(f"sounding_exact_{count}" for count in range(1, MAX_SOURCES + 1))
SOUNDING_METRICS = (*EXACT_METRICS, "sounding_map")
_CODE_METRICS = tuple(f"codes_{count}" for count in range(1, MAX_SOURCES + 1))
TOKEN_METRICS = ("token_cosine_clip", "token_cosine_frame", *_CODE_METRICS, "code_nmi", "source_token_share")
_TOKEN_RATIOS = tuple(key for key in TOKEN_METRICS if key != "code_nmi")


def frame_sources(labels_FHW: np.ndarray, classes: int) -> np.ndarray:
    """The sources of each frame, bool [F, C], from label maps with class ids 0..C or 255 (not labeled)."""
    present_FC = np.zeros((len(labels_FHW), classes), bool)
    for present_C, labels_HW in zip(present_FC, labels_FHW, strict=True):
        ids = np.flatnonzero(np.bincount(labels_HW.ravel(), minlength=IGNORE_INDEX + 1)[:IGNORE_INDEX])
        present_C[ids[ids > 0] - 1] = True
    return present_FC


def exact(class_probs_FC: np.ndarray, present_FC: np.ndarray) -> np.ndarray:
    """Whether the k classes with the highest probabilities are the k sources of the frame, bool [F]; True for k = 0.

    Of equal probabilities, that of the smaller class id counts as the higher one.
    """
    rank_FC = np.argsort(np.argsort(-class_probs_FC, axis=1, kind="stable"), axis=1)
    return ((rank_FC < present_FC.sum(axis=1, keepdims=True)) == present_FC).all(axis=1)


def average_precision(scores_F: np.ndarray, positive_F: np.ndarray) -> float:
    """Mean precision at the scores of the positive frames, as scikit-learn's; NaN without a positive frame."""
    clip_F = np.zeros(len(scores_F), np.int64)
    return float(_average_precision(scores_F, positive_F, clip_F, np.ones((1, 1)))[0])


def mean_cosine(tokens_ND: np.ndarray) -> np.ndarray:
    """Mean cosine between different tokens, from [..., N, D] to [...]: 1 if all are parallel, NaN for one token."""
    N = tokens_ND.shape[-2]
    tokens_ND = tokens_ND.astype(np.float64)
    unit_ND = tokens_ND / np.maximum(np.linalg.norm(tokens_ND, axis=-1, keepdims=True), 1e-12)
    total = np.square(unit_ND.sum(axis=-2)).sum(axis=-1) - np.square(unit_ND).sum(axis=(-2, -1))
    return total / (N * (N - 1)) if N > 1 else np.full(total.shape, np.nan)


def different_codes(codes_FN: np.ndarray) -> np.ndarray:
    """The number of different codes among the tokens of each frame: int64 [F]."""
    ordered_FN = np.sort(codes_FN, axis=1)
    return 1 + (ordered_FN[:, 1:] != ordered_FN[:, :-1]).sum(axis=1)


def assign_queries(query_probs_FNC: np.ndarray, present_FC: np.ndarray) -> np.ndarray:
    """Assign each source a query of its frame, one to one, so that the sum of the class probabilities is highest.

    `query_probs_FNC` has C + 1 classes, the last one "no object". Returns one row per assigned source, int64 [S, 3]:
    frame, class (0..C-1) and query. In a frame with more sources than queries, some sources have no query.
    """
    from scipy.optimize import linear_sum_assignment

    rows: list[tuple[int, int, int]] = []
    for frame, (probs_NC, present_C) in enumerate(zip(query_probs_FNC, present_FC, strict=True)):
        sources = np.flatnonzero(present_C)
        queries, columns = linear_sum_assignment(probs_NC[:, sources], maximize=True)
        rows += [(frame, *pair) for pair in sorted(zip(sources[columns], queries, strict=True))]
    return np.array(rows, np.int64).reshape(-1, 3)


def normalized_mutual_information(counts_CK: np.ndarray) -> float:
    """Mutual information of classes and codes over the mean of their entropies, as scikit-learn's.

    `counts_CK` holds the number of pairs. NaN if fewer than two classes occur, for then no code can tell them apart.
    """
    return float(_normalized_mutual_information(np.asarray(counts_CK, np.float64)[None])[0])


class SoundingScores(ClipAccumulator):
    """`SOUNDING_METRICS` of a test set: the probabilities of the classes against the sources of each frame.

    `sounding_exact_k`: the fraction of the frames with exactly k sources whose k highest probabilities are those of the
    sources. Undefined (NaN) for k >= C, where nothing else could be predicted. `sounding_map`: the average precision of
    a class over all frames, averaged over the classes that are a source in at least one frame.
    """

    _KEPT = (*ClipAccumulator._KEPT, "_frames")

    def __init__(self, classes: int) -> None:
        super().__init__(2 * MAX_SOURCES)
        self.classes = classes
        self._frames = array("d")  # (index, frame, present or not of C classes, C probabilities)

    def update(self, class_probs_FC: np.ndarray, present_FC: np.ndarray, *, index: int | None = None) -> None:
        """Add the class probabilities and the sources (bool) of a clip at position `index` (default: the next)."""
        sources_F = present_FC.sum(axis=1)
        counted_SF = sources_F == np.arange(1, MAX_SOURCES + 1)[:, None]
        counted_SF[self.classes - 1 :] = False
        hits_SF = counted_SF & exact(class_probs_FC, present_FC)
        index = self._add([*hits_SF.sum(axis=1), *counted_SF.sum(axis=1)], index)
        place_F2 = np.stack([np.full(len(sources_F), index), np.arange(len(sources_F))], axis=1)
        self._frames.extend(np.concatenate([place_F2, present_FC, class_probs_FC], axis=1).ravel())

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`SOUNDING_METRICS` of each resample: float64 [R]."""
        counts_RN = resample_counts(indices_RN, len(self))
        frames = _once(np.array(self._frames).reshape(-1, 2 + 2 * self.classes))
        clip_F = np.searchsorted(np.unique(self._indices), frames[:, 0])
        present_FC, scores_FC = frames[:, 2 : 2 + self.classes] > 0, frames[:, 2 + self.classes :]
        precision_RC = np.stack(
            [
                _average_precision(scores_FC[:, label], present_FC[:, label], clip_F, counts_RN)
                for label in range(self.classes)
            ],
            axis=1,
        )
        return {**_ratios(EXACT_METRICS, counts_RN @ self._records()), "sounding_map": nanmean(precision_RC)}


class TokenScores(ClipAccumulator):
    """`TOKEN_METRICS` of a test set; those for which a model has no tokens, codes or queries are NaN.

    `token_cosine_clip`: mean cosine between different tokens of a clip. `token_cosine_frame`: the same for the tokens
    of a frame, over the frames with two or more sources. `codes_k`: mean number of different codes in the frames with
    exactly k sources. `code_nmi`: normalized mutual information of the classes of the sources and the codes of their
    queries. `source_token_share`: fraction of the sources whose query predicts them; see `assign_queries`.
    """

    _KEPT = (*ClipAccumulator._KEPT, "_pairs")

    def __init__(self) -> None:
        super().__init__(2 * len(_TOKEN_RATIOS))
        self._pairs = array("q")  # (index, frame, class, code) of each source that has a query

    def update(
        self,
        present_FC: np.ndarray,
        *,
        tokens_ND: np.ndarray | None = None,
        local_tokens_FND: np.ndarray | None = None,
        codes_FN: np.ndarray | None = None,
        query_probs_FNC: np.ndarray | None = None,
        index: int | None = None,
    ) -> None:
        """Add a clip with its sources `present_FC` (bool) at position `index` (default: the next).

        `tokens_ND`: the tokens of the clip before quantization. `local_tokens_FND`: those of its frames. `codes_FN`:
        the code of each token in each frame. `query_probs_FNC`: the class probabilities of the query of each token in
        each frame, the last of C + 1 classes is "no object".
        """
        sources_F = present_FC.sum(axis=1)
        measured: dict[str, np.ndarray] = {}
        if tokens_ND is not None:
            measured["token_cosine_clip"] = mean_cosine(tokens_ND[None])
        if local_tokens_FND is not None:
            measured["token_cosine_frame"] = mean_cosine(local_tokens_FND[sources_F >= 2])
        if codes_FN is not None:
            numbers_F = different_codes(codes_FN)
            measured |= {key: numbers_F[sources_F == count] for count, key in enumerate(_CODE_METRICS, start=1)}
        pairs = np.empty((0, 3), np.int64)
        if query_probs_FNC is not None:
            pairs = assign_queries(query_probs_FNC, present_FC)
            frames, labels, queries = pairs.T
            own = np.zeros(int(sources_F.sum()))
            own[: len(pairs)] = query_probs_FNC.argmax(axis=2)[frames, queries] == labels
            measured["source_token_share"] = own
        defined = [measured[key][~np.isnan(measured[key])] if key in measured else () for key in _TOKEN_RATIOS]
        index = self._add([*map(np.sum, defined), *map(len, defined)], index)
        if codes_FN is not None:
            codes = codes_FN[pairs[:, 0], pairs[:, 2]]
            self._pairs.extend(np.stack([np.full(len(pairs), index), *pairs[:, :2].T, codes], axis=1).ravel())

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`TOKEN_METRICS` of each resample: float64 [R]."""
        counts_RN = resample_counts(indices_RN, len(self))
        ratios = _ratios(_TOKEN_RATIOS, counts_RN @ self._records())
        return {key: ratios[key] if key in ratios else self._code_nmi(counts_RN) for key in TOKEN_METRICS}

    def _code_nmi(self, counts_RN: np.ndarray) -> np.ndarray:
        from scipy.sparse import csr_array

        pairs = np.array(self._pairs).reshape(-1, 4)
        if not len(pairs):
            return np.full(len(counts_RN), np.nan)
        _, first = np.unique(pairs[:, :3], axis=0, return_index=True)  # a clip counts once
        pairs = pairs[first]
        clips = np.searchsorted(np.unique(self._indices), pairs[:, 0])
        labels, label_of = np.unique(pairs[:, 2], return_inverse=True)
        codes, code_of = np.unique(pairs[:, 3], return_inverse=True)
        shape = (counts_RN.shape[1], len(labels) * len(codes))
        cells = csr_array((np.ones(len(pairs)), (clips, label_of * len(codes) + code_of)), shape)
        return _normalized_mutual_information((counts_RN @ cells).reshape(-1, len(labels), len(codes)))


def _once(rows: np.ndarray) -> np.ndarray:
    """The rows in the order of their first two columns, of which each pair counts once."""
    _, first = np.unique(rows[:, :2], axis=0, return_index=True)
    return rows[first]


def _ratios(keys: Iterable[str], sums_RS: np.ndarray) -> dict[str, np.ndarray]:
    """The quotients of the first half of the columns, in the order of `keys`, and the second half."""
    totals_RS, numbers_RS = np.split(sums_RS, 2, axis=1)
    return dict(zip(keys, (totals_RS / np.where(numbers_RS > 0, numbers_RS, np.nan)).T, strict=True))


def _average_precision(
    scores_F: np.ndarray, positive_F: np.ndarray, clip_F: np.ndarray, counts_RN: np.ndarray
) -> np.ndarray:
    """Average precision in resamples of N clips, float64 [R], for frames that belong to the clips `clip_F`.

    The thresholds are the different scores of the positive frames; frames of equal score pass a threshold together.
    """
    from scipy.sparse import csr_array

    thresholds_U = -np.unique(-scores_F[positive_F])
    passed_F = np.searchsorted(-thresholds_U, -scores_F)  # the highest threshold that the frame reaches
    kept_F = passed_F < len(thresholds_U)

    def frames_of_clips(chosen_F: np.ndarray) -> csr_array:
        cells = clip_F[chosen_F], passed_F[chosen_F]
        return csr_array((np.ones(len(cells[0])), cells), (counts_RN.shape[1], len(thresholds_U)))

    frames_RU, hits_RU = (counts_RN @ frames_of_clips(chosen_F) for chosen_F in (kept_F, positive_F))
    precision_RU = hits_RU.cumsum(axis=1) / np.maximum(frames_RU.cumsum(axis=1), 1)
    positives_R = hits_RU.sum(axis=1)
    return (hits_RU * precision_RU).sum(axis=1) / np.where(positives_R > 0, positives_R, np.nan)


def _normalized_mutual_information(counts_RCK: np.ndarray) -> np.ndarray:
    of_classes_R, of_codes_R, joint_R = (
        _entropy(counts_R) for counts_R in (counts_RCK.sum(axis=2), counts_RCK.sum(axis=1), counts_RCK)
    )
    several_R = (counts_RCK.sum(axis=2) > 0).sum(axis=1) > 1
    shared_R = (of_classes_R + of_codes_R - joint_R).clip(min=0)
    return shared_R / np.where(several_R, (of_classes_R + of_codes_R) / 2, np.nan)


def _entropy(counts: np.ndarray) -> np.ndarray:
    """The entropy of each of R distributions in nats, from counts [R, ...]."""
    from scipy.special import xlogy

    counts = counts.reshape(len(counts), -1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return -xlogy(share, share).sum(axis=1)
