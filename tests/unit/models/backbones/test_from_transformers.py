"""ResNet-50, Swin-T and PVT-v2 compared with transformers' backbones, with random weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qdformer.config.model import QDFormerSettings
from qdformer.config.settings import load_settings
from qdformer.models.backbones import BackboneError, build_backbone
from tests.helpers import PROJECT

pytestmark = pytest.mark.slow  # importing transformers takes seconds

MODEL = load_settings(PROJECT / "params.yaml").train.model
NAMES = ("resnet18", "resnet50", "swin_tiny", "pvt_v2_b2", "pvt_v2_b5")
RESNET18 = {"layer_type": "basic", "depths": (2, 2, 2, 2), "hidden_sizes": (64, 128, 256, 512)}
BEFORE = {  # names of Swin's tensors in published files, from an earlier version of transformers
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.relative_position_bias.": "attention.self.",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def settings(name: str, path: object = None, **changes: object) -> QDFormerSettings:
    """Settings of a model that uses all maps."""
    weights = None if path is None else str(path)
    values = {"backbone": name, "backbone_weights": weights, "frozen_stages": 0, "mask_stride": 4}
    return MODEL.model_copy(update=values | changes)


def classifier(name: str) -> nn.Module:
    """The published ImageNet classifier, with random values in all tensors."""
    import transformers

    torch.manual_seed(0)
    if name.startswith("resnet"):
        sizes = RESNET18 if name == "resnet18" else {}
        network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))
    elif name == "swin_tiny":
        network = transformers.SwinForImageClassification(transformers.SwinConfig())
    else:
        depths, ratios = {"pvt_v2_b2": ((3, 4, 6, 3), (8, 8, 4, 4)), "pvt_v2_b5": ((3, 6, 40, 3), (4, 4, 4, 4))}[name]
        network = transformers.PvtV2ForImageClassification(
            transformers.PvtV2Config(depths=depths, mlp_ratios=ratios, hidden_sizes=(64, 128, 320, 512))
        )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
    for key, value in network.named_parameters():
        if key.endswith("relative_position_bias_table"):
            nn.init.normal_(value, std=0.5)
    return network.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A function that returns a network and its file by name; each is created once."""
    made = {}

    def of(name: str) -> tuple[nn.Module, Path]:
        if name not in made:
            network = classifier(name)
            state = dict(network.state_dict())
            if name == "swin_tiny":
                for new, old in BEFORE.items():
                    state = {key.replace(new, old): value for key, value in state.items()}
                for key in [key for key in state if key.endswith("relative_position_bias_table")]:
                    state[key.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.int64)
            path = tmp_path_factory.mktemp(name) / "model.safetensors"
            save_file(state, path)
            made[name] = network, path
        return made[name]

    return of


def torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a ResNet, renamed from transformers' names to torchvision's."""
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("resnet.").replace("embedder.embedder.convolution", "conv1")
        key = key.replace("embedder.embedder.normalization", "bn1").replace("classifier.1", "fc")
        key = key.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        key = re.sub(r"encoder\.stages\.(\d)\.layers", lambda found: f"layer{int(found[1]) + 1}", key)
        key = re.sub(r"layer\.(\d)\.convolution", lambda found: f"conv{int(found[1]) + 1}", key)
        renamed[re.sub(r"layer\.(\d)\.normalization", lambda found: f"bn{int(found[1]) + 1}", key)] = value
    return renamed


def reference_maps(name: str, path: Path, images: torch.Tensor) -> list[torch.Tensor]:
    """Feature maps of transformers' backbone, loaded by transformers, for images normalized as for ImageNet."""
    import transformers

    kind = {"resnet18": "ResNet", "resnet50": "ResNet", "swin_tiny": "Swin"}.get(name, "PvtV2")
    config = {"out_features": [f"stage{index}" for index in range(1, 5)]}
    if name == "resnet18":
        config |= RESNET18
    if name.startswith("pvt"):
        depths, ratios = ([3, 6, 40, 3], [4, 4, 4, 4]) if name.endswith("b5") else ([3, 4, 6, 3], [8, 8, 4, 4])
        config |= {"depths": depths, "mlp_ratios": ratios, "hidden_sizes": [64, 128, 320, 512]}
    config = getattr(transformers, f"{kind}Config")(**config)
    config.save_pretrained(path.parent)
    network = getattr(transformers, f"{kind}Backbone").from_pretrained(path.parent, config=config).eval()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        return list(network((images / 255 - mean[:, None, None]) / deviation[:, None, None]).feature_maps)


