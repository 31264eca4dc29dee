"""Batch normalization that leaves out padding frames.

Shapes: B clips, T frames, S visual tokens of a frame, D hidden dimension, X valid frames of a batch, Y their tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from qdformer.utils.distributed import differentiable_sum_over_ranks, is_distributed, sum_over_ranks


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch normalization of each channel over all visual tokens of the valid frames of a batch.

    Even one clip has thousands of tokens, but the tokens of a clip are alike, so the statistics of small batches vary
    more than the number of tokens suggests. With several ranks the statistics are those of the global batch (torch's
    `SyncBatchNorm` does not run on CPUs). In evaluation mode clips do not influence each other.
    """

    def forward(self, x_BTSD: torch.Tensor, valid_BT: torch.Tensor | None = None) -> torch.Tensor:
        if not self.training or valid_BT is None:
            return super().forward(x_BTSD.flatten(0, -2)).view_as(x_BTSD)
        valid_XSD = x_BTSD[valid_BT]
        normalize = self._normalize_over_ranks if is_distributed() else super().forward
        normalized_XSD = normalize(valid_XSD.flatten(0, 1)).view_as(valid_XSD)
        result_BTSD = torch.zeros_like(x_BTSD, dtype=normalized_XSD.dtype)
        result_BTSD[valid_BT] = normalized_XSD
        return result_BTSD

    def _normalize_over_ranks(self, x_YD: torch.Tensor) -> torch.Tensor:
        """Batch normalization over the rows of all ranks, of which this one has `x_YD`, in float32."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        values_YD = x_YD.float()
        count = sum_over_ranks(values_YD.new_tensor(len(values_YD)))
        mean_D = differentiable_sum_over_ranks(values_YD.sum(0)) / count
        centered_YD = values_YD - mean_D
        var_D = differentiable_sum_over_ranks(centered_YD.square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean_D, self.momentum)
            self.running_var.lerp_(var_D * count / (count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return (centered_YD * (var_D + self.eps).rsqrt() * self.weight + self.bias).to(x_YD.dtype)
