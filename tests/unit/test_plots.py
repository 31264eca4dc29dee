"""Figures are drawn from what the evaluator and the training loop give, and written the same each time."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from PIL import Image

from qdformer import plots
from qdformer.evaluation import Picture

CLASSES = SimpleNamespace(names=tuple(f"class-{index}" for index in range(1, 25)), unseen=(True, False) * 12)


def picture(frames=3, height=32, width=48):
    random = np.random.default_rng(0)
    labels = np.zeros((frames, height, width), np.uint8)
    labels[:, 5:20, 5:30] = 7
    labels[-1] = 255
    return Picture(
        uid="clip_0",
        images_THWC=random.integers(0, 256, (frames, height, width, 3), dtype=np.uint8),
        truth_THW=labels,
        prediction_THW=np.roll(labels, 3, axis=2) % 255,
        heard_TC=np.eye(24)[np.arange(frames) * 2 + 6] * 0.75,
    )


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_class_colours_are_far_apart_and_do_not_depend_on_their_number():
    colours = plots.class_colours(70)
    assert colours.shape == (71, 3) and (colours[0] == 0).all() and colours.min() >= 0 and colours.max() <= 1
    assert np.array_equal(colours[:25], plots.class_colours(24))
    for count, least in ((24, 0.2), (70, 0.09)):
        apart = np.linalg.norm(colours[1 : count + 1, None] - colours[None, 1 : count + 1], axis=-1)
        assert apart[~np.eye(count, dtype=bool)].min() > least


def test_picture_grid_names_what_is_seen_and_heard():
    shown = texts(plots.picture_grid([picture(), picture(frames=2)], CLASSES))
    assert shown.count("clip_0") == 2 and "class-7" in shown
    assert "class-7 0.75" in shown and "class-9 0.75" in shown
    assert "nothing heard" in texts(plots.picture_grid([picture()], CLASSES, heard_from=0.8))
    with pytest.raises(ValueError, match="at least one clip"):
        plots.picture_grid([], CLASSES)


def test_overlay_marks_objects_and_fades_what_is_not_labelled():
    image, labels = np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), np.uint8)
    labels[4:12, 4:12], labels[16:] = 1, 255
    drawn = plots.overlay(image, labels, plots.class_colours(1)).astype(int)
    assert np.ptp(drawn[0, 0]) == 0 and np.ptp(drawn[8, 8]) > 30
    assert (drawn[4, 4] > drawn[8, 8]).all()
    assert drawn[18, 5].min() > 200


def test_robustness_curve_orders_conditions_and_names_controls():
    names = ("clean", "snr20", "snr-5", "snr0", "shuffled", "silence")
    summaries = {name: {"miou_dataset": 0.1 * index, "davis_jf": 0.05} for index, name in enumerate(names, 1)}
    intervals = {
        name: {key: {"low": value - 0.02, "high": value + 0.02} for key, value in scores.items()}
        for name, scores in summaries.items()
    }
    figure = plots.robustness_curve(summaries, intervals)
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert ticks == ["−5", "0", "20", "clean"]
    assert {"shuffled 0.500", "silence 0.600"} <= set(texts(figure))
    assert plots.robustness_curve({"clean": summaries["clean"]}, keys=["davis_jf"]).axes


def test_training_curves_leave_out_what_was_not_measured():
    history = [{"epoch": epoch, "total": 3 / epoch, "mask": 2 / epoch, "dice": 1 / epoch, "learning_rate": 1e-4}
               for epoch in (1, 2, 3)]  # fmt: skip
    figure = plots.training_curves(history)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert [title for title in titles if title] == ["total loss", "losses", "learning rate"]
    assert plots.training_curves(history[:1]).axes
    with pytest.raises(ValueError, match="at least one epoch"):
        plots.training_curves([])


def test_class_bars_tell_seen_from_unseen_and_name_absent_classes():
    per_class = pandas.DataFrame(
        {
            "id": range(4),
            "name": ["background", "dog", "bell", "drum"],
            "unseen": [False, False, True, True],
            "iou": [0.9, 0.5, 0.25, np.nan],
        }
    )
    axes = plots.class_bars(per_class).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bell", "dog"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["seen, mean 0.500", "unseen, mean 0.250"]
    assert re.search("never .*: drum", axes.get_xlabel())


def test_saved_figures_are_the_same_bytes(tmp_path):
    one, other = (
        plots.save(plots.picture_grid([picture()], CLASSES), tmp_path / name / "grid.png").read_bytes() for name in "ab"
    )
    assert one == other
    with Image.open(tmp_path / "a" / "grid.png") as image:
        assert image.width > 300 and image.height > 300


def test_importing_does_not_load_matplotlib():
    code = "import sys, qdformer.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_spectrograms_have_axes_in_seconds_and_hertz():
    rate = 16000
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate)
    figure = plots.spectrograms({"clip": tone, "noise": np.zeros(2 * rate)}, rate, "a title")
    upper, lower, colours = figure.axes
    assert [axes.get_title(loc="left") for axes in (upper, lower)] == ["clip", "noise"]
    assert lower.get_xlabel() == "s" and upper.get_ylabel() == "Hz" and colours.get_ylabel() == "dB of full scale"
    assert upper.get_xlim() == (0, 2) and upper.get_ylim()[1] == rate / 2
    assert [label.get_text() for label in upper.get_yticklabels()][-1] == "8\u2009000"
    level_FT = upper.collections[0].get_array()
    hertz = np.fft.rfftfreq(512, 1 / rate)
    assert hertz[level_FT[:, 100].argmax()] == 1000
    assert level_FT[:, 100].max() == pytest.approx(20 * np.log10(0.5), abs=0.1)
    assert lower.collections[0].get_array().max() == -120
    assert figure.get_suptitle() == "a title"
