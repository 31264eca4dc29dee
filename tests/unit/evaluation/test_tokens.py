"""What is kept of a sound's way through the model: clips' tokens, and codes by class."""

from __future__ import annotations

import numpy as np
import torch

from qdformer.evaluation.tokens import CLASS_THRESHOLD, AudioTokens
from tests.helpers.model import CLASSES, make_clips, make_model

VALID = torch.tensor([[True, True], [True, False]])


def answered(**changes):
    model = make_model(**changes).eval()
    images, audio, _ = make_clips()
    with torch.inference_mode():
        output = model(images, audio, VALID)
    logits = torch.zeros_like(output.class_logits_BTNC)
    logits[..., CLASSES] = 9  # silent, but for what follows
    logits[0, :, 0, 1], logits[0, 0, 1, 2], logits[1, :, 2, 3] = 20, 20, 20
    output.class_logits_BTNC = logits
    return output


def test_a_clip_s_tokens_and_what_they_are_called():
    output, tokens = answered(), AudioTokens(CLASSES)
    tokens.update(["one", "two"], output, VALID)
    one, two = tokens.clips
    assert (one.uid, two.uid) == ("one", "two")
    assert one.query_class_N.tolist() == [2, 3, 0] and two.query_class_N.tolist() == [0, 0, 4]
    assert one.tokens_ND.shape == (3, 32) and np.array_equal(two.tokens_ND, output.tokens_BND[1].numpy())
    assert np.allclose(one.fused_D, output.fused_BTD[0].mean(0)) and np.allclose(two.fused_D, output.fused_BTD[1, 0])


def test_codes_are_counted_by_the_class_that_their_query_names():
    output, tokens = answered(), AudioTokens(CLASSES)
    tokens.update(["one", "two"], output, VALID)
    tokens.update(["three", "four"], output, VALID)
    codes = output.quantization.local_codes_BTN
    expected = np.zeros((CLASSES, 16), int)
    for class_id, code in ((2, codes[0, 0, 0]), (2, codes[0, 1, 0]), (3, codes[0, 0, 1]), (4, codes[1, 0, 2])):
        expected[class_id - 1, code] += 2
    assert (tokens.code_counts_CK == expected).all()


def test_without_calibration_the_clip_s_codes_are_counted():
    output, tokens = answered(calibrate=False), AudioTokens(CLASSES)
    tokens.update(["one", "two"], output, VALID)
    assert output.quantization.local_codes_BTN is None
    assert tokens.code_counts_CK.sum() == 4 and tokens.code_counts_CK[1, output.quantization.global_codes_BN[0, 0]] == 2


def test_models_without_the_parts_have_nothing_to_show():
    tokens = AudioTokens(CLASSES)
    tokens.update(["one", "two"], answered(quantize=False), VALID)
    assert len(tokens.clips) == 2 and tokens.code_counts_CK is None
    tokens = AudioTokens(CLASSES)
    baseline = answered(decompose=False, quantize=False, recombine=False, calibrate=False)
    assert baseline.tokens_BND is None
    tokens.update(["one", "two"], baseline, VALID)
    assert not tokens.clips and tokens.code_counts_CK is None


def test_only_the_first_clips_are_kept_and_only_sure_names():
    output, tokens = answered(), AudioTokens(CLASSES, clips=1)
    output.class_logits_BTNC[0, :, 0, 1] = 9  # as likely as silence
    assert output.class_logits_BTNC.softmax(-1)[0, 0, 0, 1] < CLASS_THRESHOLD
    tokens.update(["one", "two"], output, VALID)
    assert [clip.uid for clip in tokens.clips] == ["one"] and tokens.clips[0].query_class_N.tolist() == [0, 3, 0]
    tokens.update(["three"], output, VALID)
    assert len(tokens.clips) == 1
