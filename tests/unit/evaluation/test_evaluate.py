"""The evaluator on synthetic predictions: the frames that count, the tables, the errors."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from qdformer.evaluation.evaluate import EvaluationError, evaluate
from qdformer.evaluation.result import SCORES
from qdformer.evaluation.scores import negatives
from qdformer.metrics.decomposition import SOUNDING_METRICS, TOKEN_METRICS
from tests.helpers import PROJECT

CLASSES = SimpleNamespace(names=("dog", "bell", "drum"), unseen=(False, True, True))


@dataclass
class Batch:
    images_BTCHW: torch.Tensor
    labels_BTHW: torch.Tensor
    valid_BT: torch.Tensor
    labeled_BT: torch.Tensor
    uids: list[str]

    def rows(self, first, last):
        tensors = (self.images_BTCHW, self.labels_BTHW, self.valid_BT, self.labeled_BT)
        return Batch(*(values[first:last] for values in tensors), self.uids[first:last])


def drawn(clips=6, frames=3, size=24, seed=0):
    random = torch.Generator().manual_seed(seed)
    labels = torch.zeros(clips, frames, size, size, dtype=torch.int64)
    labels[:, :, 4:16, 4:12] = 1
    labels[1::2, 1:, 10:20, 10:20] = 2
    whole = torch.ones(clips, frames, dtype=torch.bool)
    images = torch.randint(0, 256, (clips, frames, 3, size, size), generator=random, dtype=torch.uint8)
    return Batch(images, labels, whole, whole.clone(), [f"clip{index}" for index in range(clips)])


def prediction_of(semantic, foreground, class_probs, output=None):
    return SimpleNamespace(
        semantic_BTHW=semantic, foreground_BTHW=foreground, class_probs_BTC=class_probs, output=output
    )


def blurred_truth(batch):
    """The truth moved by three pixels; the prediction of a clip does not depend on its batch."""
    semantic = torch.roll(batch.labels_BTHW.where(batch.labels_BTHW != 255, 0), 3, dims=-1)
    foreground = (semantic > 0) * 0.6 + batch.images_BTCHW[:, :, 0].float() / 255 * 0.4
    class_probs = torch.full((*semantic.shape[:2], 3), 0.5)
    return prediction_of(semantic, foreground, class_probs)


def perfect(batch):
    semantic = batch.labels_BTHW.where(batch.labels_BTHW != 255, 0)
    class_probs = torch.stack([(semantic == label).flatten(2).any(-1) for label in (1, 2, 3)], -1).float()
    return prediction_of(semantic, (semantic > 0).float(), class_probs)


def test_a_perfect_prediction():
    result = evaluate(perfect, [drawn()], CLASSES, bootstrap=50)
    assert list(result.summary) == [*SCORES, *SOUNDING_METRICS, *TOKEN_METRICS, "clips"]
    expected = dict.fromkeys(SCORES, pytest.approx(1)) | {"miou_per_frame": pytest.approx(0.75), "clips": 6}
    expected |= dict.fromkeys(TOKEN_METRICS) | {"sounding_exact_3": None}  # without tokens, or a frame with 3 sources
    expected |= dict.fromkeys(("sounding_exact_1", "sounding_exact_2", "sounding_map"), 1)
    assert result.summary == expected  # drum never occurs: 0 in AVSS's convention, left out of miou_dataset
    assert result.groups == {"miou_seen": 1, "miou_unseen": 1, "fscore_per_frame": pytest.approx(0.75)}
    assert result.intervals["miou_dataset"] == {"value": 1, "low": 1, "high": 1}
    json.dumps([result.summary, result.groups, result.intervals], allow_nan=False)


def test_batches_do_not_change_the_result():
    batch = drawn()
    whole = evaluate(blurred_truth, [batch], CLASSES, bootstrap=50)
    parts = evaluate(blurred_truth, (batch.rows(first, first + 1) for first in range(6)), CLASSES, bootstrap=50)
    assert whole.summary == parts.summary and whole.intervals == parts.intervals
    pandas.testing.assert_frame_equal(whole.per_clip, parts.per_clip)
    for key in SCORES:
        around = whole.intervals[key]
        assert 0 < around["low"] <= around["value"] <= around["high"] < 1, key


def test_padded_unlabeled_and_ignored_pixels_do_not_count():
    batch = drawn(clips=4, frames=4)
    alone = evaluate(blurred_truth, [batch.rows(0, 3)], CLASSES, bootstrap=20)

    longer = drawn(clips=4, frames=6)
    longer.images_BTCHW[:, :4], longer.labels_BTHW[:, :4] = batch.images_BTCHW, batch.labels_BTHW
    longer.labels_BTHW[:, 4] = 3
    longer.labels_BTHW[:, 5] = 255
    longer.valid_BT[:, 4] = False
    longer.labeled_BT[:2, 5] = False  # the others' last frame is labeled 255 throughout
    longer.labeled_BT[3] = False
    seen = []
    result = evaluate(blurred_truth, [longer.rows(0, 3), longer.rows(3, 4)], CLASSES, seen.append, bootstrap=20)
    assert result.summary == alone.summary and result.summary["clips"] == 3
    assert seen == [3, 1]
    pandas.testing.assert_frame_equal(result.per_clip, alone.per_clip)


def test_padding_to_a_larger_clip_changes_nothing():
    batch = drawn(clips=2)
    batch.labels_BTHW[:, :, 10:, 14:] = 1  # touches the frame's edges
    alone = evaluate(blurred_truth, [batch], CLASSES, bootstrap=20)
    larger = drawn(clips=2, size=64)
    larger.images_BTCHW[..., :24, :24] = batch.images_BTCHW
    larger.labels_BTHW[:] = 255
    larger.labels_BTHW[..., :24, :24] = batch.labels_BTHW

    def predict(padded):
        prediction = perfect(padded)
        inner = blurred_truth(batch)
        prediction.semantic_BTHW[..., :24, :24] = inner.semantic_BTHW
        prediction.semantic_BTHW[..., 24:] = 3
        prediction.foreground_BTHW[:] = 1
        prediction.foreground_BTHW[..., :24, :24] = inner.foreground_BTHW
        prediction.class_probs_BTC = inner.class_probs_BTC
        return prediction

    result = evaluate(predict, [larger], CLASSES, picture_uids=["clip1"], bootstrap=20)
    assert result.summary == alone.summary
    assert result.pictures[0].images_THWC.shape == (3, 24, 24, 3)


def test_tokens_and_queries_of_the_output_are_measured():
    def predict(batch):
        prediction = perfect(batch)
        clips, frames = batch.labels_BTHW.shape[:2]
        logits = torch.zeros(clips, frames, 2, 4)
        logits[:, :, 0, 0], logits[:, :, 1, 1] = 5, 5  # a query for dog and one for bell
        codes = torch.tensor([1, 6]).expand(clips, frames, 2)
        prediction.output = SimpleNamespace(
            class_logits_BTNC=logits,
            tokens_BND=torch.eye(2).expand(clips, 2, 2),
            local_tokens_BTND=torch.ones(clips, frames, 2, 2),
            quantization=SimpleNamespace(local_codes_BTN=codes, global_codes_BN=codes[:, 0]),
        )
        return prediction

    batch = drawn()
    result = evaluate(predict, [batch.rows(0, 4), batch.rows(4, 6)], CLASSES, bootstrap=20)
    expected = {"token_cosine_clip": 0, "token_cosine_frame": 1, "codes_1": 2, "codes_2": 2, "codes_3": None}
    expected |= {"code_nmi": 1, "source_token_share": 1}
    assert {key: result.summary[key] for key in TOKEN_METRICS} == pytest.approx(expected)
    assert result.intervals["code_nmi"] == {"value": 1, "low": None, "high": None}  # see `resample`


def test_class_scores_of_a_control():
    batch = drawn()
    silent = np.zeros((3, 3))
    control = {uid: [0.1, 0.9, 0.8] + silent for uid in batch.uids}
    class_scores = {"probe": control, "tracks": {"clip1": [0.9, 0.8, 0.1] + silent}, "none": {}}
    result = evaluate(perfect, [batch], CLASSES, class_scores=class_scores, bootstrap=20)
    values = result.summary
    assert values["sounding_exact_1"] == values["sounding_exact_2"] == 1
    assert values["probe_sounding_exact_1"] == values["probe_sounding_exact_2"] == 0
    assert values["tracks_sounding_exact_2"] == 1 and values["probe_sounding_map"] == pytest.approx((1 + 6 / 18) / 2)
    assert all(values[f"none_{key}"] is None for key in SOUNDING_METRICS)
    assert result.intervals["probe_sounding_map"]["low"] < values["probe_sounding_map"]


def manifest_of(batch, **columns):
    table = {"uid": batch.uids, "subset": "v1m", "classes": [("dog",)] * len(batch.uids), "off_screen": False}
    return pandas.DataFrame(table | columns)


def test_tables():
    result = evaluate(blurred_truth, [drawn()], CLASSES, manifest=manifest_of(drawn()), bootstrap=20)
    expected = ["uid", "subset", "classes", "sources", "off_screen", "unseen", "frames", *SCORES, "predicted_area"]
    assert list(result.per_clip) == expected
    assert result.per_clip["classes"].tolist() == ["dog", "dog_bell"] * 3
    assert result.per_clip["sources"].tolist() == [1, 2] * 3
    assert result.per_clip["unseen"].tolist() == [False, True] * 3
    assert set(result.per_clip["subset"]) == {"v1m"}
    assert result.summary["davis_j"] == pytest.approx(result.per_clip["davis_j"].mean())
    assert result.intervals["predicted_area"]["value"] == pytest.approx(result.per_clip["predicted_area"].mean())
    by_class = result.per_class.set_index("name")
    assert by_class.index.tolist() == ["background", "dog", "bell", "drum"]
    assert by_class["iou"].mean() == pytest.approx(result.summary["miou_dataset"])
    assert np.isnan(by_class.loc["drum", "iou"]) and by_class.loc["drum", "union"] == 0
    assert result.groups["miou_seen"] == by_class.loc["dog", "iou"]
    assert result.groups["miou_unseen"] == by_class.loc["bell", "iou"]
    assert result.confusion.shape == (4, 4) and result.confusion.sum() == 6 * 3 * 24 * 24
    assert result.confusion.diagonal().tolist() == by_class["intersection"].tolist()


def test_table_by_number_of_sources():
    batch = drawn()
    batch.labels_BTHW[0] = 0
    sounding = [(), ("dog", "bell"), ("dog",), ("dog", "bell", "drum"), ("dog",), ("dog", "bell")]
    off_screen = [True, False, True, False, False, False]
    manifest = manifest_of(batch, classes=sounding, off_screen=off_screen)
    result = evaluate(blurred_truth, [batch], CLASSES, manifest=manifest, bootstrap=20)
    table = result.per_source
    groups = list(zip(table["by"], table["group"], table["clips"], strict=True))
    expected = [("sources", "0", 1), ("sources", "1", 2), ("sources", "2", 2), ("sources", "3+", 1)]
    assert groups == [*expected, ("off_screen", "no", 4), ("off_screen", "yes", 2)]
    pair = evaluate(blurred_truth, [batch.rows(1, 2), batch.rows(5, 6)], CLASSES, bootstrap=20)
    row = table.iloc[2]
    for key in SCORES:
        assert (row[key], row[f"{key}_low"], row[f"{key}_high"]) == tuple(
            pair.intervals[key][end] for end in ("value", "low", "high")
        )
        np.testing.assert_array_equal(result.source_resamples["sources", "2"][key], pair.resamples[key])
    assert np.isnan(table.loc[0, "avsbench_f"]) and table.loc[0, "davis_j"] == 1


def test_clips_are_scored_in_the_order_of_the_manifest():
    batch = drawn(seed=3)
    clips = [batch.rows(index, index + 1) for index in range(6)]
    manifest = manifest_of(batch)
    straight = evaluate(blurred_truth, clips, CLASSES, manifest=manifest, bootstrap=30)
    mixed = evaluate(blurred_truth, clips[::-1] + clips[:1], CLASSES, manifest=manifest, bootstrap=30)
    assert mixed.summary == straight.summary and mixed.intervals == straight.intervals
    pandas.testing.assert_frame_equal(mixed.per_clip, straight.per_clip)


def test_clip_outside_of_the_manifest_is_an_error():
    with pytest.raises(EvaluationError, match="clip clip5: not in the manifest; expected one of its 5 clips"):
        evaluate(blurred_truth, [drawn()], CLASSES, manifest=manifest_of(drawn()).head(5), bootstrap=5)


def test_negatives():
    def nothing(batch):
        prediction = perfect(batch)
        return prediction_of(prediction.semantic_BTHW * 0, prediction.foreground_BTHW * 0, prediction.class_probs_BTC)

    batch = drawn()
    batch.labels_BTHW[0] = 0  # predicting nothing for a silent clip is correct
    clean, deaf, silent = (evaluate(predict, [batch], CLASSES, bootstrap=20) for predict in (perfect, perfect, nothing))
    table = negatives({"silence": silent, "noise": deaf, "clean": clean, "snr0": clean}).set_index("condition")
    assert table.index.tolist() == ["silence", "noise", "all"]
    share = clean.intervals["predicted_area"]["value"]
    assert table["fpr"].tolist() == pytest.approx([0, share, share / 2])
    assert table["fpr_frames"].tolist() == pytest.approx([0, 5 / 6, 5 / 12])
    assert table["g_miou"].tolist() == pytest.approx([1, 0, 2 / 3], abs=1e-6)
    assert (table["fpr_low"] <= table["fpr"]).all() and (table["fpr"] <= table["fpr_high"]).all()
    assert negatives({"clean": clean}).empty and negatives({"silence": silent}).empty
    assert list(negatives({"clean": clean})) == list(table.reset_index())


PROCESS = """
import pickle, sys
from torch import distributed
from tests.unit.evaluation.test_evaluate import CLASSES, blurred_truth, drawn, evaluate, manifest_of
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
batch = drawn(clips=7)
share = [batch.rows(index, index + 1) for index in [*range(rank, 7, 2), 0]]
pictures = ["clip1", "clip4"]
result = evaluate(blurred_truth, share, CLASSES, manifest=manifest_of(batch), picture_uids=pictures, bootstrap=30)
with open(out, "wb") as file:
    pickle.dump(result, file)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_metrics_of_one(tmp_path):
    store = tmp_path / "store"
    outs = [tmp_path / f"{rank}.pickle" for rank in range(2)]
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(store), str(outs[rank])], cwd=PROJECT)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    batch = drawn(clips=7)
    pictures = ["clip1", "clip4"]
    alone = evaluate(blurred_truth, [batch], CLASSES, manifest=manifest_of(batch), picture_uids=pictures, bootstrap=30)
    for out in outs:
        result = pickle.loads(out.read_bytes())
        assert result.summary == alone.summary and result.intervals == alone.intervals
        pandas.testing.assert_frame_equal(result.per_clip, alone.per_clip)
        pandas.testing.assert_frame_equal(result.per_source, alone.per_source)
        assert (result.confusion == alone.confusion).all()
        assert [picture.uid for picture in result.pictures] == pictures


