"""Writes small fake sets in the published layouts of AVSBench: noise as pictures, tones as sounds, blocks as masks.

    python -m tests.helpers.avsbench s4 FOLDER [--table s4.csv] [--clips 4] [--size 64] [--log-mel]

The rows are invented, or the first of each split and subset of a published table.
"""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pandas
import soundfile
from PIL import Image

from qdformer.audio.vggish.log_mel import log_mel_patches
from qdformer.data.readers.avsbench import BINARY_FRAMES, LAYOUTS, SEMANTIC_FRAMES

RATE = 16000
NAMES = ("background", "bird", "dog", "guitar", "man")
SPLITS = ("train", "val", "test")


def made_up(kind: str, clips: int) -> pandas.DataFrame:
    """A table of `clips` invented rows for each split (and for each subset of AVSS)."""
    rows = []
    for split in SPLITS:
        for index in range(clips):
            name = f"{split:_<6}-{index:04}"  # as long as a YouTube id
            thing = NAMES[1 + index % 4]
            if kind == "s4":
                rows.append((name, index, f"{thing}_sounds", split))
            elif kind == "ms3":
                rows.append((f"{name}_{index}", split))
            else:
                for subset, frames in SEMANTIC_FRAMES.items():
                    vid = f"{subset:_<3}{name[3:]}"
                    uid = vid if subset == "v1m" else f"{vid}_0_{1000 * frames}"
                    objects = f"{thing}_off-the-screen" if subset == "v2" else thing
                    rows.append((vid, uid, 0, index, objects, split, subset))
    return pandas.DataFrame(rows, columns=list(LAYOUTS[kind].columns)).astype(str)


def take(table: pandas.DataFrame, clips: int) -> pandas.DataFrame:
    """The first `clips` rows of each split and subset."""
    keys = [key for key in ("split", "label") if key in table]
    return table.groupby(keys, sort=False).head(clips).reset_index(drop=True)


def write_fake(
    root: Path, kind: str, table: pandas.DataFrame, size: tuple[int, int] = (64, 48), log_mel: bool = False
) -> Path:
    """Write the clips of `table` in the layout of the release, with pictures of `size` (width, height); return `root`.

    With `log_mel`, S4 and MS3 get spectrograms instead of sounds. The label index contains the invented names and those
    in the table; each label map shows the first object of its row.
    """
    base = {"s4": root / "s4_data", "ms3": root / "ms3_data", "avss": root}[kind]
    root.mkdir(parents=True, exist_ok=True)
    table.to_csv(root / LAYOUTS[kind].table, index=False)
    if kind == "avss":
        objects = {token.replace(" ", "") for value in table["a_obj"] for token in value.split("_")}
        names = ["background", *sorted((objects | set(NAMES)) - {"background", "off-the-screen"})]
        (root / "label2idx.json").write_text(json.dumps({name: index for index, name in enumerate(names, start=1)}))
    for index, row in enumerate(table.to_dict("records")):
        random = np.random.default_rng(index)
        if kind == "avss":
            frames = SEMANTIC_FRAMES[row["label"]]
            folder = base / row["label"] / row["uid"]
            images = [folder / "frames" / f"{number}.jpg" for number in range(frames)]
            labeled = 1 if (row["label"], row["split"]) == ("v1s", "train") else frames
            labels = [folder / "labels_semantic" / f"{number}.png" for number in range(labeled)]
            value = names.index(row["a_obj"].replace(" ", "").split("_")[0])
            mode, sound = "P", folder / "audio.wav"
        else:
            frames, split = BINARY_FRAMES, row["split"]
            if kind == "s4":
                name, inner, suffix, labeled = row["name"], Path(split, row["category"], row["name"]), "", frames
                labeled = 1 if split == "train" else frames
                pictures = base / "visual_frames" / inner
            else:
                name, inner, suffix, labeled = row["video_id"], Path(split, row["video_id"]), ".mp4", frames
                pictures = base / "visual_frames" / name
            images = [pictures / f"{name}{suffix}_{number}.png" for number in range(1, frames + 1)]
            labels = [base / "gt_masks" / inner / f"{name}_{number}.png" for number in range(1, labeled + 1)]
            value, mode = 255, "1" if kind == "s4" else "P"
            sound = base / ("audio_log_mel" if log_mel else "audio_wav") / inner.with_name(f"{name}.wav")
        for path in (images[0], labels[0], sound):
            path.parent.mkdir(parents=True, exist_ok=True)
        for path in images:
            Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
        mask = np.zeros((size[1], size[0]), np.uint8)
        mask[size[1] // 4 : size[1] // 2, size[0] // 4 : size[0] // 2] = value
        for path in labels:
            picture = Image.fromarray(mask)
            if mode == "P":
                picture.putpalette([channel for value in range(256) for channel in (value, 255 - value, 128)])
            else:
                picture = picture.convert("1")
            picture.save(path)
        time = np.arange(frames * RATE) / RATE
        wave = (0.3 * np.sin(2 * np.pi * (200 + 50 * index) * time)).astype(np.float32)
        if log_mel and kind != "avss":
            with sound.with_suffix(".pkl").open("wb") as file:
                pickle.dump(log_mel_patches(wave, RATE), file)
        else:
            soundfile.write(sound, wave, RATE)
    return root


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(LAYOUTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", type=Path, help="a published table (default: invented rows)")
    parser.add_argument("--clips", type=int, default=4, help="clips in each split and subset")
    parser.add_argument("--size", type=int, default=64, help="width of the pictures in pixels")
    parser.add_argument("--log-mel", action="store_true", help="spectrograms instead of sounds (s4, ms3)")
    given = parser.parse_args()
    rows = pandas.read_csv(given.table, dtype=str, keep_default_na=False) if given.table else None
    rows = take(rows, given.clips) if rows is not None else made_up(given.kind, given.clips)
    write_fake(given.folder, given.kind, rows, (given.size, given.size * 3 // 4), given.log_mel)
    print(f"{len(rows)} clips in {given.folder}")
