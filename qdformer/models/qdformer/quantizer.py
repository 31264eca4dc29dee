"""Vector quantization with one shared codebook, and its losses (Eq. 9, see `criterion`).

Eq. 2: PQ(x) = VQ(x_1) (+) .. (+) VQ(x_N), where VQ(x_i) = argmin over the codes e^k of ||x_i - e^k||_p, and (+) denotes
channel-wise concatenation. Here p = 2.

Shapes: K codes, D hidden dimension, `...` any leading dimensions (tokens of clips or of frames).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from qdformer.utils.distributed import (
    from_first_rank,
    gather_clips,
    own_clips,
    rank,
    sum_over_ranks,
    world_size,
)

MIN_TOKENS_PER_CODE = 4
"""Minimum number of tokens per code for k-means."""
EMA_DECAY = 0.99
"""Decay of the running means."""
TOKEN_BUFFER_BATCHES = 128
"""Maximum number of buffered token batches; a training step adds two, one of clip and one of frame tokens."""


@dataclass
class QuantizerStats:
    """The terms of Eq. 9 and the codes of one forward pass."""

    codebook_errors_BN: torch.Tensor
    """||VQ(g_i) - sg[g_i]||^2 of each clip-global token; moves the codes."""
    commitment_errors_BN: torch.Tensor
    """||sg[VQ(g_i)] - g_i||^2 of each clip-global token; moves the tokens."""
    local_commitment_errors_BTN: torch.Tensor | None
    """||sg[VQ(l_i,t)] - l_i,t||^2 of each frame-local token; None without local calibration."""
    global_codes_BN: torch.Tensor
    """Index of each clip-global token's code."""
    local_codes_BTN: torch.Tensor | None
    """Index of each frame-local token's code; None without local calibration."""
    global_counts_K: torch.Tensor
    """Number of global tokens per code."""
    local_counts_K: torch.Tensor
    """Number of local tokens per code; zeros without local calibration."""