def test_metrics_of_unseen_classes_are_undefined_without_them():
    result = evaluate(perfect, [drawn().rows(0, 1)], CLASSES, bootstrap=5)
    assert result.groups["miou_unseen"] is None
    assert result.intervals["miou_unseen"] == {"value": None, "low": None, "high": None}


def test_pictures_of_the_named_clips():
    batch = drawn()
    batch.valid_BT[4, 2] = False
    batch.labeled_BT[4, 1] = False
    result = evaluate(perfect, [batch], CLASSES, picture_uids=["clip4", "clip1"], bootstrap=5)
    assert [picture.uid for picture in result.pictures] == ["clip1", "clip4"]
    last = result.pictures[1]
    assert last.images_THWC.shape == (2, 24, 24, 3) and last.class_probs_TC.shape == (2, 3)
    assert (last.truth_THW[0] == batch.labels_BTHW[4, 0].numpy()).all() and (last.truth_THW[1] == 255).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: setattr(p, "semantic_BTHW", p.semantic_BTHW[..., :-1]), "semantic_BTHW has shape"),
        (lambda p: setattr(p, "semantic_BTHW", p.semantic_BTHW + 9), "class id outside 0..3"),
        (lambda p: setattr(p, "semantic_BTHW", p.semantic_BTHW.float()), "expected integers"),
        (lambda p: setattr(p, "foreground_BTHW", p.foreground_BTHW * torch.nan), "no NaN"),
        (lambda p: setattr(p, "foreground_BTHW", p.foreground_BTHW - 3), "lie in 0..1"),
        (lambda p: setattr(p, "class_probs_BTC", p.class_probs_BTC[..., :2]), "class_probs_BTC has shape"),
        (lambda p: setattr(p, "class_probs_BTC", p.class_probs_BTC + torch.nan), "class_probs_BTC must lie in 0..1"),
    ],
)
def test_unusable_predictions_are_errors(spoil, message):
    def predict(batch):
        prediction = perfect(batch)
        spoil(prediction)
        return prediction

    with pytest.raises(EvaluationError, match=f"clip0.*{message}"):
        evaluate(predict, [drawn()], CLASSES)


def test_unusable_labels_are_errors():
    batch = drawn()
    batch.labels_BTHW[2, 0, 0, 0] = 9
    with pytest.raises(EvaluationError, match="clip2: unknown class id 9"):
        evaluate(lambda batch: perfect(drawn()), [batch], CLASSES)
    batch.labeled_BT[:] = False
    with pytest.raises(EvaluationError, match="no clip has a labeled frame"):
        evaluate(lambda batch: perfect(drawn()), [batch], CLASSES)
