"""Targets, boxes, and the losses of hand-made predictions."""

from __future__ import annotations

import pytest
import torch

from qdformer.models import LayerOutput, QDFormerOutput
from qdformer.models.common.boxes import generalized_iou, masks_to_boxes
from qdformer.models.common.targets import build_targets
from qdformer.models.qdformer.criterion import Criterion
from qdformer.utils.constants import IGNORE_INDEX
from qdformer.utils.errors import InputError
from tests.helpers.model import CLASSES, LOSS, make_clips, make_model


def yes(B: int = 1, T: int = 2) -> torch.Tensor:
    return torch.ones(B, T, dtype=torch.bool)


def scene() -> torch.Tensor:
    """One clip of two frames: class 2 sounds in both, class 4 in the second."""
    labels = torch.zeros(1, 2, 16, 16, dtype=torch.int64)
    labels[0, :, 0:8, 0:8] = 2
    labels[0, 1, 8:16, 4:16] = 4
    return labels


def perfect(labels: torch.Tensor, queries: int = 3, sure: float = 30.0) -> QDFormerOutput:
    """Predictions with zero loss: query 1 predicts class 2, query 0 class 4, the others "no object"."""
    B, T = labels.shape[:2]
    H, W = labels.shape[2] // 4, labels.shape[3] // 4
    classes = torch.full((B, T, queries, CLASSES + 1), -sure)
    boxes = torch.full((B, T, queries, 4), 0.5)
    masks = torch.full((B, T, queries, H, W), -sure)
    classes[..., -1] = sure
    for query, label in ((1, 2), (0, 4)):
        seen = labels == label
        present = seen.flatten(2).any(-1)
        classes[:, :, query][present] = torch.where(torch.arange(CLASSES + 1) == label - 1, sure, -sure)
        boxes[:, :, query][present] = masks_to_boxes(seen)[present]
        masks[:, :, query] = torch.where(seen[..., ::4, ::4], sure, -sure)
    return QDFormerOutput(*(x.requires_grad_() for x in (classes, boxes, masks)))


def score(output: QDFormerOutput, labels: torch.Tensor, labeled: torch.Tensor | None = None, **changes):
    criterion = Criterion(LOSS.model_copy(update=changes), CLASSES)
    every_frame = yes(*labels.shape[:2])
    return criterion(output, labels, every_frame, every_frame if labeled is None else labeled)


def test_targets_of_a_scene():
    targets = build_targets(scene(), yes(), CLASSES)
    assert targets.classes_BG.tolist() == [[1, 3]]
    assert targets.present_BGT.tolist() == [[[True, True], [False, True]]]
    assert targets.boxes_BGT4[0, 0, 0].tolist() == [0.25, 0.25, 0.5, 0.5]
    assert targets.boxes_BGT4[0, 1, 1].tolist() == [0.625, 0.75, 0.75, 0.5]
    assert targets.masks_BGTP[0, 0, 0].view(4, 4)[:2, :2].eq(1).all() and targets.masks_BGTP[0, 0, 0].sum() == 4


def test_masks_at_odd_sizes_are_shares_of_their_blocks():
    labels = torch.zeros(1, 1, 6, 5, dtype=torch.int64)
    labels[..., :2, :] = 1
    targets = build_targets(labels, yes(1, 1), CLASSES)
    assert targets.masks_BGTP.flatten().tolist() == [0.5, 0.5, 0, 0]


def test_pixels_without_label_are_ignored():
    labels = scene()
    labels[0, 0, :4] = IGNORE_INDEX
    targets = build_targets(labels, torch.tensor([[True, False]]), CLASSES)
    assert targets.classes_BG.tolist() == [[1]]
    assert targets.weights_BTP[0, 0].tolist() == [0] * 4 + [1] * 12
    assert not targets.weights_BTP[0, 1].any()


def test_unknown_class_ids_are_named():
    labels = scene()
    labels[0, 0, 0, 0] = 7
    with pytest.raises(InputError, match="class id 7.*expected 0..4 or 255"):
        build_targets(labels, yes(), CLASSES)


