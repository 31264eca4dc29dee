"""`make predict`: all files of a video, and one line for input that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.predict import find_videos, folders, load_segmenter, predict, require_writable
from qdformer.audio.io.read import AudioError
from qdformer.config.settings import load_settings
from qdformer.data.manifest import Classes
from qdformer.inference import ClipPrediction, Segmenter
from qdformer.inference.masks import decode_rle
from qdformer.utils.errors import InputError
from tests.helpers.video import HEIGHT, WIDTH, write_video


class DogThenNothing:
    """In place of a predictor: a dog in the first second of a window."""

    classes = Classes(("bell", "dog"), (False, False))

    def predict(self, frames, waveform, sample_rate):
        semantic = np.zeros(frames.shape[:3], np.uint8)
        semantic[0, 10:20, 30:50] = 2
        probs = np.tile(np.float32([0.1, 0.875]), (len(frames), 1))
        return ClipPrediction(self.classes.names, semantic, semantic.astype(np.float32), probs)


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(DogThenNothing(), clip_frames=2, hop=2)


def test_all_files_of_a_video(segmenter, tmp_path):
    folder = predict(segmenter, write_video(tmp_path / "clip.mp4", 4), tmp_path / "out" / "clip")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    masks = {f"masks/000{second}.png" for second in range(4)}
    assert names == {"masks", "overlay.mp4", "result.json", "sounding.vtt", "timeline.png", *masks}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert (result["video"], result["width"], result["height"]) == ("clip.mp4", WIDTH, HEIGHT)
    assert result["classes"] == ["bell", "dog"] and [second["time"] for second in result["seconds"]] == [0, 1, 2, 3]
    assert [len(second["objects"]) for second in result["seconds"]] == [1, 0, 1, 0]
    (dog,) = result["seconds"][2]["objects"]
    assert (dog["name"], dog["category_id"], dog["score"]) == ("dog", 2, 0.875)
    assert (dog["bbox"], dog["area"]) == ([30, 10, 20, 10], 200)
    with Image.open(folder / "masks" / "0002.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image) == 2, decode_rle(dog["segmentation"]))
    assert (folder / "sounding.vtt").read_text() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\ndog 0.88\n\n00:00:02.000 --> 00:00:03.000\ndog 0.88\n"
    )
    with av.open(str(folder / "overlay.mp4")) as container:
        assert container.streams.audio and sum(1 for _ in container.decode(video=0)) == 40
    with Image.open(folder / "timeline.png") as image:
        assert image.width > 600


def test_a_failure_leaves_nothing_and_keeps_an_earlier_prediction(segmenter, tmp_path):
    video, folder = write_video(tmp_path / "clip.mp4", 1), tmp_path / "out" / "clip"
    with pytest.raises(AudioError, match=r"none\.wav: no such file"):
        predict(segmenter, video, folder, tmp_path / "none.wav")
    assert not any(folder.parent.glob("*")) and not any(folder.parent.glob(".*"))
    predict(segmenter, video, folder)
    with pytest.raises(AudioError):
        predict(segmenter, video, folder, tmp_path / "none.wav")
    assert (folder / "result.json").is_file() and [path.name for path in folder.parent.iterdir()] == ["clip"]


def test_videos_are_paths_patterns_or_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4", "my clip.mp4", "c[1].mp4"):
        Path(name).touch()
    assert find_videos(["b.mp4", "a.mp4", "b.mp4"]) == [Path("b.mp4"), Path("a.mp4")]
    assert find_videos(["[ab].mp4"]) == [Path("a.mp4"), Path("b.mp4")]
    assert find_videos(["b.mp4 a*.mp4"]) == [Path("b.mp4"), Path("a.mp4")]
    assert find_videos(["my clip.mp4", "c[1].mp4"]) == [Path("my clip.mp4"), Path("c[1].mp4")]
    with pytest.raises(InputError, match=r"x\*\.mp4: no such file"):
        find_videos(["a.mp4 x*.mp4"])
    with pytest.raises(InputError, match="my other clip.mp4: no such file"):
        find_videos(["my other clip.mp4"])
    with pytest.raises(InputError, match="VIDEO is missing; expected a video file"):
        find_videos([])


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"OUT={out}: .*file is not a folder that can be written"):
            require_writable(out)
    require_writable(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()


def test_folders_have_the_names_of_the_videos_and_no_other_content_is_replaced(tmp_path):
    assert folders([Path("a.mp4"), Path("b.mp4")], tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert folders([Path("a.mp4"), Path("a.mov")], tmp_path) == [tmp_path / "a.mp4", tmp_path / "a.mov"]
    assert folders([Path("..mp4"), Path("...mp4")], tmp_path) == [tmp_path / "..mp4", tmp_path / "...mp4"]
    with pytest.raises(InputError, match=r"y/a\.mp4: another of the videos is also named a\.mp4"):
        folders([Path("y/a.mp4"), Path("x/a.mp4")], tmp_path)
    (tmp_path / "a").mkdir()
    assert folders([Path("a.mp4")], tmp_path) == [tmp_path / "a"]
    (tmp_path / "a" / "thesis.tex").touch()
    with pytest.raises(InputError, match="a: exists and is not a folder of predictions"):
        folders([Path("a.mp4")], tmp_path)
    (tmp_path / "a" / "result.json").touch()
    with pytest.raises(InputError, match=r"a\.mp4: lies in .*which would be replaced"):
        folders([tmp_path / "a" / "a.mp4"], tmp_path)


def test_a_missing_model_says_how_to_get_one(tmp_path):
    with pytest.raises(InputError, match=r"model\.safetensors: no such file; `make repro` computes it"):
        load_segmenter(load_settings(), tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "VIDEO is missing"),
        (["none.mp4"], "none.mp4: no such file"),
        (["text.mp4"], "text.mp4: "),
        (["clip.mp4", "clip.mp4 params.yaml", "--audio=a.wav"], "AUDIO=a.wav: given for 2 videos"),
        (["clip.mp4", "--audio=none.wav"], "none.wav: no such file"),
        (["clip.mp4"], "model.safetensors: no such file"),
        (["clip.mp4", "--model=none.safetensors"], "MODEL=none.safetensors: no such file; expected champion, "),
        (["clip.mp4", "--hop=half"], "HOP=half: expected a whole number of seconds"),
    ],
)
def test_wrong_input_is_one_line(project, options, words):
    (project.root / "text.mp4").write_text("no video\n" * 300)
    write_video(project.root / "clip.mp4", 1)
    done = project.python("-m", "pipelines.predict", *options)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (project.root / "predictions").exists()
