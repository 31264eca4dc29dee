"""Figures are drawn from the output of the evaluator and the training loop, and equal figures have equal bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from PIL import Image

from qdformer.evaluation.result import Picture
from qdformer.evaluation.tokens import ClipTokens
from qdformer.reporting import plots
from qdformer.reporting.plots.colors import oklab, simulate_color_blindness

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
        class_probs_TC=np.eye(24)[np.arange(frames) * 2 + 6] * 0.75,
    )


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_class_colors_are_far_apart_and_do_not_depend_on_their_number():
    colors = plots.class_colors(70)
    assert colors.shape == (71, 3) and (colors[0] == 0).all() and colors.min() >= 0 and colors.max() <= 1
    assert np.array_equal(colors[:25], plots.class_colors(24))
    for count, least, least_dichromatic in ((24, 0.09, 0.05), (70, 0.04, 0.02)):
        own = colors[1 : count + 1]
        for seen, far in [
            (own, least),
            *((simulate_color_blindness(own, kind), least_dichromatic) for kind in ("protan", "deutan")),
        ]:
            places = oklab(seen)
            apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
            assert apart[~np.eye(count, dtype=bool)].min() > far


def test_picture_grid_names_labeled_and_predicted_classes():
    shown = texts(plots.picture_grid([picture(), picture(frames=2)], CLASSES))
    assert shown.count("clip_0") == 2 and "class-7" in shown
    assert "class-7 0.75" in shown and "class-9 0.75" in shown
    assert "no class" in texts(plots.picture_grid([picture()], CLASSES, threshold=0.8))
    with pytest.raises(ValueError, match="at least one clip"):
        plots.picture_grid([], CLASSES)


def test_overlay_tints_objects_and_fades_pixels_without_label():
    image, labels = np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), np.uint8)
    labels[4:12, 4:12], labels[16:] = 1, 255
    drawn = plots.overlay(image, labels, plots.class_colors(1)).astype(int)
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
    assert {"Shuffled sound 0.500", "Silence 0.600"} <= set(texts(figure))
    assert plots.robustness_curve({"clean": summaries["clean"]}, keys=["davis_jf"]).axes


def test_robustness_curves_compare_runs():
    def run(score, conditions):
        around = {"value": score, "low": score - 0.05, "high": score + 0.05}
        return {name: {"miou_dataset": around, "davis_jf": around} for name in conditions}

    runs = {"quantized": run(0.5, ("clean", "snr0", "snr-5")), "decomposed": run(0.3, ("clean", "snr0", "silence"))}
    figure = plots.robustness_curves(runs)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["\u22125", "0", "clean"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["quantized", "decomposed"]
    assert figure.axes[0].get_ylim()[1] == pytest.approx(0.605)
    lines = [line.get_xydata() for line in figure.axes[0].get_lines() if line.get_label() in runs]
    assert [line.tolist() for line in lines] == [[[-5, 0.5], [0, 0.5], [8, 0.5]], [[0, 0.3], [8, 0.3]]]
    with pytest.raises(ValueError, match="0 runs"):
        plots.robustness_curves({})


def test_confusion_matrix_shows_shares_of_the_truth():
    confusion = np.zeros((25, 25), np.int64)
    confusion[0, 0], confusion[3, 3], confusion[3, 5] = 900, 30, 10
    axes = plots.confusion_matrix(confusion, CLASSES).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["background", "class-1"]
    shown = axes.images[0].get_array()
    assert shown[3, 5] == 0.25 and shown[0, 0] == 1 and shown.mask[4].all()
    assert sorted(text.get_text() for text in axes.texts) == [".25", ".75", "1"]


def test_codebook_use_without_a_class_says_so():
    (text,) = plots.codebook_use(np.zeros((3, 8), int), CLASSES).texts
    assert text.get_text() == "No query predicts a class."


def test_codebook_use_puts_a_class_s_codes_together():
    use = np.zeros((24, 8), np.int64)
    use[1, 6], use[1, 2], use[4, 2], use[4, 0] = 9, 1, 2, 6
    axes = plots.codebook_use(use, CLASSES).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["6", "0", "2"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class-2", "class-5"]
    assert axes.images[0].get_array().tolist() == [[0.9, 0, 0.1], [0, 0.75, 0.25]]
    assert axes.get_title("left") == "Codes by class: 3 of 8 codes represent a class"


def test_token_map_shows_clips_before_and_tokens_after():
    random = np.random.default_rng(0)
    clips = [
        ClipTokens(f"clip{index}", random.random(16), random.random((3, 16)), np.array([index % 4, 0, 0]))
        for index in range(12)
    ]
    sounding = {clip.uid: ("class-1", "class-2") if index > 7 else ("class-3",) for index, clip in enumerate(clips)}
    figure = plots.token_map(clips, sounding, CLASSES)
    halves, whole = figure.axes[0].get_lines(), figure.axes[1].get_lines()
    before, after = (sum(len(dots.get_offsets()) for dots in axes.collections) for axes in figure.axes)
    assert (before + len(halves), after + len(whole)) == (12, 36)
    colors = {(dot.get_markerfacecolor(), dot.get_markerfacecoloralt()) for dot in halves}
    assert len(halves) == 4 and len(colors) == 1 and len(*colors) == 2  # the clips in which class-1 and class-2 sound
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[:3] == ["class-3", "class-1", "class-2"] and "M: clip with several sources" in named
    with pytest.raises(ValueError, match="2 clips for a map of tokens"):
        plots.token_map(clips[:2], sounding, CLASSES)


def test_training_curves_leave_out_panels_without_a_column():
    history = [{"epoch": epoch, "total": 3 / epoch, "mask": 2 / epoch, "dice": 1 / epoch, "learning_rate": 1e-4}
               for epoch in (1, 2, 3)]  # fmt: skip
    figure = plots.training_curves(history)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert [title for title in titles if title] == ["total loss", "losses", "learning rate"]
    assert plots.training_curves(history[:1]).axes
    history[2] |= {"val_total": 1.5, "val_miou_dataset": 0.3}  # validated after the last epoch only
    figure = plots.training_curves(history)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert [title for title in titles if title] == ["total loss", "losses", "validation, mIoU", "learning rate"]
    assert [len(axes.get_lines()) for axes in figure.axes[:3]] == [2, 2, 1]
    with pytest.raises(ValueError, match="at least one epoch"):
        plots.training_curves([])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("learning_rate", [1e-4, 0.0, float("nan")])
def test_one_epoch_draws_without_a_warning(tmp_path, learning_rate):
    history = [{"epoch": 1, "total": 3.0, "mask": 0.0, "token_similarity": 0.0, "learning_rate": learning_rate}]
    plots.save(plots.training_curves(history), tmp_path / "training.png")
    scores = {"miou_dataset": 0.0, "davis_jf": 0.0}
    plots.save(plots.robustness_curve({"clean": scores}), tmp_path / "robustness.png")


def test_the_legend_of_losses_covers_no_curve():
    history = [
        {"epoch": epoch, "total": 6, **{f"loss{index}": 1 + index / 10 for index in range(6)}} for epoch in (1, 2)
    ]
    figure = plots.training_curves(history)
    figure.draw_without_rendering()
    axes = figure.axes[1]
    bottom = axes.get_legend().get_window_extent().y0
    assert all(axes.transData.transform(line.get_xydata())[:, 1].max() < bottom for line in axes.get_lines())


TOKEN_LAYOUT = """
import hashlib, numpy
from qdformer.reporting.plots.tokens import _tsne_layout
random = numpy.random.default_rng(0)
points = random.standard_normal((40, 16)).astype("f4")[random.integers(0, 30, 60)]  # some are equal
print(hashlib.sha256(_tsne_layout(points).tobytes()).hexdigest())
"""


def test_token_layout_does_not_depend_on_blas_kernels_and_threads():
    machines = [{}, {"OPENBLAS_CORETYPE": "Sandybridge"}, {"OMP_NUM_THREADS": "3"}]
    run = [sys.executable, "-c", TOKEN_LAYOUT]
    layouts = {subprocess.check_output(run, env={**os.environ, **machine}) for machine in machines}
    assert len(layouts) == 1


def test_class_bars_separate_seen_from_unseen_and_name_absent_classes():
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
    code = "import sys, qdformer.reporting.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_spectrograms_have_axes_in_seconds_and_hertz():
    rate = 16000
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate)
    figure = plots.spectrograms({"clip": tone, "noise": np.zeros(2 * rate)}, rate, "a title")
    upper, lower, colorbar = figure.axes
    assert [axes.get_title(loc="left") for axes in (upper, lower)] == ["clip", "noise"]
    assert lower.get_xlabel() == "s" and upper.get_ylabel() == "Hz" and colorbar.get_ylabel() == "dB of full scale"
    assert upper.get_xlim() == (0, 2) and upper.get_ylim()[1] == rate / 2
    assert [label.get_text() for label in upper.get_yticklabels()][-1] == "8\u2009000"
    level_FT = upper.collections[0].get_array()
    hertz = np.fft.rfftfreq(512, 1 / rate)
    assert hertz[level_FT[:, 100].argmax()] == 1000
    assert level_FT[:, 100].max() == pytest.approx(20 * np.log10(0.5), abs=0.1)
    assert lower.collections[0].get_array().max() == -120
    assert figure.get_suptitle() == "a title"