def test_generalized_iou():
    a = torch.tensor([0.25, 0.25, 0.5, 0.5])
    assert float(generalized_iou(a, a)) == pytest.approx(1, abs=1e-5)
    assert float(generalized_iou(a, a + torch.tensor([0.5, 0.5, 0, 0]))) == pytest.approx(-0.5, abs=1e-5)
    assert float(generalized_iou(a, torch.tensor([0.5, 0.25, 0.5, 0.5]))) == pytest.approx(1 / 3, abs=1e-5)


def test_perfect_predictions_have_no_loss():
    losses = score(perfect(scene()), scene())
    assert set(losses) == {"cls", "l1", "giou", "mask", "dice", "total"}
    assert all(float(value.detach()) == pytest.approx(0, abs=2e-2) for value in losses.values())


def test_each_wrong_prediction_has_its_loss():
    best = {name: float(value.detach()) for name, value in score(perfect(scene()), scene()).items()}
    for name, spoil in {
        "cls": lambda o: o.class_logits_BTNC[0, 0, 0, 3].fill_(60),  # class 4 in the frame in which it is silent
        "mask": lambda o: o.mask_logits_BTNHW[0, 0, 0].fill_(2),
        "l1": lambda o: o.boxes_BTN4[0, 0, 1].fill_(0.4),
    }.items():
        output = perfect(scene())
        with torch.no_grad():
            spoil(output)
        assert float(score(output, scene())[name].detach()) > best[name] + 0.05


def test_the_order_of_the_queries_does_not_matter():
    output = perfect(scene(), sure=2.0)
    order = [2, 0, 1]
    moved = QDFormerOutput(
        output.class_logits_BTNC[:, :, order], output.boxes_BTN4[:, :, order], output.mask_logits_BTNHW[:, :, order]
    )
    first, second = score(output, scene()), score(moved, scene())
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_frames_without_ground_truth_do_not_count():
    labeled = torch.tensor([[True, False]])
    output = perfect(scene(), sure=2.0)
    first = score(output, scene(), labeled)["total"]
    with torch.no_grad():
        for x in (output.class_logits_BTNC, output.boxes_BTN4, output.mask_logits_BTNHW):
            x[:, 1] = 0.3
    torch.testing.assert_close(score(output, scene(), labeled)["total"], first)


def test_clips_without_objects_have_only_the_class_loss():
    output = perfect(scene(), sure=1.0)
    losses = score(output, torch.zeros_like(scene()))
    losses["total"].backward()
    assert torch.isfinite(losses["total"]) and float(losses["cls"].detach()) > 0
    assert float(losses["mask"].detach()) == float(losses["giou"].detach()) == 0
    assert output.class_logits_BTNC.grad.any()
    assert output.mask_logits_BTNHW.grad is not None  # distributed training needs a gradient of every parameter


def test_no_labeled_frame_at_all_is_finite():
    losses = score(perfect(scene()), scene(), torch.zeros(1, 2, dtype=torch.bool))
    assert float(losses["total"].detach()) == 0


def test_fewer_queries_than_targets():
    labels = scene()
    labels[0, :, 12:, :4] = 1
    model = make_model(num_prototypes=1)
    images, audio, _ = make_clips(clips=1, height=16, width=16)
    losses = score(model(images, audio), labels)
    losses["total"].backward()
    assert torch.isfinite(losses["total"])


def test_every_decoder_layer_is_scored():
    output = perfect(scene(), sure=2.0)
    output.auxiliary = [LayerOutput(output.class_logits_BTNC, output.boxes_BTN4, output.mask_logits_BTNHW)]
    losses = score(output, scene())
    last = sum(losses[name] for name in ("cls", "l1", "giou", "mask", "dice"))
    torch.testing.assert_close(losses["auxiliary"], last)
    assert "auxiliary" not in score(output, scene(), auxiliary=False)


