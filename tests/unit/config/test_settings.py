"""Settings: every wrong value raises one error that names its key."""

from __future__ import annotations

import copy

import pytest
import yaml

from qdformer.config.base import SettingsError
from qdformer.config.renamed import RENAMED
from qdformer.config.settings import load_settings, parse_settings
from tests.helpers import PROJECT

PARAMS = PROJECT / "params.yaml"

AUDIOSET = {
    "source": "audioset",
    "segments": ["eval_segments.csv"],
    "ontology": "ontology.json",
    "folder": "clips",
    "fetch": False,
    "labels": ["Wind"],
    "count": {"test": 50},
    "minimum": 20,
    "seed": 0,
}


@pytest.fixture
def values() -> dict:
    return yaml.safe_load(PARAMS.read_text())


def test_the_project_s_own_settings_are_valid():
    assert load_settings(PARAMS).train.model.codebook_size == 128


def test_audioset_s_settings_are_valid(values):
    assert parse_settings(values | {"noise": AUDIOSET}).noise.count == {"test": 50}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epoch", 3, r"train\.epoch: unknown key; known here: .*epochs"),
        ("train.model.width", 64, r"train\.model\.width: unknown key; it is called hidden_dim now$"),
        ("train.augment.colour", 0.1, r"train\.augment\.colour: unknown key; it is called color now$"),
        ("features.centre", True, r"features\.centre: unknown key; it is called center now$"),
        ("check.speck", 0.1, r"check\.speck: unknown key; it is called min_component_area now$"),
        ("nosuch", {}, r"nosuch: unknown key; known here: download, check, pretrain"),
        ("train.epochs", "three", r"train\.epochs: .*integer.*'three'"),
        ("train.epochs", 0, r"train\.epochs: .*greater than 0, not 0"),
        ("train.epochs", True, r"train\.epochs: .*integer"),
        ("train.model.backbone", "resnet51", r"train\.model\.backbone: .*'efficientnet_lite0'.*not 'resnet51'"),
        (
            "train.model",
            {"backbone": "resnet50", "backbone_weights": None},
            r"train\.model: frozen_stages \(7\) must not be above 4, the stages of resnet50",
        ),
        ("train.model.frozen_stages", 8, r"train\.model: frozen_stages \(8\) must not be above 7, the stages of eff"),
        ("train.model.backbone_weights", "r50.pth", r"train\.model\.backbone_weights: expected null, .*not 'r50\.pth'"),
        (
            "train.model.backbone_weights",
            "files/r50.pth",
            r"backbone_weights: .*absolute path .*not 'files/r50\.pth'",
        ),
        ("train.model.backbone_weights", "./r50", r"train\.model\.backbone_weights: .*not '\./r50'"),
        (
            "train.model",
            {"backbone": "swin_tiny", "frozen_stages": 0},
            r"train\.model: backbone_weights: package is not for swin_tiny; expected a hub id, the absolute path",
        ),
        (
            "train.model.backbone_weights",
            "microsoft/resnet-50",
            r"backbone_weights: microsoft/resnet-50 is not for efficientnet_lite0; expected package, the absolute path",
        ),
        (
            "train.model.backbone_sha256",
            "0" * 64,
            r"train\.model: backbone_sha256 is the digest of the file in",
        ),
        ("train.model.backbone_sha256", "123", r"train\.model\.backbone_sha256: .*not '123'"),
        ("train.model.num_heads", 7, r"train\.model: hidden_dim \(\d+\) must be a multiple of num_heads \(7\)"),
        (
            "train.model.encoder",
            "deformable",
            r"train\.model: mask_stride \(8\) must be 4 with encoder: deformable",
        ),
        (
            "train.model.fusion_stride",
            8,
            r"train\.model: fusion_stride \(8\) with mask_stride 8: expected 16, 32, 64",
        ),
        (
            "train.model.frozen_stages",
            6,
            r"train: cached_views \(2\) needs a frozen backbone: backbone_weights and frozen_stages: 7; expected 0",
        ),
        (
            "train.model.query_residual_dim",
            999,
            r"train\.model: query_residual_dim \(999\) must not be above hidden_dim",
        ),
        ("train.model.separate", True, r"train\.model: separate takes the place of decompose"),
        ("train.model.decompose", False, r"train\.model: quantize, recombine and calibrate need decompose"),
        ("train.augment.flip", 1.5, r"train\.augment\.flip: .*less than or equal to 1, not 1\.5"),
        ("download.image_size", 100, r"download\.image_size: .*multiple of 32, not 100"),
        ("mix.conditions", {"clean": None, "snr20": 10.0}, r"mix: condition snr20 must be 20\.0, not 10\.0"),
        ("mix.conditions", {"snr20": 20.0}, r"mix: conditions must hold clean"),
        ("noise.source", "youtube", r"noise\.source: .*'dataset', 'audioset' or 'none', not 'youtube'"),
        ("noise.source", "audioset", r"noise: source: audioset needs segments, ontology, and folder or fetch: true"),
        ("noise.source", "none", r"noise\.source: none leaves mix\.conditions nothing for snr-5, snr0, snr10, snr20"),
        ("download.seed", None, r"download: dataset: stamps needs seed"),
        ("download.source", ["s4.zip"], r"download: dataset: stamps is composed; source, sha256 and split are for"),
        ("download.split", "youtube_disjoint", r"download: dataset: stamps is composed"),
        (
            "download.dataset",
            "s4",
            r"download: dataset: s4 is not composed; seed, clips, frames, image_size",
        ),
        ("download.sha256", ["12"], r"download\.sha256\.0: .*not '12'"),
        ("train.task", "vos", r"train\.task: .*'avs' or 'avss', not 'vos'"),
        ("train.resize", "pad", r"train\.resize: .*'longest', 'squash' or 'crop', not 'pad'"),
        ("noise.labels", [], r"noise\.labels: .*at least 1 item"),
        ("noise.count", {"test": 0}, r"noise\.count\.test: .*greater than 0, not 0"),
        ("noise.count", {"exam": 9}, r"noise\.count\.exam.*: .*'train', 'val' or 'test'"),
        ("noise.minimum", 60, r"noise: minimum \(60\) must not be above the counts \(50\)"),
        ("noise", AUDIOSET | {"count": {"val": 50}}, r"noise\.count must name every split of mix\.noisy_splits; test"),
        ("features.short_clips", "once", r"features\.short_clips: .*'repeat' or 'zero', not 'once'"),
        ("features.pca_sha256", "970", r"features\.pca_sha256: .*not '970'"),
        ("features.bad_clips", 2.0, r"features\.bad_clips: .*less than or equal to 1, not 2\.0"),
        ("pretrain.weights", "official", r"pretrain: weights: official needs official_source"),
        ("sweep.grids", {"g": {"x": ["decompose"]}}, r"sweep: grids\.g\.x: decompose: expected KEY=VALUE, such as"),
        ("sweep.grids", {"g": {"x": ["mix=1"]}}, r"sweep: grids\.g\.x: mix=1: mix is a section; expected one of its"),
        ("sweep.grids", {"g": {"x": ["a=[1"]}}, r"sweep: grids\.g\.x: a=\[1: the value is not valid YAML"),
        ("sweep.grids", {"g": {"x": ["a=1", "a.b=2"]}}, r"sweep: grids\.g\.x: a\.b=2: a has been set to a value"),
        ("sweep.grids", {"g": {}}, r"sweep\.grids\.g: .*at least 1 item"),
        ("sweep.seeds", 0, r"sweep\.seeds: .*greater than 0, not 0"),
        ("evaluate.controls", ["noisy"], r"evaluate\.controls\.0: .*'silence', 'noise', 'offscreen' or 'untrained'"),
        ("sweep.conditions", ["clean", "snr7"], r"sweep\.conditions must hold clean.*; snr7 is not"),
        ("sweep.conditions", ["snr0"], r"sweep\.conditions must hold clean, and only names of mix\.conditions$"),
        ("train.condition", "snr7", r"train\.condition must be one of mix\.conditions \(clean, .*\), not snr7"),
        ("train.condition", "snr0", r"train\.condition: snr0 needs the split train in mix\.noisy_splits"),
        ("evaluate.split", "val", r"mix\.noisy_splits must hold evaluate\.split \(val\)"),
    ],
)
def test_a_wrong_value_names_its_key(values, key, value, message):
    section = values
    *parents, last = key.split(".")
    for name in parents:
        section = section[name]
    section[last] = section[last] | value if isinstance(value, dict) and last == "model" else value
    with pytest.raises(SettingsError, match=message):
        parse_settings(values)


