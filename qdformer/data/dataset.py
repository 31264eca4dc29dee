"""Loads the clips of a manifest into batches.

No global random state is used: the content of an item depends only on (seed, epoch, index), so neither the number of
workers nor the number of processes changes a result.

Shapes: B clips, T frames (one per second), H W pixels, A = 128 dimensions of the VGGish embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from qdformer.data.augment import View, sample_view
from qdformer.data.labels import open_label_map
from qdformer.data.layout import DataError
from qdformer.utils.constants import EMBEDDING_SIZE, IGNORE_INDEX

if TYPE_CHECKING:
    from qdformer.config.train import Augment, Resize, Task

_SIZE_STEP = 32  # height and width of batches are multiples of the coarsest stride of the model


@dataclass(frozen=True)
class Sample:
    """One clip: images uint8 [T, 3, H, W], audio float32 [T, A] and labels uint8 [T, H, W].

    Labels are 255 where there is no ground truth. The first `labeled` frames have ground truth.
    """

    uid: str
    images_TCHW: torch.Tensor
    audio_TA: torch.Tensor
    labels_THW: torch.Tensor
    labeled: int


@dataclass(frozen=True)
class Batch:
    """Clips padded to the longest and largest of them.

    images_BTCHW uint8; audio_BTA float32; labels_BTHW int64: 0 background, 1..C classes, 255 not labeled or padding;
    valid_BT bool: the frame exists; labeled_BT bool: the frame has ground truth.
    """

    images_BTCHW: torch.Tensor
    audio_BTA: torch.Tensor
    labels_BTHW: torch.Tensor
    valid_BT: torch.Tensor
    labeled_BT: torch.Tensor
    uids: list[str]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        names = [field.name for field in fields(self) if field.name != "uids"]
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


class AVSDataset(Dataset):
    """The clips of a manifest with their audio features.

    `features` maps the uid of a clip to float32 [T, A]. Pictures are scaled to `image_size` according to `resize`
    (see `resize_geometry`), and the labels are those of `task`. With `augment`, a random view of each clip is drawn
    from (seed, epoch, index). With `frames`, a longer clip is cut to that many frames in a row, drawn in the same way,
    the first of them labeled.
    """

    def __init__(
        self,
        manifest: pandas.DataFrame,
        features: Mapping[str, np.ndarray],
        image_size: int,
        augment: Augment | None = None,
        seed: int = 0,
        *,
        resize: Resize = "longest",
        task: Task = "avss",
        frames: int | None = None,
    ) -> None:
        self.clips = list(manifest.itertuples(index=False))
        self.features = features
        self.image_size = image_size
        self.augment = augment
        self.seed = seed
        self.resize = resize
        self.task = task
        self.frames = frames

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """The clip at `index` or (epoch, index). Without an epoch, the view is that of epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        clip = self.clips[index]
        view = sample_view(self.augment, np.random.default_rng([self.seed, epoch, index])) if self.augment else None
        shown = self._window(clip, epoch, index)

        images = np.stack([self._read_image(path, view) for path in clip.images[shown]])
        labels = np.full(images.shape[:3], IGNORE_INDEX, np.uint8)
        for second, path in enumerate(clip.labels[shown]):
            if path is not None:
                labels[second] = self._resize(open_label_map(path, clip.binary, self.task), view, labels=True)
        if view is not None:
            images, labels = view.hflip(view.color_jitter(images)), view.hflip(labels)
        return Sample(
            uid=clip.uid,
            images_TCHW=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
            audio_TA=self._read_features(clip)[shown],
            labels_THW=torch.from_numpy(np.ascontiguousarray(labels)),
            labeled=min(clip.labeled - shown.start, len(images)),
        )

    def _window(self, clip: Any, epoch: int, index: int) -> slice:
        if self.frames is None or clip.frames <= self.frames:
            return slice(0, clip.frames)
        starts = min(clip.frames - self.frames + 1, max(clip.labeled, 1))
        start = int(np.random.default_rng([self.seed, epoch, index, 1]).integers(starts))
        return slice(start, start + self.frames)

    def _read_image(self, path: Path, view: View | None) -> np.ndarray:
        return self._resize(Image.open(path).convert("RGB"), view, labels=False)

    def _resize(self, image: Image.Image, view: View | None, labels: bool) -> np.ndarray:
        return resize_image(image, self.image_size, self.resize, view, labels=labels)

    def _read_features(self, clip: Any) -> torch.Tensor:
        try:
            features = np.asarray(self.features[clip.uid], np.float32)
        except KeyError:
            raise DataError(f"clip {clip.uid}: no audio features; the stage features computes them") from None
        if features.shape != (clip.frames, EMBEDDING_SIZE):
            expected = [clip.frames, EMBEDDING_SIZE]
            raise DataError(f"clip {clip.uid}: audio features are {list(features.shape)}; expected {expected}")
        return torch.from_numpy(features.copy())


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack clips into a batch. Shorter or smaller clips are padded with zeros at the end, right and bottom."""
    count, frames = len(samples), max(len(sample.audio_TA) for sample in samples)
    height, width = (_round_up(max(sample.labels_THW.shape[axis] for sample in samples), _SIZE_STEP) for axis in (1, 2))
    images = torch.zeros((count, frames, 3, height, width), dtype=torch.uint8)
    audio = torch.zeros((count, frames, EMBEDDING_SIZE))
    labels = torch.full((count, frames, height, width), IGNORE_INDEX, dtype=torch.int64)
    lengths = torch.tensor([[len(sample.audio_TA)] for sample in samples])
    labeled = torch.tensor([[sample.labeled] for sample in samples])
    for item, sample in enumerate(samples):
        time, high, wide = sample.labels_THW.shape
        images[item, :time, :, :high, :wide] = sample.images_TCHW
        audio[item, :time] = sample.audio_TA
        labels[item, :time, :high, :wide] = sample.labels_THW
    steps = torch.arange(frames)
    return Batch(images, audio, labels, steps < lengths, steps < labeled, [sample.uid for sample in samples])


class EpochSampler(Sampler):
    """Yields (epoch, index), so that persistent workers know the epoch.

    With `shuffle` the order is drawn from (seed, epoch). Each of several processes takes every `world_size`-th clip;
    when shuffling, the first clips are repeated so that all processes take the same number.
    """

    def __init__(self, length: int, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. Call it before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in self._order()[self.rank :: self.world_size].tolist():
            yield self.epoch, index

    def __len__(self) -> int:
        return len(range(self.rank, len(self._order()), self.world_size))

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return np.resize(order, _round_up(self.length, self.world_size))


def build_loader(
    dataset: AVSDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """A loader of batches, which are prepared by `workers` processes (0: by the calling process).

    Call `loader.sampler.set_epoch(epoch)` before each training epoch. The batches do not depend on `workers`.
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=EpochSampler(len(dataset), shuffle, dataset.seed, rank, world_size),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(dataset.seed),  # otherwise the loader uses torch's global random state
    )


def resize_image(
    image: Image.Image, image_size: int, resize: Resize, view: View | None = None, *, labels: bool = False
) -> np.ndarray:
    """Resize an image, or its crop in the view, to the input size of the model: bilinear, for labels nearest."""
    size, (left, top) = resize_geometry(image.size, image_size, resize)
    resample = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    if view is not None:
        image = image.resize(size, resample, view.crop_box(*image.size))
    elif image.size != size:
        image = image.resize(size, resample)
    if resize == "crop":
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)


def resize_geometry(size: tuple[int, int], image_size: int, resize: Resize) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height to which a picture of `size` is scaled, and left and top of the square that `crop` cuts out.

    `longest` scales the longer side to `image_size` and keeps the aspect ratio; `squash` scales both sides to
    `image_size`; `crop` scales the shorter side and keeps the central square. The last two round as the loader of
    AVSBench does.
    """
    if resize == "squash":
        return (image_size, image_size), (0, 0)
    if resize == "longest":
        scale = image_size / max(size)
        return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), (0, 0)
    width, height = (int(side * image_size / min(size)) for side in size)
    return (width, height), (round((width - image_size) / 2), round((height - image_size) / 2))


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
