"""The timeline shows the classes that sound, and the spectrogram."""

from __future__ import annotations

import numpy as np
import pytest

from qdformer.reporting.timeline import BANDS, COLUMNS_PER_SECOND, Timeline, _band_levels, _band_of


def test_classes_with_a_mask_or_a_probability_are_shown():
    timeline = Timeline(["a", "b", "c", "d"])
    timeline.add(np.float32([0.1, 0.9, 0.0, 0.1]), [4], np.zeros(16000, np.float32), 16000)
    timeline.add(np.float32([0.1, 0.0, 0.2, 0.1]), [], np.zeros(16000, np.float32), 16000)
    assert timeline.shown() == [2, 4]
    figure = timeline.draw("clip.mp4")
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["b", "d"]
    assert figure.axes[1].get_xlim() == (0, 2)


def test_of_many_classes_the_likeliest_are_shown():
    timeline = Timeline([str(index) for index in range(30)])
    timeline.add(np.linspace(0.4, 0.9, 30, dtype=np.float32), [], np.zeros(8000, np.float32), 8000)
    assert timeline.shown() == list(range(19, 31))
    assert timeline.draw("x").axes[1].get_title(loc="left").endswith("the 12 likeliest of 30 classes")


def test_a_video_in_which_nothing_sounds_and_one_without_seconds():
    timeline = Timeline(["a"])
    with pytest.raises(ValueError, match="at least one second"):
        timeline.draw("x")
    timeline.add(np.float32([0.1]), [], np.zeros(16000, np.float32), 16000)
    assert [text.get_text() for text in timeline.draw("x").axes[1].texts] == ["no class sounds"]


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_lies_in_its_band(rate):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    levels = _band_levels(tone.astype(np.float32), rate)
    assert levels.shape == (COLUMNS_PER_SECOND, BANDS)
    assert abs(int(levels[10].argmax()) - float(_band_of(np.array(1000.0)))) < 1.5
    assert levels[10].max() == pytest.approx(-6, abs=1.5)
