"""Segment your own videos: an overlay with sound, masks, COCO RLE, captions and a timeline for each.

Written into OUT/NAME/: overlay.mp4, masks/NNNN.png (class ids, one per second), result.json, sounding.vtt and
timeline.png.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipelines.cli import command_main, preset_parser
from pipelines.environment import PROJECT, shown_path, tracking_environment
from pipelines.settings import preset_settings
from pipelines.workspace import CHECKPOINT, VGGISH, locked_settings, open_workspace
from qdformer.config.settings import Settings
from qdformer.utils.errors import InputError
from qdformer.utils.files import new_folder

if TYPE_CHECKING:
    from qdformer.inference import SecondResult, Segmenter

RESULT = "result.json"
CHAMPION = "champion"
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.safetensors)"
"""A model of the Hugging Face hub: OWNER/NAME."""
INPUT_RULES = {
    "download": ("dataset", "frames"),
    "features": ("pca", "short_clips", "center"),
    "train": ("image_size", "resize"),
}
"""Keys of the settings that say how a model's input is made, by section."""
RULE = "the frame in the middle of each second is segmented; the mask holds for the whole second"


def find_videos(arguments: Sequence[str]) -> list[Path]:
    """The files that the arguments name, each once: paths, patterns such as `clips/*.mp4`, or several with spaces.

    Raises `InputError` if an argument names no file.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        parts = [argument] if _matches(argument) else argument.split()
        matches = {part: _matches(part) for part in parts}
        if not any(matches.values()):
            raise InputError(f"{argument}: no such file")
        for part, paths in matches.items():
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
    # The stem of "..mp4" is ".", which would be OUT itself.
    names = [video.stem if stems.count(video.stem) == 1 and video.stem.strip(".") else video.name for video in videos]
    chosen = []
    for video, name in zip(videos, names, strict=True):
        folder = out / name
        if names.count(name) > 1:
            raise InputError(f"{video}: another of the videos is also named {name}; predict them into two OUT folders")
        require_replaceable(folder, RESULT, "a folder of predictions")
        for source in (video, audio):
            if source is not None and source.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{source}: lies in {folder}, which would be replaced; choose another OUT")
        chosen.append(folder)
    return chosen


def require_replaceable(folder: Path, marker: str, kind: str) -> None:
    """Raise `InputError` if the folder exists, holds anything, and does not hold the file `marker` of its kind."""
    if folder.exists() and not (folder.is_dir() and ((folder / marker).is_file() or not any(folder.iterdir()))):
        raise InputError(f"{folder}: exists and is not {kind}; choose another OUT")


def require_writable(folder: Path) -> None:
    """Raise `InputError` if the folder, or the nearest one above it that exists, is no folder or cannot be written."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"OUT={folder}: {nearest} is not a folder that can be written; choose another OUT")


def check_inputs(videos: Sequence[Path], audio: Path | None) -> None:
    """Open every file before the model is loaded. Raises `VideoError` or `AudioError` for one that is not usable."""
    from qdformer.inference.sound import Sound
    from qdformer.inference.video import read_info

    for video in videos:
        read_info(video)
    if audio is not None:
        Sound(audio).close()


def load_segmenter(
    settings: Settings, workspace: Path, model: str = "", hop: int | None = None, project: Path = PROJECT
) -> Segmenter:
    """The segmenter of a model.

    Args:
        settings: those of the preset; the input rules of the model are taken from the workspace's results, where there
            are any, and from the record for a model of the record.
        workspace: where the preset's results are.
        model: empty for the model of the workspace; `champion`; a checkpoint, for which the workspace's VGGish is used;
            a folder written by `make export`, or the id of such a model on the Hugging Face hub; or the id of an MLflow
            run.
        hop: seconds from one window to the next, None for the default.
        project: where the models of the record are looked for.

    Raises:
        InputError: the model is not at hand, or does not fit the hop.
    """
    from qdformer.inference import Segmenter  # imports torch

    try:
        if model == CHAMPION or re.fullmatch("[0-9a-f]{32}", model):
            os.environ.update(tracking_environment())
            from qdformer import tracking
            from qdformer.tracking import recorded

            if model == CHAMPION:
                return recorded.from_champion(tracking.experiment_name(settings), project=project, hop=hop)
            return recorded.from_run(model, project=project, hop=hop)
        path = Path(model).expanduser()
        if model and (path.is_dir() or (not path.exists() and re.fullmatch(HUB_ID, model))):
            rules: dict[str, Any] = {} if hop is None else {"hop": hop}
            return Segmenter.from_pretrained(path if path.is_dir() else model, **rules)
        checkpoint, vggish = path if model else workspace / CHECKPOINT, workspace / VGGISH
        if model and not path.is_file():
            raise InputError(
                f"MODEL={model}: no such file; expected {CHAMPION}, the id of an MLflow run, a checkpoint, or a folder "
                "that `make export` wrote"
            )
        for file in (checkpoint, vggish):
            if not file.is_file():
                raise InputError(f"{shown_path(file)}: no such file; `make repro` computes it")
        if not model:
            settings = _as_computed(settings, workspace)
        return Segmenter.from_settings(checkpoint, vggish, settings, hop=hop)
    except ValueError as error:
        if hop is not None and str(error).startswith("hop is"):
            raise InputError(f"HOP={hop}: {error}") from None
        raise


