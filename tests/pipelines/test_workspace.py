"""Presets and their workspaces: separate results, tracked files stay as they are, one run at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import yaml

from pipelines.environment import tracking_environment
from pipelines.settings import overrides_path, preset_settings, save_overrides
from pipelines.workspace import BusyError, locked_outs, locked_workspace, open_workspace, provenance, workspace_lock
from qdformer.config.base import SettingsError
from qdformer.config.settings import read_yaml
from qdformer.utils.processes import process_identity


def written(name, project):
    """The preset's workspace with its `params.yaml`, as a run leaves it."""
    with locked_workspace(name, project.root) as (_, workspace, _):
        return workspace


def test_every_preset_is_valid_and_differs_only_where_it_says(project):
    default = preset_settings()
    toy = preset_settings("toy")
    assert toy.download.dataset == "toy"
    assert toy.mix == default.mix
    assert toy.train.loss == default.train.loss
    assert toy.train.model.hidden_dim < default.train.model.hidden_dim


def test_the_data_set_of_params_yaml_is_the_default(project):
    assert preset_settings("stamps", project.root) == preset_settings("", project.root)
    assert open_workspace("stamps", project.root) == open_workspace("", project.root) == project.root


def test_the_presets_of_the_published_sets_follow_the_paper():
    for name, epochs in (("s4", 13), ("ms3", 13), ("avss", 16)):
        settings = preset_settings(name)
        assert settings.download.dataset == name and settings.download.seed is None
        assert settings.mix.conditions == {"clean": None} and settings.noise.source == "none"
        train = settings.train
        assert train.task == ("avss" if name == "avss" else "avs") and train.resize == "longest"
        assert (train.epochs, train.batch_size, train.learning_rate, train.weight_decay) == (epochs, 4, 1e-4, 5e-4)
        assert [round(share * epochs) for share in train.lr_milestones] == [11, 14][: len(train.lr_milestones)]
        assert train.model.encoder == "deformable" and train.model.hidden_dim == 256 and train.image_size == 224
        assert (train.model.backbone, train.model.frozen_stages) == ("resnet50", 0)
        assert (train.model.num_prototypes, train.model.codebook_size, train.model.codebook) == (5, 128, "loss")
        assert train.model.quantize_after == train.model.reset_dead_codes_after == train.model.query_residual_dim == 0
        assert (train.model.recombination_norm, train.model.calibrate_from) == ("batch", "audio")
        assert train.model.filters_from == "quantized" and train.model.share_prototypes
        assert train.loss.quantize_reduction == "sum" and train.loss.commitment == 0.25
        assert train.loss.token_cls == train.loss.token_match == 0
        assert train.loss.quantize == pytest.approx(0.5 / (5 * 256), rel=0.05)
        assert train.model.backbone_weights == "microsoft/resnet-50"
        swin = preset_settings(f"{name}-swin")
        other = {"backbone": "swin_tiny", "backbone_weights": "microsoft/swin-tiny-patch4-window7-224"}
        model = train.model.model_copy(update=other)
        assert swin == settings.model_copy(update={"train": train.model_copy(update={"model": model})})


def test_the_presets_of_avsegformer_follow_its_public_code():
    for name, epochs, size in (("s4", 30, 512), ("ms3", 60, 512), ("avss", 30, 224)):
        base, settings = preset_settings(name), preset_settings(f"{name}-avsegformer")
        assert settings.model_copy(update={"train": base.train}) == base  # the same data, features and evaluation
        train, model = settings.train, settings.train.model
        assert (model.name, model.backbone, model.backbone_weights) == (
            "avsegformer",
            "resnet50",
            "microsoft/resnet-50",
        )
        assert (model.generator_layers, model.encoder_layers, model.decoder_layers) == (6, 6, 6)
        assert (model.hidden_dim, model.num_queries, model.mask_stride, model.output_stride) == (256, 300, 4, 1)
        assert (train.loss.mask, train.loss.mix, train.loss.kind) == (1.0, 0.1, "dice")
        assert (train.task, train.epochs, train.image_size, train.resize) == (base.train.task, epochs, size, "squash")
        assert (train.learning_rate, train.backbone_lr_mult, train.lr_milestones) == (2e-5, 1.0, [])
        assert train.batch_size == (4 if name == "avss" else 2)
        pvt = preset_settings(f"{name}-avsegformer-pvt").train.model
        assert pvt == model.model_copy(update={"backbone": "pvt_v2_b5", "backbone_weights": "OpenGVLab/pvt_v2_b5"})
    stamps = preset_settings("avsegformer").train
    own = {key: getattr(stamps, key) for key in ("model", "loss", "learning_rate")}
    assert stamps == preset_settings().train.model_copy(update=own)


