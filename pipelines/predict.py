"""Segment your own videos: an overlay with sound, masks, COCO RLE, captions and a timeline for each.

Written into OUT/NAME/: overlay.mp4, masks/NNNN.png (class ids, one per second), result.json, sounding.vtt and
timeline.png.
"""

from __future__ import annotations

import glob
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pipelines.cli import command_main, preset_parser
from pipelines.environment import shown_path
from pipelines.settings import preset_settings
from pipelines.workspace import CHECKPOINT, locked_settings, open_workspace
from qdformer.config.settings import Settings
from qdformer.utils.errors import InputError
from qdformer.utils.files import new_folder

if TYPE_CHECKING:
    from qdformer.inference import SecondResult, Segmenter

RESULT = "result.json"
CLIP_SECONDS = {"s4": 5, "ms3": 5, "avss": 10}
"""Frames of a clip of the published data sets; those of other data sets are in their settings."""
SECTIONS = ("download", "features", "train")
"""Sections of the settings from which the input rules come."""
RULE = "the frame in the middle of each second is segmented; the mask holds for the whole second"


def find_videos(arguments: Sequence[str]) -> list[Path]:
    """The files that the arguments name, each once: paths, patterns such as `clips/*.mp4`, or several with spaces.

    Raises `InputError` if an argument names no file.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        whole = _matches(argument)
        for part in [argument] if whole else argument.split():
            paths = whole or _matches(part)
            if not paths:
                raise InputError(f"{part}: no such file")
            found.update(dict.fromkeys(paths))
    if not found:
        raise InputError("VIDEO is missing; expected a video file, as in: make predict VIDEO=clip.mp4")
    return list(found)


def _matches(pattern: str) -> list[Path]:
    pattern = os.path.expanduser(pattern)
    if os.path.lexists(pattern):
        return [Path(pattern)]
    return sorted(Path(name) for name in glob.glob(pattern, recursive=True))


def folders(videos: Sequence[Path], out: Path, audio: Path | None = None) -> list[Path]:
    """The folder of each video: OUT/NAME, and OUT/NAME.SUFFIX for videos that differ only in their suffix.

    Raises `InputError` for two videos of one name, or a folder that exists and holds anything but a prediction.
    """
    stems = [video.stem for video in videos]
    names = [video.stem if stems.count(video.stem) == 1 else video.name for video in videos]
    chosen = []
    for video, name in zip(videos, names, strict=True):
        folder = out / name
        if names.count(name) > 1:
            raise InputError(f"{video}: another of the videos is also named {name}; predict them into two OUT folders")
        if folder.exists() and not (folder.is_dir() and ((folder / RESULT).is_file() or not any(folder.iterdir()))):
            raise InputError(f"{folder}: exists and is not a folder of predictions; choose another OUT")
        for source in (video, audio):
            if source is not None and source.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{source}: lies in {folder}, which would be replaced; choose another OUT")
        chosen.append(folder)
    return chosen


def check_inputs(videos: Sequence[Path], audio: Path | None) -> None:
    """Open every file before the model is loaded. Raises `VideoError` or `AudioError` for one that is not usable."""
    from qdformer.inference.sound import Sound
    from qdformer.inference.video import read_info

    for video in videos:
        read_info(video)
    if audio is not None:
        Sound(audio).close()


def load_segmenter(settings: Settings, workspace: Path, model: Path | None = None, overlap: int = 0) -> Segmenter:
    """The model of a workspace, or the checkpoint `model`, with the workspace's VGGish.

    The input rules are those that the workspace's results were computed with, before any result those of `settings`.
    """
    from pipelines.stages.features import WEIGHTS
    from qdformer.inference import Segmenter  # imports torch

    locked = {} if model else locked_settings(workspace)
    update = {name: type(getattr(settings, name)).model_validate(locked[name]) for name in SECTIONS if name in locked}
    settings = settings.model_copy(update=update)
    if settings.features.pca:
        raise InputError("features.pca: the command predicts without VGGish's PCA step; expected null")
    checkpoint = model or workspace / CHECKPOINT
    vggish = workspace / WEIGHTS
    for path in (checkpoint, vggish):
        if not path.is_file():
            raise InputError(f"{shown_path(path)}: no such file; `make repro` computes it")
    clip_frames = settings.download.frames or CLIP_SECONDS[settings.download.dataset]
    if not 0 <= overlap < clip_frames:
        raise InputError(f"OVERLAP={overlap}: expected 0 to {clip_frames - 1}; the model sees {clip_frames} s at once")
    return Segmenter.from_checkpoint(
        checkpoint,
        vggish,
        clip_frames=clip_frames,
        overlap=overlap,
        image_size=settings.train.image_size,
        resize=settings.train.resize,
        short_clips=settings.features.short_clips,
        center=settings.features.center,
    )


def predict(segmenter: Segmenter, video: Path, folder: Path, audio: Path | None = None) -> Path:
    """Write all files of a video's prediction; the folder is complete or unchanged. Returns it."""
    from tqdm import tqdm

    from qdformer.inference.captions import Captions
    from qdformer.inference.overlay import write_overlay
    from qdformer.inference.video import read_info
    from qdformer.reporting.plots import class_colors, save
    from qdformer.reporting.timeline import Timeline

    info = read_info(video)
    captions, timeline = Captions(), Timeline(segmenter.classes)
    with new_folder(folder) as partial:
        (partial / "masks").mkdir()
        total = max(1, round(info.seconds)) if info.seconds else None
        with (
            open(partial / RESULT, "w", encoding="utf-8") as file,
            tqdm(total=total, desc=video.name, unit="s", file=sys.stderr, dynamic_ncols=True) as bar,
        ):

            def record() -> Iterator[SecondResult]:
                for result in segmenter.segment(video, audio):
                    if result.index == 0:
                        _write_head(file, segmenter, video, audio, result)
                    _write_second(partial, file, result)
                    captions.add(result.time, result.time + 1, {item.name: item.score for item in result.objects})
                    ids = [item.class_id for item in result.objects]
                    timeline.add(result.class_probs_C, ids, result.second.sound_S, result.second.sample_rate)
                    bar.update()
                    yield result

            colors = class_colors(len(segmenter.classes))
            write_overlay(partial / "overlay.mp4", video, record(), audio, colors)
            file.write("\n]}\n")
        (partial / "sounding.vtt").write_text(captions.text(), encoding="utf-8")
        save(timeline.draw(video.name), partial / "timeline.png")
    return folder


