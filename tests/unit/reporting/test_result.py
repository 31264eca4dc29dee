"""The files of a result: what is written is read again."""

from __future__ import annotations

import json

import numpy as np

from qdformer.evaluation.evaluate import evaluate
from qdformer.evaluation.result import DECOMPOSITION, SCORES
from qdformer.reporting.result import read_resamples, read_result, write_result
from tests.unit.evaluation.test_evaluate import CLASSES, blurred_truth, drawn, manifest_of


def test_written_result_is_read_again(tmp_path):
    batch = drawn()
    options = {"manifest": manifest_of(batch), "picture_uids": ["clip1"], "bootstrap": 20}
    results = {name: evaluate(blurred_truth, [batch], CLASSES, **options) for name in ("clean", "silence", "snr-5")}
    write_result(results, CLASSES, tmp_path)
    read = read_result(tmp_path)
    assert read.metrics["clean"] == results["clean"].summary
    assert list(read.metrics["silence"]) == [*SCORES, *DECOMPOSITION, "clips", "fpr", "g_miou"]
    assert read.intervals == json.loads(json.dumps({name: result.intervals for name, result in results.items()}))
    assert read.clips["condition"].unique().tolist() == ["clean", "silence", "snr-5"] and len(read.clips) == 18
    assert read.robustness["snr"].tolist() == [-5]
    (picture,) = read.pictures
    assert picture.uid == "clip1" and np.array_equal(picture.truth_THW, results["clean"].pictures[0].truth_THW)
    assert {"confusion", "robustness", "pictures", "classes"} <= set(read.figures)

    resamples = read_resamples(tmp_path)
    assert list(resamples) == ["clean", "silence", "snr-5"]
    for name, result in results.items():
        groups = {f"{key}_{by}_{group}" for (by, group), scores in result.source_resamples.items() for key in scores}
        assert groups and set(resamples[name]) == {*result.resamples, *groups}
        assert all(len(values) == 21 for values in resamples[name].values())
        assert np.array_equal(resamples[name]["davis_jf"], result.resamples["davis_jf"], equal_nan=True)