def test_the_presets_of_tpavi_follow_its_public_code():
    for name, epochs, avm in (("s4", 15, 0.0), ("ms3", 30, 10.0), ("avss", 60, 0.5)):
        base, settings = preset_settings(name), preset_settings(f"{name}-tpavi")
        assert settings.model_copy(update={"train": base.train}) == base  # the same data, features and evaluation
        train, model = settings.train, settings.train.model
        assert (model.name, model.hidden_dim, model.tpavi_stages) == ("tpavi", 256, [1, 2, 3, 4])
        assert (model.backbone, model.audio_bias, model.window) == ("resnet50", name != "avss", 5)
        assert (train.loss.mask, train.loss.avm) == (1.0, avm)
        assert (train.task, train.epochs, train.batch_size, train.resize) == (base.train.task, epochs, 4, "squash")
        assert (train.learning_rate, train.backbone_lr_mult, train.weight_decay) == (1e-4, 1.0, 0.0)
        pvt = preset_settings(f"{name}-tpavi-pvt").train.model
        assert pvt == model.model_copy(update={"backbone": "pvt_v2_b5", "backbone_weights": "OpenGVLab/pvt_v2_b5"})
    stamps = preset_settings("tpavi").train
    own = {key: getattr(stamps, key) for key in ("model", "loss", "max_grad_norm")}
    assert stamps == preset_settings().train.model_copy(update=own)


def test_the_presets_of_bigen_follow_its_public_code():
    for name, epochs, masks_from, avm in (("s4", 15, "prediction", 0.0), ("ms3", 30, "truth", 30.0)):
        base, settings = preset_settings(name), preset_settings(f"{name}-bigen")
        assert settings.model_copy(update={"train": base.train}) == base  # the same data, features and evaluation
        train, model = settings.train, settings.train.model
        assert (model.name, model.backbone, model.hidden_dim, model.fusion) == ("bigen", "resnet50", 128, "correlation")
        assert (train.loss.mask, train.loss.audio, train.loss.avm, train.loss.masks_from) == (1.0, 1.0, avm, masks_from)
        assert (train.task, train.epochs, train.batch_size, train.learning_rate) == ("avs", epochs, 12, 1e-4)
        pvt = preset_settings(f"{name}-bigen-pvt").train.model
        assert pvt == model.model_copy(update={"backbone": "pvt_v2_b5", "backbone_weights": "OpenGVLab/pvt_v2_b5"})


@pytest.mark.parametrize("method", ["lvs", "mssl"])
def test_the_presets_of_sound_localization_have_a_resnet_18_and_the_budget_of_tpavi(method):
    for name in ("s4", "ms3"):
        settings, other = preset_settings(f"{name}-{method}"), preset_settings(f"{name}-tpavi")
        model = settings.train.model
        assert (model.name, model.backbone, model.backbone_weights) == (method, "resnet18", "microsoft/resnet-18")
        own = {key: getattr(settings.train, key) for key in ("model", "loss")}
        assert settings == other.model_copy(update={"train": other.train.model_copy(update=own)})
    stamps = preset_settings(method).train
    own = {key: getattr(stamps, key) for key in ("model", "loss", "max_grad_norm")}
    assert stamps == preset_settings().train.model_copy(update=own)


