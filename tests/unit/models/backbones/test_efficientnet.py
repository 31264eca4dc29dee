"""EfficientNet-Lite0 compared with the published model, and reading of weights files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qdformer.config.settings import load_settings
from qdformer.models.backbones import BackboneError, build_backbone, weights
from qdformer.training.checkpoint import load_model
from qdformer.utils.digests import file_sha256
from tests.helpers import GOLDEN, PROJECT

EXPECTED = json.loads((GOLDEN / "efficientnet_lite0.json").read_text())
MODEL = load_settings(PROJECT / "params.yaml").train.model
LITE = MODEL.model_copy(update={"frozen_stages": 0})


def test_maps_equal_the_published_model_s():
    y, x = torch.meshgrid(torch.arange(75), torch.arange(101), indexing="ij")
    image = torch.stack([3 * y + x, 2 * x + y * y, x * y]) % 256
    with torch.no_grad():
        maps = build_backbone(LITE)(image[None].to(torch.uint8))
    for stride, expected in EXPECTED["maps"].items():
        found = maps[int(stride)]
        assert list(found.shape) == expected["shape"]
        torch.testing.assert_close(
            found.mean((0, 2, 3))[:8], torch.tensor(expected["mean_by_channel"]), atol=1e-3, rtol=1e-3
        )
        torch.testing.assert_close(found[0, 0, 0], torch.tensor(expected["first_row"]), atol=1e-3, rtol=1e-3)


def test_frozen_stages_are_the_first_and_only_of_pretrained_weights():
    frozen = MODEL.model_copy(update={"frozen_stages": 2})
    trained = {name for name, p in build_backbone(frozen).named_parameters() if p.requires_grad}
    assert not any(name.startswith(("stem", "stages.0.", "stages.1.")) for name in trained)
    assert any(name.startswith("stages.2.") for name in trained)
    fresh = build_backbone(frozen.model_copy(update={"backbone_weights": None}))
    assert all(p.requires_grad for p in fresh.parameters())


def test_fresh_weights_keep_the_scale_of_the_pixels():
    torch.manual_seed(0)
    with torch.no_grad():
        maps = build_backbone(LITE.model_copy(update={"backbone_weights": None}))(torch.randint(0, 256, (1, 3, 64, 64)))
    assert all(0.05 < float(x.std()) < 20 for x in maps.values())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(weights, "PACKAGE", "no_such_package")
    with pytest.raises(BackboneError, match="no_such_package.*no such weights; install efficientnet-lite0-pytorch"):
        build_backbone(LITE)


def test_an_altered_package_is_refused(monkeypatch):
    monkeypatch.setattr(weights, "PACKAGE_SHA256", "0" * 64)
    with pytest.raises(BackboneError, match="SHA-256 is 5793.*expected 0000"):
        build_backbone(LITE)


def lite_file(folder: Path, **changes: torch.Tensor | None) -> str:
    """A file of the package's tensors, some of them replaced or, if None, left out."""
    tensors = weights.read_weights("package").tensors
    tensors = {key: changes.get(key, x) for key, x in tensors.items()}
    save_file({key: x.contiguous() for key, x in tensors.items() if x is not None}, folder / "model.safetensors")
    return str(folder / "model.safetensors")


def test_a_file_or_its_folder_can_replace_the_package(tmp_path):
    expected = build_backbone(LITE).state_dict()
    path = lite_file(tmp_path)
    digest = file_sha256(path)
    for source, sha256 in ((path, digest), (str(tmp_path), digest[:8])):
        found = build_backbone(LITE.model_copy(update={"backbone_weights": source, "backbone_sha256": sha256}))
        for key, value in found.state_dict().items():
            assert torch.equal(value, expected[key]), key
    with pytest.raises(BackboneError, match=rf"model\.safetensors: SHA-256 is {digest}, expected 00000000"):
        weights.read_weights(path, "00000000")


@pytest.mark.parametrize(
    ("value", "how"), [(None, "is missing"), (torch.zeros(8), r"has shape \[8\]")], ids=["missing", "mis-shaped"]
)
def test_a_wrong_tensor_names_its_key_both_shapes_and_the_file(tmp_path, value, how):
    path = lite_file(tmp_path, **{"_blocks.3._bn1.running_var": value})
    with pytest.raises(
        BackboneError, match=rf"{path}: key _blocks\.3\._bn1\.running_var {how}, expected shape \[144\]"
    ):
        build_backbone(LITE.model_copy(update={"backbone_weights": path}))


