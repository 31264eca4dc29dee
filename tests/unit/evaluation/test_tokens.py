"""The collected audio tokens: those of single clips, and the number of codes by class."""

from __future__ import annotations

import numpy as np
import torch

from qdformer.evaluation.tokens import CLASS_THRESHOLD, AudioTokens
from tests.helpers.model import CLASSES, make_clips, make_model

VALID = torch.tensor([[True, True], [True, False]])


def model_output(**changes):
    model = make_model(**changes).eval()
    images, audio, _ = make_clips()
    with torch.inference_mode():
        output = model(images, audio, VALID)
    logits = torch.zeros_like(output.class_logits_BTNC)
    logits[..., CLASSES] = 9  # no object, except for the following
    logits[0, :, 0, 1], logits[0, 0, 1, 2], logits[1, :, 2, 3] = 20, 20, 20
    output.class_logits_BTNC = logits
    return output


def test_tokens_of_a_clip_and_their_predicted_classes():
    output, tokens = model_output(), AudioTokens(CLASSES)
    tokens.update(["one", "two"], output, VALID)
    one, two = tokens.clips
    assert (one.uid, two.uid) == ("one", "two")
    assert one.query_class_N.tolist() == [2, 3, 0] and two.query_class_N.tolist() == [0, 0, 4]
    assert one.tokens_ND.shape == (3, 32) and np.array_equal(two.tokens_ND, output.tokens_BND[1].numpy())
    assert np.allclose(one.fused_D, output.fused_BTD[0].mean(0)) and np.allclose(two.fused_D, output.fused_BTD[1, 0])


def test_codes_are_counted_by_the_class_of_their_query():
    output, tokens = model_output(), AudioTokens(CLASSES)
    tokens.update(["one", "two"], output, VALID)
    tokens.update(["three", "four"], output, VALID)
    codes = output.quantization.local_codes_BTN
    expected = np.zeros((CLASSES, 16), int)
    for class_id, code in ((2, codes[0, 0, 0]), (2, codes[0, 1, 0]), (3, codes[0, 0, 1]), (4, codes[1, 0, 2])):
        expected[class_id - 1, code] += 2
    assert (tokens.code_counts_CK == expected).all()


def test_codes_of_the_clip_are_counted_without_calibration():
    output, tokens = model_output(calibrate=False), AudioTokens(CLASSES)
    tokens.update(["one", "two"], output, VALID)
    assert output.quantization.local_codes_BTN is None
    assert tokens.code_counts_CK.sum() == 4 and tokens.code_counts_CK[1, output.quantization.global_codes_BN[0, 0]] == 2


def test_models_without_decomposition_or_quantization_have_no_tokens_or_codes():
    tokens = AudioTokens(CLASSES)
    tokens.update(["one", "two"], model_output(quantize=False), VALID)
    assert len(tokens.clips) == 2 and tokens.code_counts_CK is None
    tokens = AudioTokens(CLASSES)
    baseline = model_output(decompose=False, quantize=False, recombine=False, calibrate=False)
    assert baseline.tokens_BND is None
    tokens.update(["one", "two"], baseline, VALID)
    assert not tokens.clips and tokens.code_counts_CK is None


def test_limit_of_clips_and_threshold_of_classes():
    output, tokens = model_output(), AudioTokens(CLASSES, clips=1)
    output.class_logits_BTNC[0, :, 0, 1] = 9  # as likely as silence
    assert output.class_logits_BTNC.softmax(-1)[0, 0, 0, 1] < CLASS_THRESHOLD
    tokens.update(["one", "two"], output, VALID)
    assert [clip.uid for clip in tokens.clips] == ["one"] and tokens.clips[0].query_class_N.tolist() == [0, 3, 0]
    tokens.update(["three"], output, VALID)
    assert len(tokens.clips) == 1
