"""A trained model on videos of any length, second by second.

Shapes: T frames (one per second), H W pixels, C object classes, S samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from huggingface_hub import ModelHubMixin

from qdformer.config.base import SettingsError
from qdformer.inference.masks import RunLengths, bounding_box, encode_rle
from qdformer.inference.predictor import Predictor
from qdformer.inference.sharing import MODEL_CARD, find_folder, read_folder, write_folder
from qdformer.inference.sound import SoundStream
from qdformer.inference.video import FRAME_AT, Second, iter_seconds

if TYPE_CHECKING:
    import torch

    from qdformer.config.settings import Settings

DEFAULT_MERGE: Merge = "vote"


RULES = ("clip_frames", "hop", "merge", "frame_at")
"""Arguments of `Segmenter` that a shared folder stores."""

CLIP_SECONDS = {"s4": 5, "ms3": 5, "avss": 10}
"""Frames of a clip of the published data sets; those of other data sets are in their settings."""


def clip_seconds(settings: Settings) -> int:
    """The length of the training clips in seconds, which is their number of frames."""
    return settings.download.frames or CLIP_SECONDS[settings.download.dataset]


def default_hop(clip_frames: int) -> int:
    """The seconds from one window to the next: a fifth of the window, so that five windows vote on each second.

    Measured on composed videos (`make bench BENCH=hop`, docs/predict.md): fewer windows flicker more and score lower.
    """
    return max(1, clip_frames // 5)


@dataclass(frozen=True)
class SoundingObject:
    """The area of one class in one second."""

    class_id: int
    """1..C."""
    name: str
    score: float
    """Probability that the class sounds and is visible in this second."""
    mask_HW: np.ndarray
    """bool, at the video's resolution; at least one pixel is set."""
    box: tuple[int, int, int, int]
    """Left, top, width and height in pixels, as in COCO."""

    @property
    def rle(self) -> RunLengths:
        """The mask as uncompressed COCO RLE."""
        return encode_rle(self.mask_HW)


@dataclass(frozen=True)
class SecondResult:
    """The prediction for one second of a video, and what it was made from."""

    index: int
    """The second from `index` to `index` + 1 after the first frame."""
    objects: tuple[SoundingObject, ...]
    """The classes with at least one pixel, in the order of their ids."""
    semantic_HW: np.ndarray
    """Class of each pixel, uint8: 0 background, 1..C."""
    class_probs_C: np.ndarray
    """Probability of every class, float32, also of those without a pixel."""
    second: Second
    """The frame and the sound."""

    @property
    def time(self) -> float:
        """Beginning of the second, in seconds after the first frame."""
        return float(self.index)


Merge = Literal["center", "vote"]
"""How the results of overlapping windows become one, see `Segmenter`."""