def _write_head(file: TextIO, segmenter: Segmenter, video: Path, audio: Path | None, result: SecondResult) -> None:
    height, width = result.semantic_HW.shape
    about = {
        "video": video.name,
        "audio": audio.name if audio else None,
        "width": width,
        "height": height,
        "classes": segmenter.classes,
        "clip_frames": segmenter.clip_frames,
        "overlap": segmenter.overlap,
        "rule": RULE,
    }
    file.write(f'{json.dumps(about, ensure_ascii=False)[:-1]}, "seconds": [')


def _write_second(folder: Path, file: TextIO, result: SecondResult) -> None:
    """Write the mask and the entry of a second; entries go straight to the file, so that memory does not grow."""
    from qdformer.inference.masks import write_label_map

    mask = f"masks/{result.index:04}.png"
    write_label_map(folder / mask, result.semantic_HW)
    objects = [
        {
            "category_id": item.class_id,
            "name": item.name,
            "score": round(item.score, 4),
            "bbox": item.box,
            "area": int(item.mask_HW.sum()),
            "segmentation": item.rle,
        }
        for item in result.objects
    ]
    entry = {"time": result.time, "mask": mask, "objects": objects}
    file.write(f"{',' if result.index else ''}\n{json.dumps(entry, ensure_ascii=False)}")


def main() -> None:
    parser = preset_parser(__doc__)
    parser.add_argument("videos", nargs="*", help="video files or patterns")
    parser.add_argument("--audio", default="", help="a file with the sound, for one video (default: the video's own)")
    parser.add_argument("--out", default="", help="where the folders are written (default: predictions)")
    parser.add_argument("--model", default="", help="a checkpoint (default: that of the workspace)")
    parser.add_argument("--overlap", type=int, default=0, help="seconds that neighboring windows share (default: 0)")
    arguments = parser.parse_args()
    videos = find_videos([argument for argument in arguments.videos if argument])
    audio = Path(arguments.audio).expanduser() if arguments.audio else None
    if audio and len(videos) > 1:
        raise InputError(f"AUDIO={audio}: given for {len(videos)} videos; expected one video")
    settings = preset_settings(arguments.data)
    workspace = open_workspace(arguments.data)
    out = Path(arguments.out).expanduser() if arguments.out else workspace / "predictions"
    targets = folders(videos, out, audio)
    warnings.showwarning = _show_warning
    check_inputs(videos, audio)
    model = Path(arguments.model).expanduser() if arguments.model else None
    segmenter = load_segmenter(settings, workspace, model, arguments.overlap)
    for video, target in zip(videos, targets, strict=True):
        print(shown_path(predict(segmenter, video, target, audio)), flush=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line for a warning about an input; warnings about code are of no use to the reader."""
    if category is UserWarning:
        hint = "; AUDIO=file names another sound" if "no audio track" in str(message) else ""
        print(f"warning: {message}{hint}", file=sys.stderr)


if __name__ == "__main__":
    command_main(main)
