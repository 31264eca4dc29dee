"""Loads the clips of a manifest into batches.

No global random state is used: the content of an item depends only on (seed, epoch, index), so neither the number of
loader processes nor the number of ranks (`qdformer.utils.distributed`) changes a result.

Shapes: B clips, T frames (one per second), H W pixels, A = 128 dimensions of the VGGish embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from qdformer.data.augment import View, sample_view
from qdformer.data.labels import open_label_map
from qdformer.data.layout import DataError
from qdformer.utils.constants import EMBEDDING_SIZE, IGNORE_INDEX
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from qdformer.config.train import Augment, Resize, Task

_SIZE_STEP = 32  # height and width of batches are multiples of the coarsest stride of the model


class ClipKey(NamedTuple):
    """A clip of an epoch, and which part of it a rank needs."""

    epoch: int
    clip: int
    """Its index in the manifest."""
    part: Literal["whole", "size", "filler"] = "whole"
    """`size`: another rank has the clip, but it influences the padding of the batch. `filler`: the rank has no clip of
    the global batch, and takes another rank's clip without counting it.
    """


class ClipSize(NamedTuple):
    """Number of frames, and their height and width after resizing."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Sample:
    """One clip: images uint8 [T, 3, H, W], audio float32 [T, A] ([T, V, A] for V separated tracks) and labels uint8
    [T, H, W].

    Labels are 255 where there is no ground truth. The first `labeled` frames have ground truth. A clip that is not
    `counted` has no valid frame in its batch. `maps`: the backbone's maps [T, C, h, w] by stride, where they are kept
    (`qdformer.training.cached_views`).
    """

    uid: str
    images_TCHW: torch.Tensor
    audio_TA: torch.Tensor
    labels_THW: torch.Tensor
    labeled: int
    counted: bool = True
    maps: dict[int, torch.Tensor] | None = None

    @property
    def size(self) -> ClipSize:
        return ClipSize(*self.labels_THW.shape)


@dataclass(frozen=True)
class Batch:
    """Clips padded to the longest and largest of the global batch.

    images_BTCHW uint8; audio_BTA float32, [B, T, V, A] for V separated tracks; labels_BTHW int64: 0 background, 1..C
    classes, 255 not labeled or padding; valid_BT bool: the frame exists; labeled_BT bool: the frame has ground truth.
    `maps`: the backbone's maps [B * T, C, h, w] by stride, where they are kept; the images are then zeros.
    """

    images_BTCHW: torch.Tensor
    audio_BTA: torch.Tensor
    labels_BTHW: torch.Tensor
    valid_BT: torch.Tensor
    labeled_BT: torch.Tensor
    uids: list[str]
    maps: dict[int, torch.Tensor] | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def with_sound(self, features: Mapping[str, np.ndarray]) -> Batch:
        """The same pictures with other audio features of this shape by uid. Raises `DataError` if they do not fit."""
        audio_BTA = torch.zeros_like(self.audio_BTA)
        for uid, valid_T, audio_TA in zip(self.uids, self.valid_BT, audio_BTA, strict=True):
            own_TA = read_features(features, uid, int(valid_T.sum()))
            if own_TA.shape[1:] != audio_TA.shape[1:]:
                raise DataError(
                    f"clip {uid}: audio features of a frame are {list(own_TA.shape[1:])}; "
                    f"expected {list(audio_TA.shape[1:])}"
                )
            audio_TA[valid_T] = own_TA
        return replace(self, audio_BTA=audio_BTA)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which `to` copies asynchronously; `DataLoader` calls this."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {
            field.name: change(getattr(self, field.name))
            for field in fields(self)
            if field.name not in ("uids", "maps")
        }
        if self.maps is not None:
            changed["maps"] = {stride: change(map_FCHW) for stride, map_FCHW in self.maps.items()}
        return replace(self, **changed)


class ClipDataset(Dataset, ABC):
    """What `build_loader` needs of a dataset."""

    seed: int

    @abstractmethod
    def __len__(self) -> int:
        """Number of clips."""


