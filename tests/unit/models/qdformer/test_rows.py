"""The rows of Table 2: which features of the audio reach the mask decoder, and in which form."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.model import ROWS, SMALL, make_clips, make_model


def queries_of(model, images, audio):
    """The queries that the mask decoder receives [B, T, N, D], and the model's output."""
    seen = []
    handle = model.mask_decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    output = model(images, audio)
    handle.remove()
    return seen[0].unflatten(0, images.shape[:2]), output


def quantized(model, tokens):
    return model.quantizer(tokens)[0]


@pytest.mark.parametrize(
    ("changes", "bypass"),
    [
        (ROWS["quantized"], False),
        (ROWS["recombined"], False),
        (ROWS["full"], False),
        ({"calibrate_from": "audio", "recombination_norm": "batch"}, False),
        (ROWS["decomposed"], True),
        (ROWS["unquantized"], True),
        ({"filters_from": "continuous"}, True),
        ({"query_residual_dim": 1}, True),
        ({"query_residual_dim": 1} | ROWS["quantized"], True),
    ],
)
def test_a_row_that_quantizes_lets_no_continuous_audio_pass(changes, bypass):
    model = make_model(**changes).eval()
    images, audio, _ = make_clips()
    first, second = model(images, audio), model(images, audio + 0.01 * torch.rand(audio.shape))
    if first.quantization is not None:
        assert torch.equal(first.quantization.global_codes_BN, second.quantization.global_codes_BN)
        if first.quantization.local_codes_BTN is not None:
            assert torch.equal(first.quantization.local_codes_BTN, second.quantization.local_codes_BTN)
    assert not torch.equal(first.tokens_BND, second.tokens_BND)
    # Straight-through values are tokens + (codes - tokens), which is exact up to rounding only.
    change = (first.mask_logits_BTNHW - second.mask_logits_BTNHW).detach().abs().max()
    assert (float(change) > 1e-5) == bypass


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("baseline", lambda model, output: model.prototypes_ND + output.fused_BTD[:, :, None]),
        ("decomposed", lambda model, output: output.tokens_BND[:, None]),
        ("quantized", lambda model, output: quantized(model, output.tokens_BND)[:, None]),
        ("recombined", lambda model, output: quantized(model, output.tokens_BND)[:, None]),
        ("full", lambda model, output: quantized(model, output.local_tokens_BTND)),
        ("unquantized", lambda model, output: output.local_tokens_BTND),
    ],
)
def test_queries_of_each_row(row, expected):
    model = make_model(**ROWS[row]).eval()
    images, audio, _ = make_clips(frames=3)
    queries, output = queries_of(model, images, audio)
    assert queries.shape == (2, 3, SMALL.num_prototypes, SMALL.hidden_dim)
    torch.testing.assert_close(queries, expected(model, output).expand_as(queries))

    if row != "baseline":
        model = make_model(**ROWS[row], query_residual_dim=SMALL.hidden_dim).eval()
        queries, output = queries_of(model, images, audio)
        residual = output.fused_BTD[:, :, None]  # at first, the bottleneck of full width is the identity
        torch.testing.assert_close(queries, expected(model, output) + residual, atol=1e-5, rtol=1e-5)


def test_a_narrow_residual_is_a_projection():
    model = make_model(query_residual_dim=4)
    product = model.query_residual[1].weight @ model.query_residual[0].weight
    torch.testing.assert_close(product @ product, product)
    assert torch.linalg.matrix_rank(product) == 4


def test_the_second_reading_of_row_3_is_the_full_model_without_codebook():
    full, unquantized = make_model().state_dict(), make_model(**ROWS["unquantized"]).state_dict()
    assert set(full) - set(unquantized) == {"quantizer.codebook_weight", "quantizer.started"}
    assert set(unquantized) < set(full)


def test_equation_6_reads_the_audio_of_one_frame():
    images, audio, _ = make_clips(frames=2)
    model = make_model(calibrate_from="audio").eval()
    plain = model(images, audio).local_tokens_BTND
    assert torch.equal(model(255 - images, audio).local_tokens_BTND, plain)
    audio[:, 1] += 1
    changed = model(images, audio).local_tokens_BTND
    torch.testing.assert_close(changed[:, 0], plain[:, 0])
    assert (changed[:, 1] != plain[:, 1]).any(-1).all()

    fused = make_model(calibrate_from="fused").eval()
    assert not torch.equal(fused(255 - images, audio).local_tokens_BTND, fused(images, audio).local_tokens_BTND)
