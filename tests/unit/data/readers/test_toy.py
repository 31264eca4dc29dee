import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from qdformer.audio.io.sound_table import read_sound_table
from qdformer.config.download import Clips, Download
from qdformer.data.checks import check_dataset, check_sounds
from qdformer.data.manifest import read_classes, read_manifest
from qdformer.data.readers.toy import CLASSES, NOISES, compose_toy
from tests.helpers.dataset import digests


def settings(train=10, val=3, test=5, seed=0):
    clips = Clips(train=train, val=val, test=test)
    return Download(dataset="toy", seed=seed, clips=clips, frames=5, image_size=64)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("toy")
    compose_toy(root / "dataset", root / "sounds", settings())
    return root


def labels_of(clip):
    return np.stack([np.asarray(Image.open(path)) for path in clip.labels])


def test_it_passes_the_checks_and_has_what_was_asked(toy):
    assert not check_dataset(toy / "dataset").errors
    assert not check_sounds(toy / "sounds").findings
    manifest = read_manifest(toy / "dataset")
    assert manifest["split"].value_counts().to_dict() == {"train": 10, "val": 3, "test": 5}
    assert Image.open(manifest["images"][0][4]).size == (64, 64)
    assert read_classes(toy / "dataset").names == tuple(kind.name for kind in CLASSES)


def test_rows_agree_with_the_label_maps(toy):
    classes = read_classes(toy / "dataset")
    for clip in read_manifest(toy / "dataset").itertuples():
        shown = {classes.names[index - 1] for index in np.unique(labels_of(clip)) if index}
        assert shown == set(clip.classes) <= set(clip.visible) and len(clip.visible) in (1, 2)


def test_what_is_labeled_can_be_heard_and_silence_is_silent(toy):
    changing = 0
    for clip in read_manifest(toy / "dataset").itertuples():
        audio, rate = soundfile.read(clip.audio)
        labeled = labels_of(clip).reshape(clip.frames, -1).any(axis=1)
        loud = np.abs(audio.reshape(clip.frames, rate)).max(axis=1) > 0.01
        assert loud[labeled].all()
        assert clip.silent == (not audio.any())
        changing += len({tuple(np.unique(picture)) for picture in labels_of(clip)}) > 1
    assert changing >= 9  # of 18 clips: what sounds changes within them


def test_every_class_and_noise_has_its_sounds(toy):
    sounds = read_sound_table(toy / "sounds")
    sources = sounds[sounds["role"] == "source"]
    assert set(zip(sources["split"], sources["label"], strict=True)) == {
        (split, kind.name) for split in ("train", "val", "test") for kind in CLASSES
    }
    kinds = [set(NOISES[split]) for split in ("train", "val", "test")]
    assert not kinds[2] & (kinds[0] | kinds[1])
    assert (sounds["role"] == "noise").sum() == sum(map(len, kinds))


def test_equal_settings_give_equal_bytes_whatever_else_was_drawn(tmp_path):
    # in other processes, with another hash seed, so that no order of a set or dictionary can hide
    call = (
        "import sys, numpy, random; numpy.random.seed(int(sys.argv[2])); random.seed(int(sys.argv[2]))\n"
        "from tests.unit.data.readers.test_toy import *; from pathlib import Path; root = Path(sys.argv[1])\n"
        "compose_toy(root / 'dataset', root / 'sounds', settings(2, 1, 1, seed=int(sys.argv[3])))"
    )
    made = []
    for number, seed in enumerate((7, 7, 8)):
        root = tmp_path / str(number)
        command = [sys.executable, "-c", call, str(root), str(number), str(seed)]
        environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": str(number)}
        subprocess.run(command, check=True, env=environment)
        made.append(digests(root))
    assert made[0] == made[1]
    names = [{path for path in files if "/tracks/" not in path} for files in made]  # the number of tracks is random
    assert names[0] == names[2] and made[0] != made[2]


def test_no_torch_is_loaded_to_make_read_or_check_it():
    names = "layout, qdformer.data.manifest, qdformer.data.checks, qdformer.data.readers.toy, pipelines.stages.download"
    code = f"import sys, qdformer.data.{names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