def test_overrides_apply_to_the_presets_that_extend_a_preset(project):
    save_overrides("s4", {"download": {"source": ["/data/s4.zip"]}, "train": {"epochs": 2}}, project.root)
    save_overrides(
        "s4", {"train": {"model": {"backbone_weights": "/w/r50.pth", "backbone_sha256": "0" * 8}}}, project.root
    )
    save_overrides("s4-swin", {"train": {"epochs": 3}}, project.root)
    s4, swin = preset_settings("s4", project.root), preset_settings("s4-swin", project.root)
    assert (s4.train.epochs, swin.train.epochs) == (2, 3)
    assert swin.download.source == s4.download.source == ["/data/s4.zip"]
    assert (s4.train.model.backbone_weights, s4.train.model.backbone_sha256) == ("/w/r50.pth", "0" * 8)
    assert swin.train.model.backbone_weights.startswith("microsoft/swin") and swin.train.model.backbone_sha256 is None


@pytest.mark.parametrize(
    ("presets", "message"),
    [
        ({"a": "nope"}, r"no preset 'nope' \(a extends nope\); there are: a, avsegformer, avss"),
        ({"a": "b", "b": "a"}, r"preset 'a' extends itself \(a extends b extends a\)"),
        ({"a": "[s4]"}, r"no preset \"\['s4'\]\""),
    ],
)
def test_a_wrong_extends_is_an_error_that_names_the_chain(project, presets, message):
    for name, base in presets.items():
        (project.root / f"pipelines/presets/{name}.yaml").write_text(f"extends: {base}\n")
    with pytest.raises(SettingsError, match=message):
        preset_settings("a", project.root)
    assert not (project.root / "workspaces").exists()


def test_presets_share_the_cache(project):
    (project.root / "pipelines/presets/more.yaml").write_text("extends: toy\ntrain: {epochs: 3}\n")
    toy, more = written("toy", project), written("more", project)
    assert "Running stage 'download'" in project.dvc_repro(toy)
    output = project.dvc_repro(more)
    assert "Running stage 'download'" not in output and "Running stage 'train'" in output
    assert locked_outs(more)["data/dataset"] == locked_outs(toy)["data/dataset"]


def test_overrides_are_saved_and_merged_over_the_preset(project):
    save_overrides("s4", {"download": {"source": ["/data/s4.zip"]}}, project.root)
    save_overrides("s4", {"train": {"epochs": 2}}, project.root)
    settings = preset_settings("s4", project.root)
    assert settings.download.source == ["/data/s4.zip"] and settings.train.epochs == 2
    assert settings.train.model == preset_settings("s4").train.model
    params = yaml.safe_load((written("s4", project) / "params.yaml").read_text())
    assert params["download"]["source"] == ["/data/s4.zip"] and params["train"]["epochs"] == 2
    kept = overrides_path("s4", project.root).read_text()
    with pytest.raises(SettingsError, match=r"s4 with the values given: train\.epochs"):
        save_overrides("s4", {"train": {"epochs": 0}}, project.root)
    assert overrides_path("s4", project.root).read_text() == kept
    with pytest.raises(SettingsError, match="no preset 'nope'"):
        save_overrides("nope", {}, project.root)
    with pytest.raises(SettingsError, match=r"params\.yaml; change them there"):
        save_overrides("stamps", {}, project.root)


@pytest.mark.parametrize("name", ["nope", "../toy", "."])
def test_an_unknown_preset_lists_the_known_ones_and_writes_nothing(project, name):
    with pytest.raises(
        SettingsError,
        match=r"no preset .*; there are: .*avss, .*avss-light, .*avss-swin, .*, toy",
    ):
        open_workspace(name, project.root)
    assert not (project.root / "workspaces").exists()


def test_a_wrong_value_in_a_preset_names_key_and_file_and_writes_nothing(project):
    (project.root / "pipelines/presets/bad.yaml").write_text("train: {epochs: 0, widht: 3}\n")
    with pytest.raises(SettingsError, match=r"presets/bad.yaml: train.widht: unknown key(.|\n)*train.epochs"):
        open_workspace("bad", project.root)
    assert not (project.root / "workspaces").exists()