@pytest.mark.parametrize("size", [(224, 224), (75, 101)])
@pytest.mark.parametrize("name", NAMES)
def test_maps_equal_transformers(published, name, size):
    path = published(name)[1]
    images = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(1))
    backbone = build_backbone(settings(name, path)).eval()
    with torch.no_grad():
        maps = backbone(images.to(torch.uint8))
    for (stride, found), expected in zip(maps.items(), reference_maps(name, path, images), strict=True):
        assert found.shape[1:] == (backbone.channels[stride], *(-(-side // stride) for side in size))
        assert float(expected.std()) > 0.05
        torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny", "pvt_v2_b2"])
def test_every_parameter_learns_and_half_precision_agrees(name):
    torch.manual_seed(0)
    backbone = build_backbone(settings(name)).eval()
    for module in backbone.modules():  # residual blocks with random weights start as identities
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.01)
    images = torch.randint(0, 256, (2, 3, 64, 64)).to(torch.uint8)
    maps = backbone(images)
    sum(x.square().sum() for x in maps.values()).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = backbone(images)
    for stride, x in maps.items():
        x = x.detach()
        assert 0.05 < float(x.std()) < 20
        assert float((half[stride].float() - x).std() / x.std()) < 0.05, stride


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny", "pvt_v2_b2"])
def test_frozen_stages_are_the_first_and_only_of_pretrained_weights(published, name):
    backbone = build_backbone(settings(name, published(name)[1], frozen_stages=1))
    trained = [key for key, p in backbone.named_parameters() if p.requires_grad]
    assert not any(key.startswith(("stem", "stages.0.")) for key in trained)
    assert {f"stages.{index}" for index in (1, 2, 3)} <= {key[:8] for key in trained}
    assert all(p.requires_grad for p in build_backbone(settings(name, frozen_stages=1)).parameters())


def test_layers_of_maps_that_are_not_used_are_not_trained():
    """With several workers, a trained parameter without a gradient is an error."""
    backbone = build_backbone(settings("swin_tiny", mask_stride=8))
    frozen = [key for key, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen == ["norms.0.weight", "norms.0.bias"]


def test_torchvision_s_names_are_accepted(published, tmp_path):
    network, path = published("resnet50")
    named = torchvision_names(network.state_dict())
    assert {"conv1.weight", "layer1.0.downsample.1.running_var", "layer4.2.bn3.bias", "fc.weight"} <= set(named)
    torch.save({key: x for key, x in named.items() if "num_batches_tracked" not in key}, tmp_path / "resnet50-1.pth")
    expected = build_backbone(settings("resnet50", path)).state_dict()
    for key, value in build_backbone(settings("resnet50", tmp_path / "resnet50-1.pth")).state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ("name", "prefix"), [("resnet50", "resnet."), ("swin_tiny", "swin."), ("pvt_v2_b2", "pvt_v2.")]
)
def test_a_file_without_the_classifier_is_accepted(published, tmp_path, name, prefix):
    path = published(name)[1]
    save_file({k.removeprefix(prefix): x for k, x in load_file(path).items()}, tmp_path / "model.safetensors")
    expected = build_backbone(settings(name, path)).state_dict()
    for key, value in build_backbone(settings(name, tmp_path)).state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_wrong_tensor_names_its_key_both_shapes_and_the_file(published, tmp_path):
    state = published("resnet50")[0].state_dict()
    key = "encoder.stages.2.layers.1.layer.1.normalization.running_var"
    path = tmp_path / "model.safetensors"
    save_file(state | {f"resnet.{key}": torch.ones(7)}, path)
    with pytest.raises(BackboneError, match=rf"{path}: key {key} has shape \[7\], expected shape \[256\]"):
        build_backbone(settings("resnet50", path))
    save_file({name: value for name, value in state.items() if name != f"resnet.{key}"}, path)
    with pytest.raises(BackboneError, match=rf"{path}: key {key} is missing, expected shape \[256\]"):
        build_backbone(settings("resnet50", path))
    with pytest.raises(BackboneError, match="key swin.* is missing, expected shape"):
        build_backbone(settings("swin_tiny", path))


def test_a_deeper_network_s_file_is_refused(published, tmp_path):
    """It contains all tensors of the shallower network in the same shapes."""
    network = published("resnet50")[0]
    block = network.resnet.encoder.stages[2].layers[5].state_dict()
    deeper = {f"resnet.encoder.stages.2.layers.6.{key}": x.clone() for key, x in block.items()}
    save_file(network.state_dict() | deeper, tmp_path / "model.safetensors")
    message = r"model\.safetensors: key resnet\.encoder\.stages\.2\.layers\.6\..* is of another network"
    with pytest.raises(BackboneError, match=message):
        build_backbone(settings("resnet50", tmp_path))


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny", "pvt_v2_b2"])
def test_the_graph_can_be_exported(name):
    torch.manual_seed(0)
    backbone, images = build_backbone(settings(name)).eval(), torch.randint(0, 256, (1, 3, 64, 64)).to(torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(backbone, (images,)).module()(images)
        for stride, expected in backbone(images).items():
            torch.testing.assert_close(exported[stride], expected)


def test_small_images_are_named():
    with pytest.raises(ValueError, match=r"images have shape \[1, 3, 28, 64\]; PVT-v2 needs 29 pixels a side"):
        build_backbone(settings("pvt_v2_b2"))(torch.zeros(1, 3, 28, 64))
    assert build_backbone(settings("pvt_v2_b2"))(torch.zeros(1, 3, 29, 64))[32].shape == (1, 512, 1, 2)