class Quantizer(nn.Module):
    """Replaces each token by the nearest of K codes, the first if several are equally near.

    The components x_i of Eq. 2 are the N tokens g_i of Eq. 4, each with all D dimensions; they share one codebook. The
    gradient is passed straight through (van den Oord et al., 2017).

    The codebook loss alone updates the codes. With `ema`, which the paper does not have, each code is instead an
    exponential moving average of its tokens (van den Oord et al., 2017, appendix). A code that was not used for
    `reset_dead_after` updates is set to a random token (as in Jukebox, Dhariwal et al., 2020); 0 means never.

    With `normalized`, codes are layer-normalized, like the tokens that a decoder returns. Otherwise a code of several
    different tokens shrinks toward their mean, and a code with a small norm is near to all tokens: without
    normalization, the full model used only one code after a hundred steps from random initialization.

    With `delayed`, tokens pass unquantized until `start_quantizing`, which initializes the codes by k-means over recent
    tokens (as SoundStream does, Zeghidour et al., 2021): random codes are far from all tokens and slow down the
    training of every later module.
    """

    started: torch.Tensor
    running_use_K: torch.Tensor | None
    running_sum_KD: torch.Tensor | None
    idle_K: torch.Tensor | None

    def __init__(
        self,
        codebook_size: int,
        hidden_dim: int,
        delayed: bool = False,
        normalized: bool = True,
        ema: bool = False,
        reset_dead_after: int = 0,
    ) -> None:
        super().__init__()
        self.normalized, self.reset_dead_after = normalized, reset_dead_after
        self.codebook_weight = nn.Parameter(torch.randn(codebook_size, hidden_dim), requires_grad=not ema)
        self.register_buffer("started", torch.tensor(not delayed))
        self.register_buffer("running_use_K", torch.ones(codebook_size) if ema else None)
        self.register_buffer("running_sum_KD", self.codebook_weight.detach().clone() if ema else None)
        self.register_buffer("idle_K", torch.zeros(codebook_size, dtype=torch.long) if reset_dead_after else None)
        self._token_buffer: deque[torch.Tensor] = deque(maxlen=TOKEN_BUFFER_BATCHES)

    @property
    def codebook_KD(self) -> torch.Tensor:
        """The codes, after normalization."""
        return (
            functional.layer_norm(self.codebook_weight, self.codebook_weight.shape[-1:])
            if self.normalized
            else self.codebook_weight
        )

    def forward(self, tokens: torch.Tensor, counted_B: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [..., D] -> quantized tokens [..., D], with gradient to the tokens only, and code indices [...].

        If the first dimension is that of clips, only the clips in `counted_B` are used to initialize the codes.
        """
        if self.training and not self.started:
            kept = tokens.detach() if counted_B is None else tokens.detach()[counted_B]
            self._token_buffer.append(kept.float())
        # In half precision, close codes would have equal distances.
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            codebook_KD, values = self.codebook_KD, tokens.float()
            # |z - e|^2 without |z|^2, which is the same for all codes.
            codes = (codebook_KD.square().sum(-1) - 2 * values @ codebook_KD.T).argmin(-1)
            step = (codebook_KD[codes] - values).to(tokens.dtype)
        return tokens + step * self.started, codes

    def codebook_errors(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """||VQ(x) - sg[x]||^2 [...] of `tokens` [..., D] with `codes` [...]; has a gradient to the codes only.

        With `ema` it has no gradient.
        """
        return (self.codebook_KD[codes] - tokens.detach().float()).square().sum(-1)

    def commitment_errors(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """||sg[VQ(x)] - x||^2 [...] of `tokens` [..., D] with `codes` [...]; has a gradient to the tokens only.

        0 before quantization starts.
        """
        return (tokens.float() - self.codebook_KD.detach()[codes]).square().sum(-1) * self.started

    @torch.no_grad()
    def update(self, tokens: torch.Tensor, codes: torch.Tensor) -> None:
        """Update the codes outside of the gradient: running means, and the reset of dead codes.

        Takes `tokens` [..., D] and their `codes` [...]. With several ranks, the first dimension is that of their clips,
        which form one batch.
        """
        if not self.started or (self.running_use_K is None and self.idle_K is None):
            return
        tokens_SD, use_K = tokens.detach().flatten(0, -2).float(), self.count_codes(codes)
        sums_KD = torch.zeros_like(self.codebook_weight).index_add_(0, codes.flatten(), tokens_SD)
        use_K, sums_KD = sum_over_ranks(use_K), sum_over_ranks(sums_KD)
        drawn_KD = self._draw_tokens(tokens)
        if self.running_use_K is not None and self.running_sum_KD is not None:
            self.running_use_K.lerp_(use_K, 1 - EMA_DECAY)
            self.running_sum_KD.lerp_(sums_KD, 1 - EMA_DECAY)
            self.codebook_weight.copy_(self.running_sum_KD / self.running_use_K.clamp(min=1e-5)[:, None])
        if self.idle_K is not None:
            self.idle_K.add_(1).masked_fill_(use_K > 0, 0)
            dead_K = self.idle_K >= self.reset_dead_after
            self._set_codes(torch.where(dead_K[:, None], drawn_KD, self.codebook_weight), dead_K)
            self.idle_K.masked_fill_(dead_K, 0)

    def _draw_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """A random token of the global batch for each code, [K, D]; the draw does not depend on the number of ranks."""
        tokens_SD = tokens.detach().flatten(0, -2).float()
        clips = int(sum_over_ranks(torch.tensor(len(tokens), device=tokens.device)))
        per_clip = from_first_rank(len(tokens_SD) // max(len(tokens), 1))  # rank 0 has clips in every step
        index_K = from_first_rank(torch.randint(clips * per_clip, self.codebook_weight.shape[:1])).to(tokens.device)
        clip_K, place_K = index_K // per_clip, index_K % per_clip
        own_K = clip_K % world_size() == rank()
        drawn_KD = torch.zeros_like(self.codebook_weight)
        row_K = clip_K // world_size() * per_clip + place_K
        drawn_KD[own_K] = tokens_SD[row_K[own_K]]
        return sum_over_ranks(drawn_KD)

    def clear_token_buffer(self) -> None:
        """Drop the buffered tokens, so that `start_quantizing` uses tokens of one epoch only."""
        self._token_buffer.clear()

    def buffered_tokens(self) -> list[torch.Tensor]:
        """The buffered batches of all ranks, on the CPU; every rank must call this."""
        return gather_clips([tokens.cpu() for tokens in self._token_buffer])

    def restore_token_buffer(self, batches: list[torch.Tensor]) -> None:
        """Fill the buffer with this rank's part of `batches`, as `buffered_tokens` returned them."""
        self.clear_token_buffer()
        self._token_buffer.extend(own_clips(tokens).to(self.codebook_weight.device) for tokens in batches)

    @torch.no_grad()
    def start_quantizing(self, force: bool = False) -> None:
        """Initialize the codes by k-means over the buffered tokens, and quantize from now on.

        With too few tokens nothing changes, unless `force` is true: then quantization starts with the codes as they
        are. With several ranks, the tokens of all of them are used.
        """
        batches = gather_clips(list(self._token_buffer))
        tokens_SD = torch.cat([*(tokens.flatten(0, -2) for tokens in batches), self.codebook_weight[:0].cpu()])
        enough = len(tokens_SD) >= MIN_TOKENS_PER_CODE * len(self.codebook_weight)
        if enough:
            self._set_codes(
                _kmeans_centers(tokens_SD, len(self.codebook_weight)).to(self.codebook_weight.device),
                torch.ones_like(self.codebook_weight[:, 0], dtype=torch.bool),
            )
        if enough or force:
            self.started.fill_(True)
            self.clear_token_buffer()

    def _set_codes(self, codes_KD: torch.Tensor, chosen_K: torch.Tensor) -> None:
        """Set the chosen codes to `codes_KD`."""
        self.codebook_weight.copy_(torch.where(chosen_K[:, None], codes_KD, self.codebook_weight))
        if self.running_use_K is not None and self.running_sum_KD is not None:
            self.running_use_K.masked_fill_(chosen_K, 1)
            self.running_sum_KD.copy_(torch.where(chosen_K[:, None], codes_KD, self.running_sum_KD))

    def count_codes(self, codes: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
        """Number of occurrences [K] of each code in `codes` of any shape; only where `counted`, if given."""
        counted = torch.ones_like(codes) if counted is None else counted
        none_K = self.codebook_weight.new_zeros(len(self.codebook_weight), requires_grad=False)
        return none_K.index_add(0, codes.flatten(), counted.flatten().to(none_K.dtype))


def _kmeans_centers(tokens_SD: torch.Tensor, codes: int) -> torch.Tensor:
    """Cluster centers of k-means [K, D], on the CPU; with several ranks, those of rank 0."""
    from scipy.cluster.vq import kmeans2  # only training needs SciPy

    codes_KD, _ = kmeans2(tokens_SD.numpy(), codes, minit="++", rng=0)
    return from_first_rank(torch.from_numpy(codes_KD))


def perplexity(use_K: torch.Tensor) -> float:
    """exp(entropy) of the code frequencies: from 1 (one code) to K (uniform); 0 if no code was used."""
    if not use_K.sum():
        return 0.0
    share_K = use_K / use_K.sum()
    return float(torch.exp(-torch.xlogy(share_K, share_K).sum()))
