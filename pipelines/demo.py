"""Compose a video of `stamps` objects that come and go and sound in turn, segment it, and put the truth beside it.

Written into predictions/demo/: demo.mp4 (the video), beside.mp4 (left prediction, right truth), truth.json (what
sounds when), truth/NNNN.png (true class ids, one file per second), truth.png (the timeline of the truth), and in
prediction/ all files of make predict.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.cli import command_main, preset_parser
from pipelines.environment import PROJECT, shown_path
from pipelines.predict import load_segmenter, predict
from pipelines.settings import preset_settings
from pipelines.workspace import open_workspace
from qdformer.utils.errors import InputError
from qdformer.utils.files import new_folder, write_text

if TYPE_CHECKING:
    from qdformer.data.film import Film

STAMPS_CACHE = Path(".cache", "stamps")
VIDEO = "demo.mp4"


def write_film(film: Film, folder: Path) -> list[bytes]:
    """Write the video, its true masks and sounds; return the compressed class ids of every frame."""
    from tqdm import tqdm

    from qdformer.data.film import on_off
    from qdformer.inference.masks import write_label_map
    from qdformer.inference.video import FRAME_AT
    from qdformer.inference.writer import VideoWriter
    from qdformer.reporting.plots import save
    from qdformer.reporting.timeline import Timeline
    from qdformer.utils.constants import SAMPLE_RATE

    sound_S, labels, timeline = film.sound(), [], Timeline(film.classes)
    with VideoWriter(folder / VIDEO, film.size, film.frame_rate, SAMPLE_RATE) as writer:
        for time, image_HW3, labels_HW in tqdm(film.frames(), "compose", film.frame_count, unit="frame", leave=False):
            start = round(time * SAMPLE_RATE)
            writer.write_frame(image_HW3, time)
            writer.write_sound(sound_S[None, start : start + writer.samples_until(writer.end)])
            labels.append(zlib.compress(labels_HW.tobytes(), 1))
    (folder / "truth").mkdir()
    for second in range(int(film.seconds)):
        _, labels_HW = film.draw(second + FRAME_AT)
        write_label_map(folder / "truth" / f"{second:04}.png", labels_HW)
        sounding = film.sounding(second + FRAME_AT)
        probs_C = np.array([float(label in sounding) for label in range(1, len(film.classes) + 1)])
        own_S = sound_S[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]
        timeline.add(probs_C, np.unique(labels_HW[labels_HW > 0]).tolist(), own_S, SAMPLE_RATE)
    save(timeline.draw("truth: what sounds, and the seconds in which it is also visible"), folder / "truth.png")
    plays = {name: spans for label, name in enumerate(film.classes, start=1) if (spans := on_off(film.plays, label))}
    write_text(folder / "truth.json", json.dumps({"classes": film.classes, "sounding": plays}, indent=1) + "\n")
    return labels


def write_beside(film: Film, labels: list[bytes], folder: Path, overlay: Path) -> None:
    """Write the overlay of the prediction with the truth to its right."""
    from qdformer.inference.overlay import Overlay
    from qdformer.inference.sound import Sound
    from qdformer.inference.video import decode_frames, to_rgb
    from qdformer.inference.writer import VideoWriter
    from qdformer.reporting.plots import class_colors

    colors, (width, height) = class_colors(len(film.classes)), film.size
    with (
        Sound(folder / VIDEO, 0.0) as sound,
        VideoWriter(folder / "beside.mp4", (2 * width, height), film.frame_rate, sound.rate) as writer,
    ):
        frames = zip(decode_frames(overlay), decode_frames(folder / VIDEO), labels, strict=True)
        for (time, _, predicted), (_, _, frame), packed in frames:
            labels_HW = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, width)
            texts = {label: f"truth: {film.classes[label - 1]}" for label in np.unique(labels_HW).tolist() if label}
            true_HWC = Overlay(labels_HW, texts, colors).draw(to_rgb(frame))
            writer.write_frame(np.concatenate([to_rgb(predicted), true_HWC], axis=1), time)
            writer.write_sound(sound.read(writer.samples_until(writer.end)))


def mean_iou(film: Film, folder: Path) -> float:
    """IoU of the sounding objects as one mask, 1 where truth and prediction are both empty, mean over the seconds."""
    from PIL import Image

    values = []
    for second in range(int(film.seconds)):
        true_HW, shown_HW = (
            np.asarray(Image.open(folder / where / f"{second:04}.png")) > 0 for where in ("truth", "prediction/masks")
        )
        union = int((true_HW | shown_HW).sum())
        values.append(int((true_HW & shown_HW).sum()) / union if union else 1.0)
    return float(np.mean(values))


def main() -> None:
    parser = preset_parser(__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="length of the video (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="another number gives another video (default: 0)")
    parser.add_argument("--model", default="", help="as for make predict")
    arguments = parser.parse_args()
    if arguments.seconds < 5 or arguments.seed < 0:
        raise InputError(f"SECONDS={arguments.seconds} SEED={arguments.seed}: expected at least 5 and 0")
    settings, workspace = preset_settings(arguments.data), open_workspace(arguments.data)
    if settings.download.dataset != "stamps":
        raise InputError(f"DATA={arguments.data}: its model does not know the objects of stamps, of which the video is")
    segmenter = load_segmenter(settings, workspace, arguments.model)
    from qdformer.data.film import Film, load_film_assets

    film = Film(load_film_assets(PROJECT / STAMPS_CACHE), arguments.seconds, arguments.seed)
    if film.classes != segmenter.classes:
        raise InputError("the model has other classes than stamps; expected a model that was trained on stamps")
    folder = workspace / "predictions" / "demo"
    with new_folder(folder) as partial:
        labels = write_film(film, partial)
        predict(segmenter, partial / VIDEO, partial / "prediction")
        write_beside(film, labels, partial, partial / "prediction" / "overlay.mp4")
        score = mean_iou(film, partial)
    print(f"IoU of the sounding objects, mean over the seconds: {score:.3f}")
    print(shown_path(folder / "beside.mp4"))


if __name__ == "__main__":
    command_main(main)
