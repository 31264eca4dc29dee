"""Gradients compared with finite differences, the order of targets, and export as one graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from qdformer.models.common.boxes import generalized_iou
from qdformer.models.common.deformable import NUM_POINTS, DeformableAttention, SamplingGrid
from qdformer.models.qdformer import criterion
from qdformer.models.qdformer.criterion import Criterion
from qdformer.models.qdformer.mask_decoder import MaskDecoder
from qdformer.models.qdformer.output import LayerOutput, QDFormerOutput
from qdformer.models.qdformer.recombination import Recombination
from tests.helpers.model import CLASSES, LOSS, make_clips, make_model


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradient_of_deformable_sampling():
    num_heads, sizes = 2, [(3, 4), (2, 2)]
    attention, grid = DeformableAttention(4, num_heads, len(sizes)), SamplingGrid.from_sizes(sizes, torch.device("cpu"))
    grid.x_SX, grid.y_SX = grid.x_SX.double(), grid.y_SX.double()
    S, X = len(grid.x_SX), len(sizes) * NUM_POINTS

    def sample(value, offsets, weights):
        return attention.sample(value, offsets, weights, grid)

    # Not at the centers of cells, where bilinear interpolation is not differentiable.
    offsets = (torch.randint(-2, 2, (2, 1, S, num_heads, X)) + 0.25 - grid.x_SX.frac()[:, None]).double()
    offsets = (offsets + 0.05 * torch.rand_like(offsets)).requires_grad_()
    assert gradcheck(sample, (numbers(1, S, 4), offsets, numbers(1, S, num_heads, X)))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_gradient_of_recombination(norm):
    part = Recombination(4, 3, norm).double()
    valid = torch.tensor([[True, True], [True, False]])
    assert gradcheck(part, (numbers(2, 2, 5, 4), numbers(2, 3, 4), valid))


@pytest.mark.parametrize("mask_head", ["linear", "condinst"])
def test_gradient_of_dynamic_masks(mask_head):
    decoder = MaskDecoder(8, 2, 8, 1, 3, 2, mask_head).double()
    size = sum(rows * (columns + 1) for rows, columns in decoder.filter_shapes)
    boxes = torch.rand(1, 1, 2, 4, dtype=torch.float64)

    def predict_masks(filters, features):
        return decoder.predict_masks(filters, boxes, features)

    assert gradcheck(predict_masks, (numbers(1, 1, 2, size), numbers(1, 2, 2, 3)))


def test_gradient_of_generalized_iou():
    found, wanted = 0.3 + 0.4 * torch.rand(2, 4, 4, dtype=torch.float64)
    assert gradcheck(lambda boxes: generalized_iou(boxes, wanted), (found.requires_grad_(),))


def output_of(classes, boxes, masks) -> QDFormerOutput:
    return QDFormerOutput(classes, boxes.sigmoid(), masks, [LayerOutput(classes * 0.5, boxes.sigmoid(), masks + 0.1)])


def test_gradient_of_the_whole_loss():
    _, _, labels = make_clips(height=16, width=16)
    every_frame = torch.ones(2, 2, dtype=torch.bool)

    def total(classes, boxes, masks):
        return Criterion(LOSS, CLASSES)(output_of(classes, boxes, masks), labels, every_frame, every_frame)["total"]

    assert gradcheck(total, (numbers(2, 2, 3, CLASSES + 1), numbers(2, 2, 3, 4), numbers(2, 2, 3, 4, 4)))


def test_the_order_of_the_targets_does_not_matter(monkeypatch):
    labels = torch.randint(0, CLASSES + 1, (2, 2, 16, 16))
    output = output_of(numbers(2, 2, 5, CLASSES + 1), numbers(2, 2, 5, 4), numbers(2, 2, 5, 4, 4))
    every_frame = torch.ones(2, 2, dtype=torch.bool)
    loss = Criterion(LOSS, CLASSES)
    plain = loss(output, labels, every_frame, every_frame)
    build_targets = criterion.build_targets

    def reversed_targets(*arguments):
        targets = build_targets(*arguments)
        assert targets.is_real_BG.all() and targets.classes_BG.shape[1] == CLASSES
        for name in ("classes_BG", "masks_BGTP", "present_BGT", "boxes_BGT4"):
            setattr(targets, name, getattr(targets, name).flip(1))
        return targets

    monkeypatch.setattr(criterion, "build_targets", reversed_targets)
    for name, value in loss(output, labels, every_frame, every_frame).items():
        torch.testing.assert_close(value, plain[name], msg=name)


class Inference(nn.Module):
    """Inference with tensors as outputs."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.model = make_model(**changes).eval()

    def forward(self, images, audio, valid):
        output = self.model(images, audio, valid)
        return output.class_logits_BTNC, output.boxes_BTN4, output.mask_logits_BTNHW


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["light", "deformable"])
def test_inference_is_one_graph(encoder):
    images, audio, _ = make_clips()
    valid = torch.ones(2, 2, dtype=torch.bool)
    inference = Inference(encoder=encoder)
    with torch.no_grad():
        expected = inference(images, audio, valid)
        compiled = torch.compile(inference, backend="aot_eager", fullgraph=True)(images, audio, valid)
        exported = torch.export.export(inference, (images, audio, valid)).module()(images, audio, valid)
    for found in (compiled, exported):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