class Segmenter(
    ModelHubMixin,
    library_name="qdformer",
    pipeline_tag="image-segmentation",
    tags=["audio-visual-segmentation"],
    paper_url="https://arxiv.org/abs/2310.00132",
    model_card_template=MODEL_CARD,
):
    """Marks and names the sounding objects of a video of any length.

    The model sees clips of the length that it was trained with. A longer video is divided into windows of `clip_frames`
    seconds, each beginning `hop` seconds after the one before; the last window ends with the video and has the full
    length, so it may overlap more. A second is given as soon as no later regular window can contain it, and does not
    change afterwards. If several windows contain it, they are merged by one of two rules:

    - `center`: the second is taken from the window in which it is farther from the window's ends (of equally far ones,
      from the earlier);
    - `vote`: each pixel has the class that most windows give it (of equally many, the one of the rule `center`), and
      the probabilities are the means over the windows.

    Only the frames, the sound and the results of about one window are in memory.

    `save_pretrained(folder)`, `from_pretrained(folder or hub id)` and `push_to_hub(hub id)` are those of
    `huggingface_hub.ModelHubMixin`; the files are described in `qdformer.inference.sharing`.

    Args:
        predictor: the model with the input rules of its training.
        clip_frames: seconds of a training clip.
        hop: seconds from one window to the next, 1 to `clip_frames`; None: `default_hop(clip_frames)`.
        merge: rule for a second that lies in several windows.
        frame_at: which moment of a second its frame shows, 0 (beginning) to 1 (end).
    """

    def __init__(
        self,
        predictor: Predictor,
        clip_frames: int = 5,
        hop: int | None = None,
        merge: Merge = DEFAULT_MERGE,
        frame_at: float = FRAME_AT,
    ) -> None:
        if clip_frames < 1:
            raise ValueError(f"clip_frames is {clip_frames}; expected at least 1")
        if merge not in get_args(Merge):
            raise ValueError(f"merge is {merge!r}; expected {' or '.join(get_args(Merge))}")
        if not 0 <= frame_at <= 1:
            raise ValueError(f"frame_at is {frame_at}; expected 0 to 1")
        self.predictor = predictor
        self.clip_frames, self.merge, self.frame_at = clip_frames, merge, frame_at
        self.hop = self._check_hop(default_hop(clip_frames) if hop is None else hop)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        vggish: str | Path,
        *,
        clip_frames: int = 5,
        hop: int | None = None,
        merge: Merge = DEFAULT_MERGE,
        **input_rules: Any,
    ) -> Segmenter:
        """Load a model and VGGish from the files that training wrote.

        `input_rules` are the keyword arguments of `Predictor.from_checkpoint`: `image_size`, `resize`, `short_clips`,
        `center` and `device`. A checkpoint stores neither them nor `clip_frames`; they are those of the model's
        training. Raises `CheckpointError` or `WeightsError` if a file cannot be used.
        """
        return cls(Predictor.from_checkpoint(checkpoint, vggish, **input_rules), clip_frames, hop, merge)

    @classmethod
    def from_settings(
        cls,
        checkpoint: str | Path,
        vggish: str | Path,
        settings: Settings,
        *,
        hop: int | None = None,
        merge: Merge = DEFAULT_MERGE,
        device: torch.device | str = "cpu",
    ) -> Segmenter:
        """Load a model and VGGish with the input rules and the clip length of the settings of its training.

        Raises `SettingsError` for settings that the predictor cannot follow, otherwise as `from_checkpoint`.
        """
        if settings.features.pca:
            raise SettingsError("features.pca: videos are predicted without VGGish's PCA step; expected null")
        return cls.from_checkpoint(
            checkpoint,
            vggish,
            clip_frames=clip_seconds(settings),
            hop=hop,
            merge=merge,
            image_size=settings.train.image_size,
            resize=settings.train.resize,
            short_clips=settings.features.short_clips,
            center=settings.features.center,
            device=device,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        rules = {name: getattr(self, name) for name in RULES}
        write_folder(self.predictor, save_directory, rules)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **rules: Any,
    ) -> Segmenter:
        """Load a folder that `save_pretrained` wrote, or the model with this id on the Hugging Face hub.

        `rules` replace those of `config.json`: `clip_frames`, `hop`, `merge`, `frame_at`; `device` places the model.
        Raises `InputError` if the model is not at hand, otherwise as `from_checkpoint`.
        """
        folder = find_folder(
            str(pretrained_model_name_or_path),
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )
        return super().from_pretrained(folder, **rules)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: torch.device | str = "cpu", **options: Any) -> Segmenter:
        rules = {name: options[name] for name in RULES if name in options}
        return cls(read_folder(Path(model_id), device), **rules)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the object classes 1..C."""
        return self.predictor.classes.names

    def segment(
        self, video: str | Path, audio: str | Path | SoundStream | None = None, hop: int | None = None
    ) -> Iterator[SecondResult]:
        """Yield the result of every second of a video file, each once and in order, as soon as it is known.

        Any container, resolution, frame rate and rotation that FFmpeg reads is accepted. The sound is the video's own,
        that of the file `audio`, or a stream of arrays; the last two begin with the first frame. A video without sound
        is segmented for silence, with a warning. `hop` replaces that of the segmenter.

        Raises:
            VideoError: the video is missing, unreadable, not a video, or has no frames.
            AudioError: the sound is missing or unreadable.
        """
        return self.segment_seconds(iter_seconds(video, audio, self.frame_at), hop)

    def segment_seconds(self, seconds: Iterable[Second], hop: int | None = None) -> Iterator[SecondResult]:
        """Yield the results of a stream of seconds, which may come from anywhere, as a camera and a microphone.

        Frames must have one size and sounds one rate.
        """
        return self._segment(seconds, self.hop if hop is None else self._check_hop(hop))

    def _segment(self, seconds: Iterable[Second], hop: int) -> Iterator[SecondResult]:
        pending: dict[int, list[_Estimate]] = {}
        given = 0
        for window, start, complete in windows(seconds, self.clip_frames, hop):
            prediction = self.predictor.predict(
                np.stack([second.frame_HWC for second in window]),
                np.concatenate([second.sound_S for second in window]),
                window[0].sample_rate,
            )
            for place in range(max(0, given - start), len(window)):
                margin = min(place, len(window) - 1 - place)
                estimate = _Estimate(prediction.semantic_THW[place], prediction.class_probs_TC[place], margin)
                pending.setdefault(start + place, []).append(estimate)
            for index in range(given, complete):
                merged = merge_estimates(pending.pop(index), self.merge)
                yield self._result(window[index - start], merged)
            given = complete

    def _check_hop(self, hop: int) -> int:
        if not 1 <= hop <= self.clip_frames:
            raise ValueError(f"hop is {hop}; expected 1 to clip_frames = {self.clip_frames}")
        return hop

    def _result(self, second: Second, estimate: _Estimate) -> SecondResult:
        semantic_HW, class_probs_C = estimate.semantic_HW, estimate.class_probs_C
        objects = []
        for class_id in np.flatnonzero(np.bincount(semantic_HW.ravel(), minlength=1)).tolist():
            if class_id:
                mask_HW = semantic_HW == class_id
                score, box = float(class_probs_C[class_id - 1]), bounding_box(mask_HW)
                objects.append(SoundingObject(class_id, self.classes[class_id - 1], score, mask_HW, box))
        return SecondResult(second.index, tuple(objects), semantic_HW, class_probs_C, second)


class _Estimate(NamedTuple):
    """What one window says about a second; `margin` is the distance in seconds to the nearer end of the window."""

    semantic_HW: np.ndarray
    class_probs_C: np.ndarray
    margin: int


def merge_estimates(estimates: Sequence[_Estimate], merge: Merge) -> _Estimate:
    """One estimate of a second from those of several windows, in the order of the windows, as `Segmenter` states."""
    best = max(estimates, key=lambda estimate: estimate.margin)
    if merge == "center" or len(estimates) == 1:
        return best
    labels = np.unique(np.concatenate([np.flatnonzero(np.bincount(own.semantic_HW.ravel())) for own in estimates]))
    # Votes count double, so that the window of the rule `center` decides between equal numbers of them.
    votes_LHW = np.stack([(best.semantic_HW == label).astype(np.uint8) for label in labels])
    for own in estimates:
        for row, label in enumerate(labels):
            votes_LHW[row] += 2 * (own.semantic_HW == label).astype(np.uint8)
    semantic_HW = labels.astype(np.uint8)[votes_LHW.argmax(0)]
    return _Estimate(semantic_HW, np.mean([own.class_probs_C for own in estimates], axis=0), best.margin)


def windows(seconds: Iterable[Second], length: int, hop: int) -> Iterator[tuple[list[Second], int, int]]:
    """Divide seconds into windows as `Segmenter` states.

    Yields each window, the index of its first second, and the index before which all seconds are complete with it.
    """
    recent: deque[Second] = deque(maxlen=length)
    total, end = 0, length
    for second in seconds:
        if total == end:  # more follows
            yield list(recent), total - length, total - length + hop
            end += hop
        recent.append(second)
        total += 1
    if total:
        yield list(recent), total - len(recent), total