PUBLISHED = {"dataset": "s4", "source": ["a.zip", "b.zip"]}


def test_a_published_data_set_needs_no_settings_of_generated_ones(values):
    values["train"]["task"] = "avs"
    assert parse_settings(values | {"download": PUBLISHED}).download.split == "published"
    with pytest.raises(SettingsError, match=r"download: sha256 has 1 digests; expected 2, as source"):
        parse_settings(values | {"download": PUBLISHED | {"sha256": ["0" * 64]}})
    values["train"]["task"] = "avss"
    with pytest.raises(SettingsError, match=r"download\.dataset: s4 names no classes; expected train\.task: avs"):
        parse_settings(values | {"download": PUBLISHED})


def test_the_control_offscreen_needs_named_classes(values):
    values["train"]["task"] = "avs"
    ms3 = {"download": {"dataset": "ms3", "source": ["ms3.zip"]}}
    with pytest.raises(SettingsError, match=r"ms3 names no sources; evaluate\.controls cannot hold offscreen"):
        parse_settings(values | ms3)
    values["evaluate"]["controls"] = ["silence", "noise"]
    assert parse_settings(values | ms3).evaluate.controls == ["silence", "noise"]


def test_a_missing_key_is_named(values):
    del values["train"]["epochs"]
    with pytest.raises(SettingsError, match=r"train\.epochs: Field required"):
        parse_settings(values)


def test_all_problems_are_reported_at_once(values):
    broken = copy.deepcopy(values)
    broken["train"]["epochs"], broken["mix"]["seed"] = -1, -1
    with pytest.raises(SettingsError, match=r"(?s)mix\.seed.*train\.epochs"):
        parse_settings(broken)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(SettingsError, match="none.yaml: no such settings file"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(SettingsError, match="broken.yaml: not valid YAML"):
        load_settings(tmp_path / "broken.yaml")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_settings(PARAMS).train.epochs = 1


@pytest.mark.parametrize("section", RENAMED)
def test_the_error_for_an_old_key_has_its_new_name(values, section):
    """The missing new key is then not reported as well."""
    for old, new in RENAMED[section].items():
        changed = copy.deepcopy(values)
        place = changed
        for part in section.split("."):
            place = place[part]
        place[old] = place.pop(new)
        with pytest.raises(SettingsError) as caught:
            parse_settings(changed, "params.yaml")
        assert str(caught.value) == f"params.yaml: {section}.{old}: unknown key; it is called {new} now"
