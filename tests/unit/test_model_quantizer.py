"""Vector quantization: nearest code, straight-through gradient, and who moves the codebook."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from qdformer.model.quantizer import Quantizer, perplexity


@pytest.fixture
def quantizer() -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(codes=7, width=16)


def test_takes_the_nearest_code(quantizer):
    tokens = torch.randn(3, 5, 16)
    quantized, codes = quantizer(tokens)
    distances = (tokens[..., None, :] - quantizer.codebook_KD).norm(dim=-1)
    assert torch.equal(codes, distances.argmin(-1))
    torch.testing.assert_close(quantized, quantizer.codebook_KD[codes])


def test_of_equal_codes_the_first(quantizer):
    with torch.no_grad():
        quantizer.free_KD[5] = quantizer.free_KD[2]
    assert quantizer(quantizer.codebook_KD[5])[1] == 2


def test_gradient_passes_straight_through_and_leaves_the_codebook_alone(quantizer):
    tokens = torch.randn(4, 16, requires_grad=True)
    factor = torch.randn(4, 16)
    (quantizer(tokens)[0] * factor).sum().backward()
    torch.testing.assert_close(tokens.grad, factor)
    assert quantizer.free_KD.grad is None


def test_each_loss_moves_its_own_side(quantizer):
    tokens = torch.randn(4, 16, requires_grad=True)
    codes = quantizer(tokens)[1]
    expected = (tokens - quantizer.codebook_KD[codes]).square().mean()
    torch.testing.assert_close(quantizer.codebook_loss(tokens, codes), expected)
    torch.testing.assert_close(quantizer.commitment_loss(tokens, codes), expected)
    quantizer.commitment_loss(tokens, codes).backward()
    assert quantizer.free_KD.grad is None and tokens.grad.abs().sum() > 0
    tokens.grad = None
    quantizer.codebook_loss(tokens, codes).backward()
    assert tokens.grad is None
    moved = quantizer.free_KD.grad.abs().sum(-1) > 0
    assert set(moved.nonzero().flatten().tolist()) == set(codes.tolist())


def test_use_and_its_perplexity():
    quantizer = Quantizer(codes=8, width=4)
    use_K = quantizer.use(torch.tensor([[0, 1], [2, 3]]))
    assert use_K.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert perplexity(use_K) == pytest.approx(4.0)
    assert perplexity(quantizer.use(torch.tensor([5, 5]))) == pytest.approx(1.0)
    assert perplexity(quantizer.use(None)) == 0.0


def test_half_precision_picks_the_same_codes(quantizer):
    tokens = torch.randn(50, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half, codes = quantizer(tokens)
    assert half.dtype == torch.bfloat16
    assert torch.equal(codes, quantizer(tokens.float())[1])


def test_a_delayed_start_puts_the_codes_among_the_tokens():
    torch.manual_seed(0)
    quantizer = Quantizer(codes=4, width=16, delayed=True)
    places = functional.layer_norm(torch.randn(4, 16), (16,))
    tokens = (places.repeat(8, 1) + 0.01 * torch.randn(32, 16)).requires_grad_()
    values, codes = quantizer(tokens)
    assert torch.equal(values, tokens) and not quantizer.commitment_loss(tokens, codes)

    quantizer.start()
    values, codes = quantizer(tokens)
    assert torch.allclose(values, places.repeat(8, 1), atol=0.05)
    assert sorted(codes[:4].tolist()) == [0, 1, 2, 3]
    assert quantizer.commitment_loss(tokens, codes) > 0
    restored = Quantizer(codes=4, width=16, delayed=True)
    restored.load_state_dict(quantizer.state_dict())
    assert torch.equal(restored(tokens)[0], values)


def test_a_start_waits_for_enough_tokens_since_it_last_forgot():
    quantizer = Quantizer(codes=4, width=16, delayed=True)
    before = quantizer.free_KD.clone()
    quantizer(torch.randn(15, 16))
    quantizer.forget()
    quantizer(torch.randn(15, 16))
    quantizer.eval()(torch.randn(100, 16))
    quantizer.start()
    assert not quantizer.started
    quantizer.start(at_once=True)
    assert quantizer.started and torch.equal(quantizer.free_KD, before)

    waiting = Quantizer(codes=4, width=16, delayed=True)
    waiting(torch.randn(16, 16))
    waiting.start()
    assert waiting.started
