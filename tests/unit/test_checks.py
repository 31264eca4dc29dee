import numpy as np
import pytest
import soundfile
from PIL import Image
from small_dataset import write_small

from qdformer.data.checks import check_dataset, check_sounds
from qdformer.data.layout import DataError, sound_row, write_sound, write_sound_table


@pytest.fixture
def root(tmp_path):
    return write_small(tmp_path / "dataset")


def cut(keep):
    return lambda path: path.write_bytes(path.read_bytes()[:keep])


def save_label(array, mode=None):
    def change(path):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path)

    return change


def save_sound(seconds, value, subtype="PCM_16"):
    return lambda path: soundfile.write(path, np.full(round(seconds * 16000), value, np.float32), 16000, subtype)


def test_a_sound_data_set_passes(root):
    check_dataset(root)  # the clip in which nothing sounds is all zeros


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("audio.wav", cut(0), "not a readable sound"),
        ("audio.wav", cut(44), "cut short"),
        ("audio.wav", cut(-1000), "cut short"),
        ("audio.wav", lambda path: path.unlink(), "missing; expected a sound file"),
        ("audio.wav", save_sound(2, 0.1), "2.00 s long; expected 3 s"),
        ("audio.wav", save_sound(3, 0.0), "all silence, yet the labels say"),
        ("audio.wav", save_sound(3, np.nan, "FLOAT"), "not numbers"),
        ("frames/1.jpg", lambda path: path.unlink(), "missing; expected one for every second"),
        ("frames/1.jpg", cut(0), "not a readable picture"),
        ("frames/1.jpg", cut(-200), "damaged picture"),
        ("frames/1.jpg", lambda path: path.write_text("no picture"), "not a readable picture"),
        ("labels_semantic/2.png", lambda path: path.unlink(), "missing"),
        ("labels_semantic/2.png", cut(-40), "damaged picture"),
        ("labels_semantic/2.png", save_label(np.zeros((32, 40), np.uint8)), "40x32 pixels; expected 48x32 like its"),
        ("labels_semantic/2.png", save_label(np.full((32, 48), 3, np.uint8)), "unknown class id 3; expected 0..2"),
        ("labels_semantic/2.png", save_label(np.zeros((32, 48), np.uint8), "RGB"), "mode RGB; expected one class id"),
    ],
)
def test_damage_is_named_with_its_clip_and_file(root, file, change, problem):
    change(root / "v1m" / "b" / file)
    with pytest.raises(DataError, match=problem) as caught:
        check_dataset(root)
    message = str(caught.value)
    assert "clip b: " in message and file in message and "clip a" not in message


def test_silence_is_judged_by_the_label_maps_too(root):
    labels = np.zeros((32, 48), np.uint8)
    labels[3, 3] = 255
    save_label(labels)(root / "v1m" / "quiet" / "labels_semantic" / "0.png")
    check_dataset(root)  # not labelled is not sounding
    labels[3, 3] = 1
    save_label(labels)(root / "v1m" / "quiet" / "labels_semantic" / "0.png")
    with pytest.raises(DataError, match="clip quiet: .*audio.wav: all silence"):
        check_dataset(root)


def test_several_problems_come_in_one_message_in_order(root):
    for uid in ("c", "a"):
        (root / "v1m" / uid / "audio.wav").unlink()
    with pytest.raises(DataError) as caught:
        check_dataset(root)
    message = str(caught.value)
    assert message.index("clip a") < message.index("clip c")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="label2idx.json: missing"):
        check_dataset(tmp_path / "nowhere")


def test_sounds(tmp_path):
    write_sound(tmp_path, "a.flac", np.full(100, 0.1))
    write_sound_table(tmp_path, [sound_row("a.flac", role="noise", split="train")])
    check_sounds(tmp_path)
    write_sound(tmp_path, "a.flac", np.zeros(100))
    with pytest.raises(DataError, match="sound .*a.flac: all silence"):
        check_sounds(tmp_path)
    cut(60)(tmp_path / "a.flac")
    with pytest.raises(DataError, match="sound .*a.flac: not a readable sound"):
        check_sounds(tmp_path)
