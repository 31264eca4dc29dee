"""What becomes of the sound inside the model: its tokens before and after decomposition, and the codes they take.

Shapes: B clips, T frames, N tokens of a clip, D width, C object classes, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from qdformer.models.qdformer.model import QDFormerOutput

CLASS_THRESHOLD = 0.5
"""The probability from which on a token's query says that its class sounds."""


@dataclass(frozen=True)
class ClipTokens:
    """The sound of one clip: before decomposition, the mean over its frames; after it, N tokens."""

    uid: str
    fused_D: np.ndarray
    tokens_ND: np.ndarray
    query_class_N: np.ndarray
    """The class id that the token's query names most often over the frames, 0 where it names none."""


class AudioTokens:
    """Collects the tokens of the first `clips` clips, and how often which code stood for which class, of all."""

    def __init__(self, classes: int, clips: int = 256) -> None:
        self.classes, self.limit = classes, clips
        self.clips: list[ClipTokens] = []
        self.code_counts_CK: np.ndarray | None = None
        """How many tokens that named class c + 1 took code k, int64; None for a model that does not quantize.

        The tokens are those of the frames where the model calibrates them, else the clip's, for each frame.
        """

    def update(self, uids: Sequence[str], output: QDFormerOutput, valid_BT: torch.Tensor) -> None:
        """Add a batch that the model has answered with `output`; nothing for a model that does not decompose."""
        if output.tokens_BND is None:
            return
        sure_BTN, class_BTN = output.class_logits_BTNC.softmax(-1)[..., :-1].max(-1)
        named_BTN = torch.where(
            (sure_BTN > CLASS_THRESHOLD) & valid_BT[..., None].to(sure_BTN.device), class_BTN + 1, 0
        )
        query_class_BTN, valid_BT = named_BTN.cpu().numpy(), valid_BT.cpu().numpy()
        fused_BTD, tokens_BND = output.fused_BTD.float().cpu().numpy(), output.tokens_BND.float().cpu().numpy()
        for index, uid in enumerate(uids[: self.limit - len(self.clips)]):
            query_class_N = np.array([_most_frequent(query_class_T) for query_class_T in query_class_BTN[index].T])
            fused_D = fused_BTD[index][valid_BT[index]].mean(axis=0)
            self.clips.append(ClipTokens(uid, fused_D, tokens_BND[index], query_class_N))
        if (stats := output.quantization) is not None:
            codes = stats.local_codes_BTN
            codes = stats.global_codes_BN[:, None].expand_as(named_BTN) if codes is None else codes
            self._count(query_class_BTN, codes.cpu().numpy(), len(stats.global_counts_K))

    def _count(self, query_class_BTN: np.ndarray, codes_BTN: np.ndarray, codes: int) -> None:
        if self.code_counts_CK is None:
            self.code_counts_CK = np.zeros((self.classes, codes), np.int64)
        naming = query_class_BTN > 0
        np.add.at(self.code_counts_CK, (query_class_BTN[naming] - 1, codes_BTN[naming]), 1)


def _most_frequent(query_class_T: np.ndarray) -> int:
    query_class_T = query_class_T[query_class_T > 0]
    return int(np.bincount(query_class_T).argmax()) if query_class_T.size else 0