class AVSDataset(ClipDataset):
    """The clips of a manifest with their audio features.

    `features` maps the uid of a clip to float32 [T, A] (or [T, V, A]). Pictures are scaled to `image_size` according to
    `resize` (see `resize_geometry`), and the labels are those of `task`. With `augment`, a random view of each clip is
    drawn from (seed, epoch, index). With `frames`, a longer clip is cut to that many frames in a row, drawn in the same
    way, the first of them labeled.
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

    def __getitem__(self, key: int | tuple) -> Sample | ClipSize:
        """The clip at `index`, (epoch, index) or `ClipKey`. Without an epoch, the view is that of epoch 0."""
        epoch, index, part = ClipKey(*key) if isinstance(key, tuple) else ClipKey(0, key)
        clip = self.clips[index]
        if part == "size":
            return self._size(clip)
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
            audio_TA=read_features(self.features, clip.uid, clip.frames)[shown],
            labels_THW=torch.from_numpy(np.ascontiguousarray(labels)),
            labeled=min(clip.labeled - shown.start, len(images)),
            counted=part != "filler",
        )

    def _window(self, clip: Any, epoch: int, index: int) -> slice:
        if self.frames is None or clip.frames <= self.frames:
            return slice(0, clip.frames)
        starts = min(clip.frames - self.frames + 1, max(clip.labeled, 1))
        start = int(np.random.default_rng([self.seed, epoch, index, 1]).integers(starts))
        return slice(start, start + self.frames)

    def _size(self, clip: Any) -> ClipSize:
        with Image.open(clip.images[0]) as image:  # reads the header only
            (width, height), _ = resize_geometry(image.size, self.image_size, self.resize)
        square = (self.image_size, self.image_size)
        frames = clip.frames if self.frames is None else min(clip.frames, self.frames)
        return ClipSize(frames, *(square if self.resize == "crop" else (height, width)))

    def _read_image(self, path: Path, view: View | None) -> np.ndarray:
        return self._resize(Image.open(path).convert("RGB"), view, labels=False)

    def _resize(self, image: Image.Image, view: View | None, labels: bool) -> np.ndarray:
        return resize_image(image, self.image_size, self.resize, view, labels=labels)


def read_features(features: Mapping[str, np.ndarray], uid: str, frames: int) -> torch.Tensor:
    """Audio features [frames, A] of a clip, or [frames, V, A] of its V separated tracks.

    Raises `DataError` if there are none or they have another shape.
    """
    try:
        audio_TA = np.asarray(features[uid], np.float32)
    except KeyError:
        raise DataError(f"clip {uid}: no audio features; the stage features computes them") from None
    if audio_TA.ndim not in (2, 3) or (len(audio_TA), audio_TA.shape[-1]) != (frames, EMBEDDING_SIZE):
        raise DataError(f"clip {uid}: audio features are {list(audio_TA.shape)}; expected {[frames, EMBEDDING_SIZE]}")
    return torch.from_numpy(audio_TA.copy())


def collate(items: Sequence[Sample | ClipSize]) -> Batch:
    """Stack clips into a batch. Clips that are shorter or smaller than another one, or than one of the sizes among the
    items, are padded with zeros at the end, right and bottom.
    """
    samples = [item for item in items if isinstance(item, Sample)]
    sizes = [item.size if isinstance(item, Sample) else item for item in items]
    count, frames = len(samples), max(size.frames for size in sizes)
    height, width = (_round_up(max(size[axis] for size in sizes), _SIZE_STEP) for axis in (1, 2))
    images = torch.zeros((count, frames, 3, height, width), dtype=torch.uint8)
    audio = torch.zeros((count, frames, *samples[0].audio_TA.shape[1:]))
    labels = torch.full((count, frames, height, width), IGNORE_INDEX, dtype=torch.int64)
    lengths = torch.tensor([[len(sample.audio_TA) * sample.counted] for sample in samples])
    labeled = torch.tensor([[sample.labeled * sample.counted] for sample in samples])
    for item, sample in enumerate(samples):
        time, high, wide = sample.labels_THW.shape
        images[item, :time, :, :high, :wide] = sample.images_TCHW
        audio[item, :time] = sample.audio_TA
        labels[item, :time, :high, :wide] = sample.labels_THW
    steps = torch.arange(frames)
    uids = [sample.uid for sample in samples]
    maps = None if samples[0].maps is None else _stack_maps(samples, sizes, height, width)
    return Batch(images, audio, labels, steps < lengths, steps < labeled, uids, maps)


def _stack_maps(samples: list[Sample], sizes: list[ClipSize], height: int, width: int) -> dict[int, torch.Tensor]:
    if any(size != (sizes[0].frames, height, width) for size in sizes):
        listed = ", ".join(sorted({"x".join(map(str, size)) for size in sizes}))
        raise InputError(
            f"train.cached_views: the clips of a batch have {listed} frames and pixels; expected clips of one size, "
            f"whose sides are multiples of {_SIZE_STEP} (resize: squash or crop), or cached_views: 0"
        )
    maps = [sample.maps for sample in samples if sample.maps is not None]
    return {stride: torch.cat([clip[stride] for clip in maps]).float() for stride in maps[0]}


class EpochSampler(Sampler[list[ClipKey]]):
    """Yields this rank's part of every global batch of an epoch.

    The global batches have `batch_size` clips, the last one fewer if that does not divide the number of clips. They are
    the same for any number of ranks: with `shuffle` their order is drawn from (seed, epoch). Rank r takes the clips r,
    r + `world_size` .. of each. Raises `InputError` if a whole batch has fewer clips than there are ranks.
    """

    def __init__(
        self, length: int, batch_size: int, shuffle: bool, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        check_batch_size(batch_size, world_size)
        self.length = length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch, and the batch with which it continues after an interruption. Call it before each epoch."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[list[ClipKey]]:
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for start in range(self.first_batch * self.batch_size, self.length, self.batch_size):
            yield self._part(order[start : start + self.batch_size].tolist())

    def __len__(self) -> int:
        """Number of batches of a whole epoch."""
        return -(-self.length // self.batch_size)

    def _part(self, batch: list[int]) -> list[ClipKey]:
        keys = [
            ClipKey(self.epoch, index, "whole" if place % self.world_size == self.rank else "size")
            for place, index in enumerate(batch)
        ]
        if self.rank >= len(batch):
            keys.append(ClipKey(self.epoch, batch[0], "filler"))
        return keys


def check_batch_size(batch_size: int, ranks: int) -> None:
    """Raise `InputError` if a global batch has fewer clips than there are ranks."""
    if ranks > batch_size:
        raise InputError(
            f"train.batch_size: {batch_size} clips cannot be divided among {ranks} workers; "
            f"use at most {batch_size} workers or a larger batch"
        )


def build_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader:
    """A loader of one rank's part of batches of `batch_size` clips, which `workers` processes prepare (0: the caller).

    Call `loader.batch_sampler.set_epoch(epoch)` before each training epoch. The batches do not depend on `workers`.
    """
    return DataLoader(
        dataset,
        batch_sampler=EpochSampler(len(dataset), batch_size, shuffle, dataset.seed, rank, world_size),
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
