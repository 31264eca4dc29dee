"""Vector quantization: nearest code, straight-through gradient, and updates of the codebook."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from vector_quantize_pytorch import VectorQuantize

from qdformer.models.qdformer.quantizer import EMA_DECAY, Quantizer, perplexity


@pytest.fixture
def quantizer() -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(codebook_size=7, hidden_dim=16)


def test_the_nearest_code_is_used(quantizer):
    tokens = torch.randn(3, 5, 16)
    quantized, codes = quantizer(tokens)
    distances = (tokens[..., None, :] - quantizer.codebook_KD).norm(dim=-1)
    assert torch.equal(codes, distances.argmin(-1))
    torch.testing.assert_close(quantized, quantizer.codebook_KD[codes])


def test_the_first_of_equally_near_codes_is_used(quantizer):
    with torch.no_grad():
        quantizer.codebook_weight[5] = quantizer.codebook_weight[2]
    assert quantizer(quantizer.codebook_KD[5])[1] == 2


def test_gradient_passes_straight_through_and_leaves_the_codebook_alone(quantizer):
    tokens = torch.randn(4, 16, requires_grad=True)
    factor = torch.randn(4, 16)
    (quantizer(tokens)[0] * factor).sum().backward()
    torch.testing.assert_close(tokens.grad, factor)
    assert quantizer.codebook_weight.grad is None


def test_each_loss_has_a_gradient_to_one_side(quantizer):
    tokens = torch.randn(4, 16, requires_grad=True)
    codes = quantizer(tokens)[1]
    expected = (tokens - quantizer.codebook_KD[codes]).norm(dim=-1) ** 2
    torch.testing.assert_close(quantizer.codebook_errors(tokens, codes), expected)
    torch.testing.assert_close(quantizer.commitment_errors(tokens, codes), expected)
    quantizer.commitment_errors(tokens, codes).sum().backward()
    assert quantizer.codebook_weight.grad is None and tokens.grad.abs().sum() > 0
    tokens.grad = None
    quantizer.codebook_errors(tokens, codes).sum().backward()
    assert tokens.grad is None
    moved = quantizer.codebook_weight.grad.abs().sum(-1) > 0
    assert set(moved.nonzero().flatten().tolist()) == set(codes.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loss_updated_quantizer_of_vector_quantize_pytorch(seed):
    torch.manual_seed(seed)
    ours = Quantizer(codebook_size=7, hidden_dim=16, normalized=False)
    theirs = VectorQuantize(16, 7, learnable_codebook=True, ema_update=False, rotation_trick=False)
    theirs._codebook.embed.data.copy_(ours.codebook_weight.detach()[None])
    values = torch.randn(2, 5, 16)
    tokens, same = values.clone().requires_grad_(), values.clone().requires_grad_()
    quantized, codes = ours(tokens)
    expected, expected_codes, loss = theirs(same)
    assert torch.equal(codes, expected_codes)
    torch.testing.assert_close(quantized, expected)

    # Their loss is the sum of the codebook loss and the commitment loss, as means over tokens and dimensions.
    factor = torch.randn_like(quantized)
    commitment, codebook = (
        errors(tokens, codes).mean() / 16 for errors in (ours.commitment_errors, ours.codebook_errors)
    )
    ((quantized * factor).sum() + commitment + codebook).backward()
    ((expected * factor).sum() + loss.sum()).backward()
    torch.testing.assert_close(commitment, loss.squeeze())
    torch.testing.assert_close(tokens.grad, same.grad)
    torch.testing.assert_close(ours.codebook_weight.grad, theirs._codebook.embed.grad[0])


def test_running_means_equal_those_of_vector_quantize_pytorch():
    torch.manual_seed(0)
    ours = Quantizer(codebook_size=7, hidden_dim=16, normalized=False, ema=True)
    theirs = VectorQuantize(16, 7, decay=EMA_DECAY, threshold_ema_dead_code=0)
    theirs._codebook.embed.copy_(ours.codebook_weight[None])
    theirs._codebook.embed_avg.copy_(ours.running_sum_KD[None])
    theirs._codebook.cluster_size.copy_(ours.running_use_K[None])
    for _ in range(20):
        tokens = torch.randn(2, 5, 16)
        _, codes = ours(tokens)
        assert torch.equal(codes, theirs(tokens)[1])
        ours.update(tokens, codes)
    torch.testing.assert_close(ours.codebook_weight.detach(), theirs._codebook.embed[0], atol=1e-4, rtol=1e-4)
    assert not ours.codebook_weight.requires_grad


def test_dead_codes_are_set_to_tokens():
    torch.manual_seed(0)
    quantizer = Quantizer(codebook_size=4, hidden_dim=16, normalized=False, reset_dead_after=2)
    with torch.no_grad():
        quantizer.codebook_weight[1:] += 100  # too far from all tokens to be used
    tokens = torch.randn(6, 16)
    for idle in (1, 0):
        _, codes = quantizer(tokens)
        assert not codes.any()
        quantizer.update(tokens, codes)
        assert quantizer.idle_K.tolist() == [0, idle, idle, idle]
    assert all((code == tokens).all(-1).any() for code in quantizer.codebook_weight[1:])
    assert len(quantizer(tokens)[1].unique()) > 1


@pytest.mark.parametrize("options", [{}, {"ema": True}, {"reset_dead_after": 1}])
def test_by_default_only_the_gradient_changes_the_codes(options):
    torch.manual_seed(0)
    quantizer = Quantizer(codebook_size=4, hidden_dim=16, **options)
    before, tokens = quantizer.codebook_weight.detach().clone(), torch.randn(3, 16)
    quantizer.update(tokens, quantizer(tokens)[1])
    assert torch.equal(quantizer.codebook_weight, before) == (not options)
    waiting = Quantizer(codebook_size=4, hidden_dim=16, delayed=True, **options)
    before = waiting.codebook_weight.detach().clone()
    waiting.update(tokens, waiting(tokens)[1])
    assert torch.equal(waiting.codebook_weight, before)


def test_code_counts_and_their_perplexity():
    quantizer = Quantizer(codebook_size=8, hidden_dim=4)
    use_K = quantizer.count_codes(torch.tensor([[0, 1], [2, 3]]))
    assert use_K.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert perplexity(use_K) == pytest.approx(4.0)
    assert perplexity(quantizer.count_codes(torch.tensor([5, 5]))) == pytest.approx(1.0)
    assert perplexity(quantizer.count_codes(torch.tensor([5, 5]), torch.tensor([False, False]))) == 0.0


def test_half_precision_gives_the_same_codes(quantizer):
    tokens = torch.randn(50, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half, codes = quantizer(tokens)
    assert half.dtype == torch.bfloat16
    assert torch.equal(codes, quantizer(tokens.float())[1])


def test_a_delayed_start_initializes_the_codes_from_tokens():
    torch.manual_seed(0)
    quantizer = Quantizer(codebook_size=4, hidden_dim=16, delayed=True)
    places = functional.layer_norm(torch.randn(4, 16), (16,))
    tokens = (places.repeat(8, 1) + 0.01 * torch.randn(32, 16)).requires_grad_()
    values, codes = quantizer(tokens)
    assert torch.equal(values, tokens) and not quantizer.commitment_errors(tokens, codes).any()

    quantizer.start_quantizing()
    values, codes = quantizer(tokens)
    assert torch.allclose(values, places.repeat(8, 1), atol=0.05)
    assert sorted(codes[:4].tolist()) == [0, 1, 2, 3]
    assert (quantizer.commitment_errors(tokens, codes) > 0).all()
    restored = Quantizer(codebook_size=4, hidden_dim=16, delayed=True)
    restored.load_state_dict(quantizer.state_dict())
    assert torch.equal(restored(tokens)[0], values)


def test_a_start_needs_enough_tokens_since_the_buffer_was_cleared():
    quantizer = Quantizer(codebook_size=4, hidden_dim=16, delayed=True)
    before = quantizer.codebook_weight.clone()
    quantizer(torch.randn(15, 16))
    quantizer.clear_token_buffer()
    quantizer(torch.randn(15, 16))
    quantizer.eval()(torch.randn(100, 16))
    quantizer.start_quantizing()
    assert not quantizer.started
    quantizer.start_quantizing(force=True)
    assert quantizer.started and torch.equal(quantizer.codebook_weight, before)

    waiting = Quantizer(codebook_size=4, hidden_dim=16, delayed=True)
    waiting(torch.randn(16, 16))
    waiting.start_quantizing()
    assert waiting.started