def _as_computed(settings: Settings, workspace: Path) -> Settings:
    """The settings with the input rules that the results of the workspace were computed with."""
    locked, sections = locked_settings(workspace), {}
    for name, keys in INPUT_RULES.items():
        values = {key: locked[name][key] for key in keys if key in locked.get(name, {})}
        sections[name] = getattr(settings, name).model_copy(update=values)
    return settings.model_copy(update=sections)


def predict(
    segmenter: Segmenter,
    video: Path,
    folder: Path,
    audio: Path | None = None,
    name: str = "",
    on_second: Callable[[int], None] | None = None,
) -> Path:
    """Write all files of a video's prediction; the folder is complete or unchanged. Returns it.

    `name` is shown in place of the file's own. `on_second` is called with the number of finished seconds, in place of a
    progress bar; it may raise an error to stop the work.
    """
    from tqdm import tqdm

    from qdformer.inference.captions import Captions
    from qdformer.inference.overlay import write_overlay
    from qdformer.inference.video import read_info
    from qdformer.reporting.plots import class_colors, save
    from qdformer.reporting.timeline import Timeline

    info, name = read_info(video), name or video.name
    captions, timeline = Captions(), Timeline(segmenter.classes)
    with new_folder(folder) as partial:
        (partial / "masks").mkdir()
        total = max(1, round(info.seconds)) if info.seconds else None
        with (
            open(partial / RESULT, "w", encoding="utf-8") as file,
            tqdm(
                total=total, desc=name, unit="s", file=sys.stderr, dynamic_ncols=True, disable=on_second is not None
            ) as bar,
        ):

            def record() -> Iterator[SecondResult]:
                for result in segmenter.segment(video, audio):
                    if result.index == 0:
                        _write_head(file, segmenter, name, audio, result)
                    _write_second(partial, file, result)
                    captions.add(result.time, result.time + 1, {item.name: item.score for item in result.objects})
                    ids = [item.class_id for item in result.objects]
                    timeline.add(result.class_probs_C, ids, result.second.sound_S, result.second.sample_rate)
                    bar.update()
                    if on_second is not None:
                        on_second(result.index + 1)
                    yield result

            colors = class_colors(len(segmenter.classes))
            write_overlay(partial / "overlay.mp4", video, record(), audio, colors)
            file.write("\n]}\n")
        (partial / "sounding.vtt").write_text(captions.text(), encoding="utf-8")
        save(timeline.draw(name), partial / "timeline.png")
    return folder


def _write_head(file: TextIO, segmenter: Segmenter, name: str, audio: Path | None, result: SecondResult) -> None:
    height, width = result.semantic_HW.shape
    about = {
        "video": name,
        "audio": audio.name if audio else None,
        "width": width,
        "height": height,
        "classes": segmenter.classes,
        "clip_frames": segmenter.clip_frames,
        "hop": segmenter.hop,
        "merge": segmenter.merge,
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
    parser.add_argument(
        "--model",
        default="",
        help="champion, the id of an MLflow run, a checkpoint, or a folder of make export (default: the workspace's)",
    )
    parser.add_argument("--hop", default="", help="seconds from one window to the next (default: see docs/predict.md)")
    arguments = parser.parse_args()
    videos = find_videos([argument for argument in arguments.videos if argument.strip()])
    audio = Path(arguments.audio).expanduser() if arguments.audio else None
    if audio and len(videos) > 1:
        raise InputError(f"AUDIO={audio}: given for {len(videos)} videos; expected one video")
    settings = preset_settings(arguments.data)
    workspace = open_workspace(arguments.data)
    out = Path(arguments.out).expanduser() if arguments.out else workspace / "predictions"
    require_writable(out)
    targets = folders(videos, out, audio)
    warnings.showwarning = _show_warning
    check_inputs(videos, audio)
    if arguments.hop and not re.fullmatch("[0-9]+", arguments.hop):
        raise InputError(f"HOP={arguments.hop}: expected a whole number of seconds")
    hop = int(arguments.hop) if arguments.hop else None
    segmenter = load_segmenter(settings, workspace, arguments.model, hop)
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
