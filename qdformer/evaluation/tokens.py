"""The audio tokens inside a model: before and after decomposition, and the codes that they are assigned to.

Shapes: B clips, T frames, F labeled frames of one clip, N tokens of a clip or frame, D hidden dimension, C object
classes, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

CLASS_THRESHOLD = 0.5
"""A query predicts its likeliest class in a frame if the probability exceeds this threshold."""


@dataclass(frozen=True)
class BatchTokens:
    """The tokens and queries of a batch as arrays; None for those that the model does not have."""

    tokens_BND: np.ndarray | None = None
    """The clip's tokens before quantization."""
    local_tokens_BTND: np.ndarray | None = None
    """The tokens of each frame before quantization."""
    codes_BTN: np.ndarray | None = None
    """The codes of the frames' tokens if the model calibrates them (Eq. 6), else those of the clip in every frame."""
    query_probs_BTNC: np.ndarray | None = None
    """Class probabilities of each query, the last of C + 1 classes is "no object"."""

    @classmethod
    def of(cls, output: object) -> BatchTokens:
        """The tokens in the output of any method: those fields of `QDFormerOutput` that it has."""
        tensors = {name: getattr(output, name, None) for name in ("tokens_BND", "local_tokens_BTND")}
        logits_BTNC, stats = getattr(output, "class_logits_BTNC", None), getattr(output, "quantization", None)
        if logits_BTNC is not None:
            tensors["query_probs_BTNC"] = logits_BTNC.float().softmax(-1)
            if stats is not None:
                global_codes_BTN = stats.global_codes_BN[:, None].expand(logits_BTNC.shape[:3])
                tensors["codes_BTN"] = global_codes_BTN if stats.local_codes_BTN is None else stats.local_codes_BTN
        return cls(**{name: to_array(values) for name, values in tensors.items() if values is not None})

    def of_clip(self, index: int, frames_F: np.ndarray) -> dict[str, np.ndarray | None]:
        """The arguments of `TokenScores.update` for the frames `frames_F` of the clip at `index` of the batch."""
        frames = {
            "local_tokens_FND": self.local_tokens_BTND,
            "codes_FN": self.codes_BTN,
            "query_probs_FNC": self.query_probs_BTNC,
        }
        return {
            "tokens_ND": None if self.tokens_BND is None else self.tokens_BND[index],
            **{name: None if values is None else values[index, frames_F] for name, values in frames.items()},
        }


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

    def update(self, uids: Sequence[str], output: Any, valid_BT: torch.Tensor) -> None:
        """Add a batch and the model's output for it.

        Does nothing for QDFormer without decomposition, nor for the output of another method, which has no tokens.
        """
        fused, tokens = getattr(output, "fused_BTD", None), BatchTokens.of(output)
        if fused is None or tokens.tokens_BND is None or tokens.query_probs_BTNC is None:
            return
        probs_BTNC = tokens.query_probs_BTNC[..., :-1]
        fused_BTD, exists_BT = to_array(fused), to_array(valid_BT)
        predicted_BTN = (probs_BTNC.max(axis=-1) > CLASS_THRESHOLD) & exists_BT[..., None]
        query_class_BTN = np.where(predicted_BTN, probs_BTNC.argmax(axis=-1) + 1, 0)
        for index, uid in enumerate(uids[: self.limit - len(self.clips)]):
            query_class_N = np.array([_most_frequent(query_class_T) for query_class_T in query_class_BTN[index].T])
            fused_D = fused_BTD[index][exists_BT[index]].mean(axis=0)
            self.clips.append(ClipTokens(uid, fused_D, tokens.tokens_BND[index], query_class_N))
        if tokens.codes_BTN is not None:
            self._count(query_class_BTN, tokens.codes_BTN, len(output.quantization.global_counts_K))

    def _count(self, query_class_BTN: np.ndarray, codes_BTN: np.ndarray, codebook_size: int) -> None:
        if self.code_counts_CK is None:
            self.code_counts_CK = np.zeros((self.classes, codebook_size), np.int64)
        predicted_BTN = query_class_BTN > 0
        np.add.at(self.code_counts_CK, (query_class_BTN[predicted_BTN] - 1, codes_BTN[predicted_BTN]), 1)


def _most_frequent(query_class_T: np.ndarray) -> int:
    query_class_T = query_class_T[query_class_T > 0]
    return int(np.bincount(query_class_T).argmax()) if query_class_T.size else 0


def to_array(values: torch.Tensor) -> np.ndarray:
    """The values as an array on the CPU, in single precision if they are real numbers."""
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
