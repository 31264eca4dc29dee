import numpy as np
import pytest
import soundfile
from PIL import Image

from qdformer.audio.io.read import AudioError
from qdformer.audio.io.sound_table import write_single_sound
from qdformer.data import layout
from qdformer.data.layout import DataError, metadata_row, write_clip, write_metadata
from tests.helpers.dataset import CLASSES, clip_arrays, digests, write_small


def test_a_clip_comes_back_as_it_was_written(tmp_path):
    frames, labels, audio = clip_arrays()
    labels[0, 0, 0] = 255
    folder = write_clip(tmp_path, "v1m", "a", frames, labels, audio)
    assert folder == tmp_path / "v1m" / "a"
    read = np.stack([np.asarray(Image.open(layout.label_path(folder, index))) for index in range(3)])
    np.testing.assert_array_equal(read, labels)
    picture = np.asarray(Image.open(layout.frame_path(folder, 2)))
    assert picture.shape == frames[2].shape
    sound, rate = soundfile.read(layout.audio_path(folder))
    assert rate == 16000
    np.testing.assert_allclose(sound, audio, atol=1e-4)


def test_equal_arrays_give_equal_bytes_and_nothing_else_is_left(tmp_path):
    first, second = digests(write_small(tmp_path / "1")), digests(write_small(tmp_path / "2"))
    assert first == second
    assert len(first) == 3 + 4 * (3 + 3 + 1)


def test_a_clip_is_whole_or_absent_and_can_be_replaced(tmp_path, monkeypatch):
    frames, labels, audio = clip_arrays()

    def full_disk(*args, **named):
        raise OSError("no space left")

    monkeypatch.setattr(layout, "write_audio", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_clip(tmp_path, "v1m", "a", frames, labels, audio)
    assert not (tmp_path / "v1m" / "a").exists()
    monkeypatch.undo()
    write_clip(tmp_path, "v1m", "a", frames, labels, audio)
    write_clip(tmp_path, "v1m", "a", frames[:1], labels[:1], audio[:16000])
    assert len(list((tmp_path / "v1m" / "a" / "frames").iterdir())) == 1
    assert [path.name for path in (tmp_path / "v1m").iterdir()] == ["a"]


@pytest.mark.parametrize("uid", ["../a", "a/b", "", ".hidden", "a..b"])
def test_unsafe_uid_is_refused(tmp_path, uid):
    with pytest.raises(DataError, match="folder's name"):
        write_clip(tmp_path, "v1m", uid, *clip_arrays())
    assert not list(tmp_path.iterdir())


def test_wrong_arrays_are_refused(tmp_path):
    frames, labels, audio = clip_arrays()
    broken = audio.copy()
    broken[5] = np.nan
    for arguments, problem in [
        ((frames.astype(float), labels, audio), "clip a: frames are float64"),
        ((frames, labels[:, :-1], audio), r"clip a: labels are uint8 .* expected uint8 \[3, 32, 48\]"),
        ((frames, labels, audio[:-1]), "clip a: audio has 47999 samples; expected 3 s x 16000 Hz"),
        ((frames, labels, audio * 3), "clip a: audio reaches 1.49.*within -1..1"),
        ((frames, labels, broken), "clip a: audio reaches nan"),
    ]:
        with pytest.raises((DataError, AudioError), match=problem):
            write_clip(tmp_path, "v1m", "a", *arguments)
    with pytest.raises(AudioError, match="sound x.flac is int16"):
        write_single_sound(tmp_path, "x.flac", np.zeros(5, np.int16))


def test_rows_say_what_sounds():
    common = {"subset": "v1m", "split": "train", "frames": 5}
    assert metadata_row("a", classes=["dog", "cat", "dog"], **common)["a_obj"] == "cat_dog"
    assert metadata_row("a", classes=["dog"], off_screen=True, **common)["a_obj"] == "dog_off-the-screen"
    assert metadata_row("a", classes=[], **common)["a_obj"] == "background"
    assert metadata_row("a", classes=["dog"], visible=["cat", "dog"], **common)["visible"] == "cat_dog"
    assert metadata_row("a", classes=["dog"], **common)["visible"] == "dog"


@pytest.mark.parametrize("name", ["two_words", "Dog", "background", "dog", ""])
def test_unusable_class_names_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="expected a unique name"):
        write_metadata(tmp_path, [], [*CLASSES, layout.ClassInfo(name, False)])


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_sounds_are_16_bit_mono(tmp_path, suffix):
    write_single_sound(tmp_path, f"train/x.{suffix}", np.linspace(-1, 1, 100))
    info = soundfile.info(tmp_path / "train" / f"x.{suffix}")
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16000, 1, "PCM_16", 100)
