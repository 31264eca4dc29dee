"""Forms of masks, against vectors made by hand, and captions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qdformer.inference.captions import Captions
from qdformer.inference.masks import bounding_box, davis_palette, decode_rle, encode_rle, write_label_map


def test_rle_counts_run_down_the_columns_and_begin_with_zeros():
    mask = np.array([[0, 0, 1], [1, 0, 1]], bool)  # columns: 0 1, 0 0, 1 1
    assert encode_rle(mask) == {"size": [2, 3], "counts": [1, 1, 2, 2]}
    mask = np.array([[1, 1], [1, 0], [0, 0]], bool)  # columns: 1 1 0, 1 0 0; the first run of zeros is empty
    assert encode_rle(mask) == {"size": [3, 2], "counts": [0, 2, 1, 1, 2]}
    assert encode_rle(np.zeros((2, 2), bool))["counts"] == [4]
    assert encode_rle(np.ones((2, 2), bool))["counts"] == [0, 4]


def test_rle_is_decoded_to_the_same_mask():
    for seed in range(5):
        mask = np.random.default_rng(seed).random((7, 11)) < 0.4
        assert np.array_equal(decode_rle(encode_rle(mask)), mask)
    with pytest.raises(ValueError, match="sum to 3; expected 2 x 2"):
        decode_rle({"size": [2, 2], "counts": [1, 2]})


def test_bounding_box_of_a_mask():
    mask = np.zeros((10, 20), bool)
    mask[2, 5] = mask[4, 9] = True
    assert bounding_box(mask) == (5, 2, 5, 3)


def test_label_maps_keep_ids_and_have_the_palette_of_davis(tmp_path):
    labels = np.array([[0, 1, 2], [3, 24, 255]], np.uint8)
    write_label_map(tmp_path / "a.png", labels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), labels)
        colors = np.asarray(image.convert("RGB"))
    assert colors[0].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert colors[1, 0].tolist() == [128, 128, 0] and colors[1, 2].tolist() == [224, 224, 192]
    assert len(np.unique(davis_palette(), axis=0)) == 256


def test_captions_join_neighboring_seconds():
    captions = Captions()
    for second, scores in enumerate([{"dog": 0.5}, {"dog": 0.7, "a<b": 1.0}, {}, {"dog": 0.9}]):
        captions.add(second, second + 1, scores)
    captions.add(3661, 3662.5, {"dog": 0.25})
    assert captions.text() == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:02.000\ndog 0.60\n\n"
        "00:00:01.000 --> 00:00:02.000\na&lt;b 1.00\n\n"
        "00:00:03.000 --> 00:00:04.000\ndog 0.90\n\n"
        "01:01:01.000 --> 01:01:02.500\ndog 0.25\n"
    )
    assert Captions().text() == "WEBVTT\n"