def test_opening_again_writes_only_changed_settings(project):
    workspace = written("toy", project)
    before = {path.name: path.lstat().st_mtime_ns for path in workspace.iterdir()}
    assert written("toy", project) == workspace
    assert {path.name: path.lstat().st_mtime_ns for path in workspace.iterdir()} == before

    project.edit("params.yaml", "weight_decay: 0.0005", "weight_decay: 0.25")
    written("toy", project)
    params = yaml.safe_load((workspace / "params.yaml").read_text())
    assert params["train"]["weight_decay"] == 0.25
    assert params["download"]["dataset"] == "toy"


def test_the_settings_of_a_run_stay_while_it_runs(project):
    with locked_workspace("toy", project.root) as (settings, workspace, _):
        kept = (workspace / "params.yaml").read_text()
        project.edit("params.yaml", "weight_decay: 0.0005", "weight_decay: 0.25")
        assert open_workspace("toy", project.root) == workspace  # as `make report` does
        with pytest.raises(BusyError), locked_workspace("toy", project.root):
            pass
        assert (workspace / "params.yaml").read_text() == kept
        assert settings.train.weight_decay == 0.0005
    with locked_workspace("toy", project.root) as (settings, workspace, _):
        assert settings.train.weight_decay == 0.25 == read_yaml(workspace / "params.yaml")["train"]["weight_decay"]


def test_what_a_killed_run_left_behind_is_waited_for_and_then_named(project, monkeypatch, capfd):
    path = project.root / ".dvc" / "tmp" / "run.lock"
    path.parent.mkdir()
    monkeypatch.setattr("pipelines.workspace.ORPHAN_SECONDS", 1.0)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    child.stdout.readline()
    path.write_text("1234567 89 of-a-boot-long-ago\n")
    named = rf"process 1234567 has ended, but not what it started: process {child.pid};"
    with pytest.raises(BusyError, match=named), workspace_lock(project.root):
        pass
    assert "waiting for what process 1234567 started to end" in capfd.readouterr().err
    monkeypatch.setattr("pipelines.workspace.ORPHAN_SECONDS", 30.0)
    threading.Timer(0.5, child.kill).start()
    with workspace_lock(project.root):
        assert path.read_text() == process_identity(os.getpid()) + "\n"
    child.wait()


def test_a_preset_leaves_the_default_results_alone(project):
    project.dvc_repro(project.root)
    kept = {name: (project.root / name).read_bytes() for name in ("dvc.lock", "params.yaml", "dvc.yaml", ".dvcignore")}
    workspace = written("toy", project)
    assert "Running stage 'train'" in project.dvc_repro(workspace)
    assert "Running stage" not in project.dvc_repro(workspace)
    assert {name: (project.root / name).read_bytes() for name in kept} == kept
    assert "Running stage" not in project.dvc_repro(project.root)
    assert locked_outs(workspace)["models/qdformer"] != locked_outs(project.root)["models/qdformer"]
    assert not (workspace / ".dvc" / "cache").exists()  # all workspaces share one cache
    assert provenance(workspace)["preset"] == "toy"
    assert len(provenance(workspace)["data_digest"]) == 16


def test_the_lock_allows_one_run_and_lasts_until_its_holders_end(project):
    with workspace_lock(project.root) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
        with pytest.raises(BusyError, match="another run is at work"), workspace_lock(project.root):
            pass
    with pytest.raises(BusyError), workspace_lock(project.root):  # the child process still holds the lock
        pass
    child.kill()
    child.wait()
    with workspace_lock(project.root):
        pass


def test_all_presets_share_one_record_unless_the_environment_names_another(project, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_environment(project.root) == {"MLFLOW_TRACKING_URI": f"sqlite:///{project.root}/mlflow.db"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_environment(project.root) == {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
