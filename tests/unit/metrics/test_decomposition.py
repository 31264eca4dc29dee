"""The metrics of decomposition: examples by hand, scikit-learn as reference, merging and resampling."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, normalized_mutual_info_score

from qdformer.metrics import SoundingScores, TokenScores, bootstrap_indices
from qdformer.metrics.decomposition import (
    SOUNDING_METRICS,
    TOKEN_METRICS,
    assign_queries,
    average_precision,
    different_codes,
    exact,
    frame_sources,
    mean_cosine,
    normalized_mutual_information,
)

CLASSES, QUERIES, CODES, DIM = 5, 3, 7, 4


def random_clip(random, frames=4):
    """Everything that is measured of a clip; probabilities are coarse, so that some are equal."""
    sources = np.array([random.permutation(CLASSES) < random.integers(0, 4) for _ in range(frames)])
    return {
        "class_probs_FC": random.integers(0, 8, (frames, CLASSES)) / 8,
        "present_FC": sources,
        "tokens_ND": random.normal(size=(QUERIES, DIM)).astype(np.float32),
        "local_tokens_FND": random.normal(size=(frames, QUERIES, DIM)).astype(np.float32),
        "codes_FN": random.integers(0, CODES, (frames, QUERIES)),
        "query_probs_FNC": random.dirichlet(np.ones(CLASSES + 1), (frames, QUERIES)),
    }


def measured(clips):
    """Accumulators of the clips, given by index."""
    sounding, tokens = SoundingScores(CLASSES), TokenScores()
    for index, clip in clips:
        values = dict(clip)
        sounding.update(values.pop("class_probs_FC"), values["present_FC"], index=index)
        tokens.update(**values, index=index)
    return sounding, tokens


def values_of(accumulator):
    return {key: values[0] for key, values in accumulator.compute(accumulator.all_indices).items()}


def test_sources_are_the_classes_of_the_label_map():
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[0, 0], labels[0, 1], labels[1] = 2, 255, 255
    labels[2, 0, 0], labels[2, 3, 3] = 1, 3
    assert frame_sources(labels, 3).tolist() == [[False, True, False], [False] * 3, [True, False, True]]
    assert frame_sources(labels.astype(np.int64), 3).tolist() == frame_sources(labels, 3).tolist()


def test_exact_compares_as_many_classes_as_there_are_sources():
    probs = np.array([[0.9, 0.8, 0.1, 0.2], [0.9, 0.8, 0.1, 0.2], [0.9, 0.8, 0.1, 0.2], [0.1, 0.1, 0.1, 0.1]])
    present = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    assert exact(probs, present).tolist() == [True, False, False, True]


def test_sounding_metrics_by_hand():
    scores = SoundingScores(4)
    scores.update(np.array([[0.9, 0.3, 0.2, 0.1], [0.5, 0.6, 0.2, 0.1]]), np.array([[1, 0, 0, 0], [1, 0, 0, 0]], bool))
    scores.update(np.array([[0.1, 0.8, 0.7, 0.2], [0.6, 0.1, 0.1, 0.3]]), np.array([[0, 1, 1, 0], [0, 0, 0, 0]], bool))
    # Class 1: frames in the order 0.9 (+), 0.6, 0.5 (+), 0.1; the only positive frames of classes 2 and 3 come first.
    expected = {"sounding_exact_1": 1 / 2, "sounding_exact_2": 1, "sounding_map": ((1 + 2 / 3) / 2 + 1 + 1) / 3}
    assert values_of(scores) == pytest.approx(expected | {"sounding_exact_3": np.nan}, nan_ok=True)
    assert tuple(values_of(scores)) == SOUNDING_METRICS


def test_all_classes_of_a_data_set_cannot_be_predicted_wrongly():
    scores = SoundingScores(1)
    scores.update(np.array([[0.9], [0.2], [0.3]]), np.array([[True], [False], [True]]))
    assert np.isnan(values_of(scores)["sounding_exact_1"]) and values_of(scores)["sounding_map"] == 1


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    scores, positive = random.integers(0, 9, 40) / 9, random.random(40) < 0.3
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores))
    assert average_precision(scores, np.ones(40, bool)) == 1
    assert np.isnan(average_precision(scores, np.zeros(40, bool)))


def test_mean_over_classes_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    clips = [random_clip(random) for _ in range(6)]
    for clip in clips:
        clip["present_FC"][:, 2] = False
    probs, present = (np.concatenate([clip[key] for clip in clips]) for key in ("class_probs_FC", "present_FC"))
    expected = [average_precision_score(present[:, label], probs[:, label]) for label in (0, 1, 3, 4)]
    assert values_of(measured(enumerate(clips))[0])["sounding_map"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("seed", range(5))
def test_mutual_information_is_that_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    labels, codes = random.integers(0, 4, 60), random.integers(0, 6, 60)
    codes = np.where(random.random(60) < 0.5, labels, codes)
    counts = np.zeros((5, 8))  # one class and two codes do not occur
    np.add.at(counts, (labels, codes), 1)
    expected = normalized_mutual_info_score(labels, codes)
    assert 0.1 < expected < 0.9 and normalized_mutual_information(counts) == pytest.approx(expected)
    assert normalized_mutual_information(np.diag([3, 1, 2])) == pytest.approx(1)
    assert normalized_mutual_information([[3, 0], [2, 0]]) == 0  # one code for two classes
    assert np.isnan(normalized_mutual_information([[3, 2], [0, 0]]))


def test_cosine_of_different_tokens():
    tokens = np.array([[[1, 0], [0, 2]], [[1, 1], [3, 3]], [[1, 0], [-1, 0]]], np.float32)
    assert mean_cosine(tokens) == pytest.approx([0, 1, -1])
    three = np.array([[1.0, 0], [0, 1], [1, 1]])
    assert mean_cosine(three[None]) == pytest.approx([(0 + 2 * np.sqrt(0.5)) / 3])
    assert np.isnan(mean_cosine(tokens[:, :1])).all()


def test_different_codes_of_a_frame():
    assert different_codes(np.array([[4, 4, 4], [1, 2, 1], [3, 1, 2]])).tolist() == [1, 2, 3]


def test_sources_are_assigned_to_queries_one_to_one():
    probs = np.array(
        [
            [[0.6, 0.3, 0.0, 0.1], [0.5, 0.0, 0.0, 0.5]],  # the first query has both classes: class 1 gets the other
            [[0.1, 0.1, 0.1, 0.7], [0.2, 0.3, 0.4, 0.1]],
            [[0.1, 0.1, 0.1, 0.7], [0.2, 0.3, 0.4, 0.1]],
        ]
    )
    present = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    rows = assign_queries(probs, present).tolist()
    assert rows[:2] == [[0, 0, 1], [0, 1, 0]] and len(rows) == 4  # two of the three sources of the last frame
    assert assign_queries(probs, present & False).shape == (0, 3)


def test_token_metrics_by_hand():
    scores = TokenScores()
    present = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    probs = np.full((3, 2, 4), 0.1)
    probs[0, 0, 0], probs[0, 1, 1], probs[1, 0, 0], probs[1, 1, 3] = 0.7, 0.7, 0.3, 0.7
    probs[1, 0, 1] = 0.5  # the likeliest class of the query of the second frame's source is another
    scores.update(
        present,
        tokens_ND=np.array([[1, 0], [1, 0]]),
        local_tokens_FND=np.array([[[1, 0], [0, 1]], [[1, 0], [1, 0]], [[1, 0], [1, 0]]]),
        codes_FN=np.array([[5, 6], [5, 5], [5, 5]]),
        query_probs_FNC=probs,
    )
    assert values_of(scores) == pytest.approx(
        {
            "token_cosine_clip": 1,
            "token_cosine_frame": 0,
            "codes_1": 1,
            "codes_2": 2,
            "codes_3": np.nan,
            "code_nmi": 1,
            "source_token_share": 2 / 3,
        },
        nan_ok=True,
    )


def test_source_without_a_query_has_no_token():
    scores = TokenScores()
    scores.update(np.array([[True, True]]), query_probs_FNC=np.array([[[0.7, 0.2, 0.1]]]))
    assert values_of(scores)["source_token_share"] == 0.5


def test_metrics_of_absent_tokens_are_undefined():
    scores = TokenScores()
    scores.update(np.array([[True, True]]))
    scores.update(np.array([[True, False]]))
    assert tuple(values_of(scores)) == TOKEN_METRICS and np.isnan(list(values_of(scores).values())).all()


@pytest.mark.parametrize("ranks", [2, 3])
def test_merged_parts_equal_a_single_pass(ranks):
    random = np.random.default_rng(1)
    clips = list(enumerate(random_clip(random, frames=2 + index % 3) for index in range(7)))
    parts = [measured([*clips[rank::ranks], clips[0]]) for rank in range(ranks)]  # clip 0 is in every part
    for one, first, *others in zip(measured(clips), *reversed(parts), strict=True):
        for other in others:
            first.merge(other)
        assert len(first) == 7 and values_of(first) == values_of(one)
        assert not np.isnan(list(values_of(one).values())).any()


def test_resampling_equals_measuring_the_drawn_clips():
    random = np.random.default_rng(2)
    clips = [random_clip(random) for _ in range(5)]
    (draws,) = bootstrap_indices(5, 20, seed=3)
    for kind, whole in enumerate(measured(enumerate(clips))):
        resampled = whole.compute(draws)
        for row, drawn in enumerate(draws):
            alone = values_of(measured(enumerate(clips[clip] for clip in drawn))[kind])
            assert {key: values[row] for key, values in resampled.items()} == pytest.approx(alone, nan_ok=True)