def test_nested_state_dicts_are_found(tmp_path):
    tensor = torch.arange(3.0)
    for name, content in {
        "plain.pth": {"a": tensor},
        "nested.pth": {"state_dict": {"module.a": tensor}, "epoch": 3},
        "deeper.bin": {"model": {"state_dict": {"a": tensor}}},
    }.items():
        torch.save(content, tmp_path / name)
        assert torch.equal(weights.read_weights(str(tmp_path / name)).tensors["a"], tensor)


class Code:
    """An object whose pickle runs code when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_files_without_weights_are_named_and_never_run(tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    torch.save({"w": Code(tmp_path / "ran")}, tmp_path / "code.pth")
    (tmp_path / "code.bin").write_bytes(pickle.dumps({"w": Code(tmp_path / "ran")}, protocol=2))
    for name in ("text.pth", "cut.safetensors", "code.pth", "code.bin"):
        with pytest.raises(BackboneError, match=f"{name}: not weights that can be read without running code in them"):
            weights.read_weights(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    for name in ("list.pth", "epoch.pth"):
        with pytest.raises(BackboneError, match=f"{name}: holds no tensors by name"):
            weights.read_weights(str(tmp_path / name))
    with pytest.raises(BackboneError, match=r"none\.pth: no such weights file \(train\.model\.backbone_weights\)"):
        weights.read_weights(str(tmp_path / "none.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match="empty: the folder holds neither model.safetensors nor pytorch_model.bin"):
        weights.read_weights(str(tmp_path / "empty"))


def test_a_hub_id_is_downloaded_once_and_a_missing_network_gives_a_hint(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def no_network(repository: str, name: str) -> str:
        raise ConnectionError(f"no route to {repository}/{name}\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    with pytest.raises(
        BackboneError,
        match="owner/name: cannot be fetched from the Hugging Face hub: no route to owner/name/model.safetensors; place"
        " its model.safetensors or pytorch_model.bin in a folder here and give .* as train.model.backbone_weights",
    ):
        weights.read_weights("owner/name")

    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"  # layout of the hub client's cache
    snapshot.mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, snapshot / "pytorch_model.bin")
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    assert torch.equal(weights.read_weights("owner/name").tensors["a"], torch.ones(2))


def test_the_second_file_name_is_used_if_the_first_does_not_exist(tmp_path, monkeypatch):
    import httpx2
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import RemoteEntryNotFoundError

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")

    def only(names: tuple[str, ...]):
        def fetch(repository: str, name: str) -> str:
            if name in names:
                return str(tmp_path / name)
            request = httpx2.Request("GET", "http://hub/file")
            raise RemoteEntryNotFoundError("404", response=httpx2.Response(404, request=request))

        return fetch

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", only(("pytorch_model.bin",)))
    assert torch.equal(weights.read_weights("owner/name").tensors["a"], torch.ones(2))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", only(()))
    with pytest.raises(BackboneError, match="it holds neither model.safetensors nor pytorch_model.bin"):
        weights.read_weights("owner/name")


def test_a_checkpoint_does_not_need_the_pretrained_weights(tmp_path):
    from qdformer.data.manifest import Classes
    from qdformer.models import QDFormer
    from qdformer.training.checkpoint import save_model

    source = lite_file(tmp_path)
    small = {
        "hidden_dim": 16,
        "num_heads": 2,
        "ffn_dim": 32,
        "codebook_size": 4,
        "num_prototypes": 2,
        "backbone_weights": source,
    }
    small = MODEL.model_copy(update=small)
    model = QDFormer(small, 2)
    path = tmp_path / "checkpoint.safetensors"
    save_model(path, model, Classes(("circle", "square"), (False, True)), small)
    Path(source).unlink()
    assert torch.equal(load_model(path)[0].backbone.stem.weight, model.backbone.stem.weight)
    with pytest.raises(BackboneError, match=r"model\.safetensors: no such weights file"):
        load_model(path, trained=False)
