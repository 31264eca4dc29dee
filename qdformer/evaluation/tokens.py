"""The audio tokens inside a model: before and after decomposition, and the codes that they are assigned to.

Shapes: B clips, T frames, N tokens of a clip, D hidden dimension, C object classes, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from qdformer.models import QDFormerOutput

CLASS_THRESHOLD = 0.5
"""A query predicts its likeliest class in a frame if the probability exceeds this threshold."""


@dataclass(frozen=True)
class ClipTokens:
    """The audio of one clip: the mean over its frames before decomposition, and N tokens after it."""

    uid: str
    fused_D: np.ndarray
    tokens_ND: np.ndarray
    query_class_N: np.ndarray
    """The class id that the token's query predicts most often over the frames, 0 if it predicts none."""


class AudioTokens:
    """Collects the tokens of the first `clips` clips, and counts the codes of each class over all clips."""

    def __init__(self, classes: int, clips: int = 256) -> None:
        self.classes, self.limit = classes, clips
        self.clips: list[ClipTokens] = []
        self.code_counts_CK: np.ndarray | None = None
        """Number of tokens with code k whose query predicts class c + 1, int64; None for a model without quantization.

        The tokens are those of the frames if the model calibrates them (Eq. 6), else the clip's, once for each frame.
        """

    def update(self, uids: Sequence[str], output: QDFormerOutput, valid_BT: torch.Tensor) -> None:
        """Add a batch and the model's output for it.

        Does nothing for QDFormer without decomposition, nor for the output of another method, which has no tokens.
        """
        fused, tokens = getattr(output, "fused_BTD", None), getattr(output, "tokens_BND", None)
        if fused is None or tokens is None:
            return
        probs_BTN, class_BTN = output.class_logits_BTNC.softmax(-1)[..., :-1].max(-1)
        predicted_BTN = (probs_BTN > CLASS_THRESHOLD) & valid_BT[..., None].to(probs_BTN.device)
        query_class_BTN = torch.where(predicted_BTN, class_BTN + 1, 0).cpu().numpy()
        fused_BTD, tokens_BND = fused.float().cpu().numpy(), tokens.float().cpu().numpy()
        valid = valid_BT.cpu().numpy()
        for index, uid in enumerate(uids[: self.limit - len(self.clips)]):
            query_class_N = np.array([_most_frequent(query_class_T) for query_class_T in query_class_BTN[index].T])
            fused_D = fused_BTD[index][valid[index]].mean(axis=0)
            self.clips.append(ClipTokens(uid, fused_D, tokens_BND[index], query_class_N))
        if (stats := output.quantization) is not None:
            codes_BTN = stats.local_codes_BTN
            if codes_BTN is None:
                codes_BTN = stats.global_codes_BN[:, None].expand_as(class_BTN)
            self._count(query_class_BTN, codes_BTN.cpu().numpy(), len(stats.global_counts_K))

    def _count(self, query_class_BTN: np.ndarray, codes_BTN: np.ndarray, codebook_size: int) -> None:
        if self.code_counts_CK is None:
            self.code_counts_CK = np.zeros((self.classes, codebook_size), np.int64)
        predicted_BTN = query_class_BTN > 0
        np.add.at(self.code_counts_CK, (query_class_BTN[predicted_BTN] - 1, codes_BTN[predicted_BTN]), 1)


def _most_frequent(query_class_T: np.ndarray) -> int:
    query_class_T = query_class_T[query_class_T > 0]
    return int(np.bincount(query_class_T).argmax()) if query_class_T.size else 0
