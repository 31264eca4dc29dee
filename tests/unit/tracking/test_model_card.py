"""The card of a model: training data, recipe, scores and limits."""

from __future__ import annotations

from pipelines.settings import preset_settings
from qdformer.tracking.model_card import model_card

METRICS = {
    "miou_dataset": {"value": 0.357, "low": 0.321, "high": 0.39},
    "davis_jf": {"value": None, "low": None, "high": None},
    "davis_j": {"value": 0.1, "low": 0.0, "high": 0.2},
}
TAGS = {"mlflow.source.git.commit": "0123abc", "git_dirty": "true", "dataset_digest": "d1"}


def test_card_has_data_recipe_scores_and_limits():
    settings = preset_settings("toy")
    card = model_card(settings, TAGS, {"clean": METRICS, "shuffled": {}}, "dvc://abc.dir/model.safetensors")
    for expected in (
        "# QDFormer on toy",
        "64 train, 4 val, 16 test clips",
        "VGGish, pretrained on this data set's own sounds",
        "efficientnet_lite0 from ImageNet weights",
        "| clean | 0.357 (0.321 to 0.390) | – |",
        "| shuffled | – | – |",
        "`miou_dataset`: mean IoU over classes with background",
        "do not compare them with AVSBench's",
        "Git commit: `0123abc`, with local changes",
        "dvc://abc.dir/model.safetensors",
    ):
        assert expected in card, expected
    assert "ResNet" not in card
    conditions = dict.fromkeys(map(str, range(12)), dict.fromkeys(("miou_dataset", "avsbench_f"), METRICS["davis_j"]))
    assert len(model_card(settings, TAGS, conditions, "dvc://x")) < 5000  # the registry's limit of a description


def test_card_of_a_published_data_set_does_not_mention_composed_scenes():
    card = model_card(preset_settings("s4"), {}, {"clean": METRICS}, "dvc://x")
    assert "AVSBench S4, split: published." in card and "composed" not in card and "do not compare" not in card
