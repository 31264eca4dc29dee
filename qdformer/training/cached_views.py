"""Keeps the maps that a frozen backbone computes of the training clips, so that it processes every view only once.

Shapes: T frames, C channels, h w size of a map, A = 128.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from qdformer.data.dataset import AVSDataset, ClipDataset, ClipKey, ClipSize, Sample
from qdformer.utils.files import write_bytes
from qdformer.utils.precision import autocast

if TYPE_CHECKING:
    from qdformer.config.train import Train
    from qdformer.models.backbones.base import Backbone


class CachedViews(ClipDataset):
    """The clips of `data` with the maps of the backbone in place of their images.

    Epoch e shows view e modulo `recipe.cached_views` of a clip. The first time that a view is needed it is computed and
    written to `folder`, one file per view, with the maps that the model uses in half precision. An interrupted run
    finds the files again.
    """

    def __init__(self, data: AVSDataset, backbone: Backbone, recipe: Train, folder: Path, device: torch.device) -> None:
        self.data = data
        self.seed = data.seed
        self.backbone = backbone
        self.strides = recipe.model.map_strides
        self.views = recipe.cached_views
        self.precision = recipe.precision
        self.folder = folder
        self.device = device

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: ClipKey) -> Sample | ClipSize:
        """The clip with `maps`: float16 [T, C, h, w] by stride. Its images are zeros that take no memory."""
        key = key._replace(epoch=key.epoch % self.views)
        if key.part == "size":
            return self.data[key]
        path = self.folder / f"{key.epoch}-{key.clip}.safetensors"
        if not path.exists():
            write_bytes(path, self._encode(key))
        stored = safetensors.torch.load_file(path)
        audio_TA, labels_THW, labeled = (stored.pop(name) for name in ("audio", "labels", "labeled"))
        no_pixels = torch.zeros(1, dtype=torch.uint8).expand(len(labels_THW), 3, *labels_THW.shape[1:])
        maps = {int(stride): map_TCHW for stride, map_TCHW in stored.items()}
        uid = self.data.clips[key.clip].uid
        return Sample(uid, no_pixels, audio_TA, labels_THW, int(labeled), key.part != "filler", maps)

    @torch.no_grad()
    def _encode(self, key: ClipKey) -> bytes:
        sample = self.data[key._replace(part="whole")]
        assert isinstance(sample, Sample)
        with autocast(self.device.type, self.precision):
            maps = self.backbone(sample.images_TCHW.to(self.device))
        tensors = {str(stride): maps[stride].half().cpu().contiguous() for stride in self.strides}
        labeled = torch.tensor(sample.labeled)
        return safetensors.torch.save(
            tensors | {"audio": sample.audio_TA, "labels": sample.labels_THW, "labeled": labeled}
        )