@pytest.mark.parametrize("calibrate", [True, False])
def test_quantization_losses_are_equation_9(calibrate):
    """As the paper writes it: sums of squared norms over tokens i and frames t; here the mean of two clips."""
    images, audio, labels = make_clips(frames=3)
    model = make_model(calibrate=calibrate)
    output = model(images, audio)
    valid = torch.tensor([[True, True, True], [True, True, False]])
    criterion = Criterion(LOSS.model_copy(update={"quantize_reduction": "sum"}), CLASSES)
    losses = criterion(output, labels, valid, valid)

    g_BND, l_BTND, T = output.tokens_BND, output.local_tokens_BTND, [3, 2]

    def error(x_D):
        return (model.quantizer(x_D)[0] - x_D).square().sum()

    first = second = third = 0
    for b in range(2):
        for i in range(g_BND.shape[1]):
            first += error(g_BND[b, i]) / 2
            second += error(g_BND[b, i]) / 2
            if calibrate:
                third += sum(error(l_BTND[b, t, i]) for t in range(T[b])) / 2
    torch.testing.assert_close(losses["codebook"], LOSS.quantize * first)
    torch.testing.assert_close(losses["commitment"], LOSS.quantize * LOSS.commitment * (second + third))
    torch.testing.assert_close(losses["total"], sum(v for k, v in losses.items() if k != "total"))


def test_quantization_losses_as_means():
    images, audio, labels = make_clips(frames=3)
    output = make_model()(images, audio)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    losses = Criterion(LOSS.model_copy(update={"quantize_reduction": "mean"}), CLASSES)(output, labels, valid, valid)
    stats, D = output.quantization, output.tokens_BND.shape[-1]
    torch.testing.assert_close(losses["codebook"], LOSS.quantize * stats.codebook_errors_BN.mean() / D)
    commitment = (stats.commitment_errors_BN.mean() + stats.local_commitment_errors_BTN[valid].mean()) / D
    torch.testing.assert_close(losses["commitment"], LOSS.quantize * LOSS.commitment * commitment)
    torch.testing.assert_close(losses["total"], sum(v for k, v in losses.items() if k != "total"))


def test_tokens_are_classified_as_their_queries():
    labels = scene()
    output = perfect(labels)
    # The tokens agree with the queries: token 1 is class 2 in both frames, token 0 is class 4 in the second.
    output.local_token_class_logits_BTNC = output.class_logits_BTNC.detach().clone().requires_grad_()
    output.token_class_logits_BNC = output.class_logits_BTNC[:, 1].detach().clone()
    agreeing = score(output, labels, token_cls=2.0)
    assert float(agreeing["token_cls"].detach()) == pytest.approx(0, abs=1e-6)
    assert float(agreeing["local_token_cls"].detach()) == pytest.approx(0, abs=1e-6)
    assert {"token_cls", "local_token_cls"}.isdisjoint(score(output, labels, token_cls=0.0))

    swapped = output.local_token_class_logits_BTNC.detach()[:, :, [1, 0, 2]].requires_grad_()
    output.local_token_class_logits_BTNC = swapped
    losses = score(output, labels, token_cls=2.0)
    assert float(losses["local_token_cls"].detach()) > 10
    losses["total"].backward()
    assert swapped.grad is not None and swapped.grad.abs().sum() > 0


def test_tokens_take_part_in_the_matching():
    """Of two equal queries, the one whose token names the class gets the target."""
    labels = scene()[:, :1]
    output = perfect(labels, queries=2)
    with torch.no_grad():
        for value in (output.class_logits_BTNC, output.boxes_BTN4, output.mask_logits_BTNHW):
            value[:, :, 0] = value[:, :, 1]
    for token in (0, 1):
        logits = torch.zeros(1, 1, 2, CLASSES + 1)
        logits[..., -1] = 5.0
        logits[0, 0, token] = torch.where(torch.arange(CLASSES + 1) == 1, 5.0, 0.0)
        output.local_token_class_logits_BTNC = logits
        assert float(score(output, labels, token_cls=2.0)["local_token_cls"].detach()) < 0.1
