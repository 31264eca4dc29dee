"""Fusion, recombination, dynamic masks, position encodings and attention compared with reference implementations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.deformable import NUM_POINTS, DeformableAttention, DeformableLayer, SamplingGrid
from qdformer.models.common.fpn import FeaturePyramid
from qdformer.models.common.pixel_encoder import PixelEncoder
from qdformer.models.common.transformer import (
    flatten_map,
    map_position_encoding,
    sine_position_encoding,
    unflatten_map,
    upsample,
)
from qdformer.models.qdformer.decomposition import mean_cosine_similarity
from qdformer.models.qdformer.fusion import Fusion
from qdformer.models.qdformer.mask_decoder import MaskDecoder
from qdformer.models.qdformer.recombination import Recombination, TokenBatchNorm


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_recombination_is_a_convolution_of_modulated_maps(norm):
    torch.manual_seed(0)
    B, N, T, S, D = 2, 3, 2, 5, 8
    part = Recombination(D, N, norm)
    visual, sources = torch.randn(B, T, S, D), torch.randn(B, N, D)
    first, relu, second = part.filter
    assert isinstance(relu, nn.ReLU)
    filters = second(first(sources).relu())
    modulated = torch.cat([visual * filters[:, None, None, i] for i in range(N)], dim=-1)  # [B, T, S, N * D]
    kernel = part.join_NDD.transpose(0, 1).flatten(1)[..., None]  # [D, N * D, 1]
    joined = functional.conv1d(modulated.flatten(1, 2).transpose(1, 2), kernel, part.bias_D).transpose(1, 2)
    summed = visual + joined.view_as(visual)
    if norm == "batch":
        expected = functional.batch_norm(summed.flatten(0, 2), None, None, training=True).view_as(visual)
    else:
        expected = functional.layer_norm(summed, (D,))
    torch.testing.assert_close(part(visual, sources), expected)


def test_padding_frames_do_not_change_the_statistics_of_batch_norm():
    torch.manual_seed(0)
    part, padded_part = TokenBatchNorm(8), TokenBatchNorm(8)
    x, valid = torch.randn(2, 3, 5, 8), torch.tensor([[True, True, False], [True, False, False]])
    found = padded_part(x, valid)
    torch.testing.assert_close(found[valid], part(x[valid][:, None])[:, 0])
    assert not found[~valid].any()
    torch.testing.assert_close(padded_part.running_mean, part.running_mean)
    torch.testing.assert_close(padded_part.running_var, part.running_var)

    part.eval()
    alone = part(x[:1], valid[:1])
    torch.testing.assert_close(part(x, valid)[:1], alone)
    mean, var = part.running_mean, part.running_var
    torch.testing.assert_close(alone, (x[:1] - mean) / (var + part.eps).sqrt())


def test_condinst_masks_are_three_convolutions_on_relative_coordinates():
    torch.manual_seed(0)
    F, N, M, H, W = 2, 3, 4, 5, 6
    decoder = MaskDecoder(16, 2, 32, 1, 3, M, "condinst")
    size = sum(rows * (columns + 1) for rows, columns in decoder.filter_shapes)
    filters, boxes, features = torch.randn(1, F, N, size), torch.rand(1, F, N, 4), torch.randn(F, M, H, W)
    found = decoder.predict_masks(filters, boxes, features)
    for f in range(F):
        for n in range(N):
            y = ((torch.arange(H) + 0.5) / H - boxes[0, f, n, 1])[:, None].expand(H, W)
            x = ((torch.arange(W) + 0.5) / W - boxes[0, f, n, 0])[None].expand(H, W)
            maps, rest = torch.cat([features[f], torch.stack([x, y])])[None], filters[0, f, n]
            for index, (rows, columns) in enumerate(decoder.filter_shapes):
                weight, bias, rest = rest.split([rows * columns, rows, len(rest) - rows * (columns + 1)])
                maps = functional.conv2d(maps.relu() if index else maps, weight.view(rows, columns, 1, 1), bias)
            torch.testing.assert_close(found[0, f, n], maps[0, 0], atol=1e-5, rtol=1e-4)


def test_linear_masks_are_one_convolution():
    torch.manual_seed(0)
    decoder = MaskDecoder(16, 2, 32, 1, 3, 4, "linear")
    filters, features = torch.randn(2, 2, 3, 5), torch.randn(2, 4, 5, 6)
    found = decoder.predict_masks(filters, torch.rand(2, 2, 3, 4), features)
    expected = torch.einsum("rfnm,fmhw->rfnhw", filters[..., :4], features) + filters[..., 4:, None]
    torch.testing.assert_close(found, expected)


def test_similarity_of_a_clip_s_tokens():
    apart = torch.eye(4)[None, :3]
    assert mean_cosine_similarity(apart) == pytest.approx(0)
    assert mean_cosine_similarity(torch.ones(2, 3, 4)) == pytest.approx(1)
    tokens = torch.randn(2, 3, 4)
    pairs = functional.cosine_similarity(tokens[:, [0, 0, 1]], tokens[:, [1, 2, 2]], dim=-1)
    assert mean_cosine_similarity(tokens) == pytest.approx(float(pairs.mean()))


def test_tokens_and_maps_are_inverse():
    x = torch.randn(2, 4, 3, 5)
    assert torch.equal(unflatten_map(flatten_map(x), (3, 5)), x)


def test_position_encodings_are_all_different():
    code = map_position_encoding(4, 6, 32, torch.device("cpu"))
    assert code.shape == (24, 32)
    assert torch.pdist(code).min() > 0.1


@pytest.mark.parametrize(("kind", "strides"), [("light", [8, 16, 32]), ("deformable", [8, 16, 32, 64])])
def test_pixel_encoder_keeps_the_pyramid(kind, strides):
    torch.manual_seed(0)
    channels = {4: 3, 8: 5, 16: 6, 32: 7}
    encoder = PixelEncoder(kind, channels, hidden_dim=16, num_heads=2, ffn_dim=32, layers=1)
    maps = {s: torch.randn(2, c, -(-75 // s), -(-100 // s)) for s, c in channels.items()}
    pyramid = FeaturePyramid(kind, encoder.strides, channels[4], hidden_dim=16, mask_dim=4)
    visual, sizes = encoder.project(maps)
    assert encoder.strides == strides and sizes[:3] == [(10, 13), (5, 7), (3, 4)]
    encoded, position, same_sizes = encoder(maps)
    assert same_sizes == sizes and torch.equal(position, encoder.position_encoding(sizes))
    torch.testing.assert_close(encoded, encoder.encode(visual, position, sizes))
    tokens, mask_features = pyramid(encoded, sizes, maps[4])
    assert encoded.shape == tokens.shape == visual.shape == (2, sum(h * w for h, w in sizes), 16)
    assert mask_features.shape == (2, 4, 19, 25)
    assert (tokens != visual).any(-1).all()
    assert torch.equal(tokens, encoded) == (kind == "deformable")
    tokens[:, encoder.token_slice(sizes, 8)].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.layers.parameters())


def test_the_light_encoder_leaves_the_finer_maps_to_the_pyramid():
    torch.manual_seed(0)
    sizes, D = [(8, 6), (4, 3), (2, 2)], 16
    encoder = PixelEncoder("light", {4: 3, 8: 5, 16: 6, 32: 7}, hidden_dim=D, num_heads=2, ffn_dim=32, layers=1)
    pyramid = FeaturePyramid("light", encoder.strides, finest_channels=3, hidden_dim=D, mask_dim=4)
    visual = torch.randn(2, 64, D)
    encoded = encoder.encode(visual, encoder.position_encoding(sizes), sizes)
    assert torch.equal(encoded[:, :60], visual[:, :60]) and (encoded[:, 60:] != visual[:, 60:]).any(-1).all()

    tokens, _ = pyramid(encoded, sizes, torch.randn(2, 3, 16, 12))
    maps = [
        unflatten_map(encoded[:, encoder.token_slice(sizes, stride)], size)
        for stride, size in zip(encoder.strides, sizes, strict=True)
    ]
    middle = pyramid.top_down[0](maps[1] + upsample(maps[2], sizes[1])).relu()
    fine = pyramid.top_down[1](maps[0] + upsample(middle, sizes[0])).relu()
    torch.testing.assert_close(tokens, torch.cat([flatten_map(x) for x in (fine, middle, maps[2])], dim=1))


def test_deformable_attention_equals_transformers():
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoderLayer

    torch.manual_seed(0)
    hidden_dim, num_heads, sizes = 32, 4, [(7, 9), (4, 5), (2, 3)]
    config = DeformableDetrConfig(
        d_model=hidden_dim,
        encoder_attention_heads=num_heads,
        encoder_ffn_dim=64,
        num_feature_levels=len(sizes),
        dropout=0.0,
        activation_dropout=0.0,
        disable_custom_kernels=True,
    )
    theirs, ours = DeformableDetrEncoderLayer(config), DeformableLayer(hidden_dim, num_heads, 64, len(sizes))
    attention, perceptron = theirs.self_attn, theirs.mlp
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
        attention.sampling_offsets.bias.mul_(10)  # some points are outside of the maps
        # The order in transformers is (head, level, point, x or y), here it is (x or y, head, level, point).
        offsets = attention.sampling_offsets
        ours.attention.offsets.weight.copy_(offsets.weight.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1))
        ours.attention.offsets.bias.copy_(offsets.bias.unflatten(0, (-1, 2)).T.flatten())
        pairs = [
            (ours.attention.weights, attention.attention_weights),
            (ours.attention.value, attention.value_proj),
            (ours.attention.out, attention.output_proj),
            (ours.attention.norm, theirs.self_attn_layer_norm),
            (ours.feed_forward.wide, perceptron.fc1),
            (ours.feed_forward.narrow, perceptron.fc2),
            (ours.feed_forward.norm, theirs.final_layer_norm),
        ]
        for mine, other in pairs:
            mine.load_state_dict(other.state_dict())

    S = sum(height * width for height, width in sizes)
    x, position = torch.randn(2, S, hidden_dim, requires_grad=True), torch.randn(S, hidden_dim)
    centers = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in sizes
    ]
    expected = theirs(
        x,
        attention_mask=None,
        spatial_position_embeddings=position,
        reference_points=torch.cat(centers)[:, None].expand(-1, len(sizes), -1).expand(2, -1, -1, -1),
        spatial_shapes=torch.tensor(sizes),
        spatial_shapes_list=sizes,
    )
    found = ours(x, position, SamplingGrid.from_sizes(sizes, x.device))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    weights = torch.randn_like(found)
    for mine, other in zip(
        torch.autograd.grad((found * weights).sum(), [x, *(m.weight for m, _ in pairs), ours.attention.offsets.bias]),
        torch.autograd.grad((expected * weights).sum(), [x, *(o.weight for _, o in pairs), offsets.bias]),
        strict=True,
    ):
        if other.shape == offsets.bias.shape:
            other = other.unflatten(0, (-1, 2)).T.flatten()
        torch.testing.assert_close(mine, other, atol=2e-3, rtol=1e-3)


def test_initial_offsets_point_outward():
    num_heads, levels = 4, 2
    offsets = DeformableAttention(16, num_heads, levels).offsets.bias.detach().view(2, num_heads, levels, NUM_POINTS)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(NUM_POINTS):
        torch.testing.assert_close(offsets[:, :, 1, point].T, expected * (point + 1), atol=1e-6, rtol=0)


def test_fusion_is_equation_3():
    torch.manual_seed(0)
    B, T, S, D = 2, 3, 4, 16
    part = Fusion(hidden_dim=D, num_heads=2, ffn_dim=32)
    F_a, visual, position = torch.randn(B, T, D), torch.randn(B, T, S, D), torch.randn(S, D)
    second = sine_position_encoding(torch.arange(T) / 10, D)
    memory, key_position = visual.flatten(1, 2), (second[:, None] + position).flatten(0, 1)
    attended, _ = part.attention.attention(F_a + second, memory + key_position, memory)
    h_a = part.attention.norm(attended + F_a)
    ffn = part.feed_forward
    expected = ffn.norm(ffn.narrow(ffn.wide(h_a).relu()) + h_a)
    torch.testing.assert_close(part(F_a, visual, position, torch.ones(B, T, dtype=torch.bool)), expected)
