"""Collecting noises: copies from the data set, or selected segments of AudioSet."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.io.sound_table import read_sound_table, sound_row, write_single_sound, write_sound_table
from qdformer.audio.noise import audioset_fetch
from qdformer.audio.noise.audioset import AudioSetError
from qdformer.audio.noise.collect import collect_audioset_noises, copy_dataset_noises, read_noise_table
from qdformer.audio.noise.mixing import write_condition
from qdformer.config.noise import Noise
from tests.helpers.audioset import BARK, RAIN, WIND, write_list, write_ontology, write_tone, youtube_id

VIDEOS = 24


@pytest.fixture
def audioset(tmp_path) -> Noise:
    """24 videos with one clip each in the folder; every fourth has the label of a dog."""
    segments = [(youtube_id(n), 30, [WIND, BARK] if n % 4 == 3 else [WIND, RAIN]) for n in range(VIDEOS)]
    for name, *_ in segments:
        write_tone(tmp_path / "clips" / f"Y{name}.wav")
    return Noise(
        source="audioset",
        segments=[str(write_list(tmp_path / "balanced.csv", segments))],
        ontology=str(write_ontology(tmp_path / "ontology.json")),
        folder=str(tmp_path / "clips"),
        fetch=False,
        labels=["Wind"],
        count={"train": 6, "test": 4},
        minimum=2,
        seed=0,
    )


def collect(settings: Noise, tmp_path: Path, name: str = "noise") -> pandas.DataFrame:
    (tmp_path / name).mkdir()
    return collect_audioset_noises(tmp_path / name, settings, ["dog"], tmp_path / "cache")


def test_each_split_gets_its_own_videos_and_none_with_a_dog(audioset, tmp_path):
    collect(audioset, tmp_path)
    table = read_noise_table(tmp_path / "noise")
    assert table["split"].value_counts().to_dict() == {"train": 6, "test": 4}
    assert table["youtube_id"].is_unique
    assert not any(int(name[-7:]) % 4 == 3 for name in table["youtube_id"])
    assert (
        set(table["labels"]) == {"Wind;Rain"} and set(table["start"]) == {"30"} and set(table["source"]) == {"audioset"}
    )
    for path in table["path"]:
        info, audio = soundfile.info(path), read_audio(path)
        assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16000, 1)
        assert np.abs(audio).max() == pytest.approx(0.9, abs=1e-3) and len(audio) == 160_000


def test_the_same_settings_give_the_same_bytes_and_another_seed_another_choice(audioset, tmp_path):
    def contents(name: str, settings: Noise) -> dict[str, bytes]:
        collect(settings, tmp_path, name)
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    one = contents("one", audioset)
    assert contents("two", audioset) == one
    assert contents("three", audioset.model_copy(update={"seed": 1})).keys() != one.keys()


def test_unusable_segments_are_counted_and_skipped(audioset, tmp_path, capsys):
    before = collect(audioset, tmp_path, "before")
    first, second, third = (before["youtube_id"][before["split"] == "test"].iloc[i] for i in range(3))
    clips = tmp_path / "clips"
    (clips / f"Y{first}.wav").write_bytes(b"no sound")
    soundfile.write(clips / f"Y{second}.wav", np.zeros(160_000), 16000)
    (clips / f"Y{third}.wav").unlink()
    after = collect(audioset, tmp_path, "after")
    output = capsys.readouterr()
    assert f"{first}.wav: cannot be read" in output.err and f"{second}.wav: is silent" in output.err
    left = after["youtube_id"][after["split"] == "test"]
    assert not {first, second, third} & set(left) and len(left) >= 2
    assert "unavailable 0, failed 0, missing 1, unreadable 1, silent 1" in output.out.splitlines()[-1]
    train = [table[table["split"] == "train"] for table in (before, after)]
    pandas.testing.assert_frame_equal(*train)


def test_too_few_noises_raise_with_the_counts(audioset, tmp_path):
    for number in range(4, VIDEOS):
        (tmp_path / "clips" / f"Y{youtube_id(number)}.wav").unlink()
    with pytest.raises(
        AudioSetError,
        match=r"(?s)too few noises.*: \d usable noises, expected at least 2 \(noise.minimum\); "
        r"of \d+ eligible segments: picked \d+, found \d, "
        r"fetched 0, unavailable 0, failed 0, missing \d+, unreadable 0",
    ):
        collect(audioset, tmp_path)


def test_unavailable_videos_are_skipped_and_found_ones_are_not_fetched(audioset, tmp_path, monkeypatch, capsys):
    asked = []

    def fetch(self, segment):
        asked.append(segment.youtube_id)
        if len(asked) % 2:
            return None, "unavailable"
        return write_tone(tmp_path / "fetched" / f"{segment.name}.flac", rate=44100, channels=2), "fetched"

    kept = [youtube_id(number) for number in range(8)]
    for number in range(8, VIDEOS):
        (tmp_path / "clips" / f"Y{youtube_id(number)}.wav").unlink()
    monkeypatch.setattr(audioset_fetch.Fetcher, "fetch", fetch)
    table = collect(audioset.model_copy(update={"fetch": True}), tmp_path)
    assert table["split"].value_counts()["test"] >= 2
    assert asked and not set(asked) & set(kept)
    output = capsys.readouterr().out
    assert (
        sum(int(line.split("unavailable ")[1].split(",")[0]) for line in output.splitlines()) == (len(asked) + 1) // 2
    )
    assert sum(int(line.split("fetched ")[1].split(",")[0]) for line in output.splitlines()) == len(asked) // 2


def test_cached_segments_are_found_without_the_network(audioset, tmp_path):
    (tmp_path / "cache").mkdir()
    shutil.rmtree(tmp_path / "clips")
    for number in range(VIDEOS):
        write_tone(tmp_path / "cache" / "clips" / f"{youtube_id(number)}_30000.flac")
    table = collect(audioset.model_copy(update={"folder": None}), tmp_path)
    assert len(table) == 10


def test_a_whole_video_is_cut_to_its_segment(audioset, tmp_path):
    for path in (tmp_path / "clips").iterdir():
        write_tone(path, seconds=45)
    table = collect(audioset, tmp_path)
    whole = read_audio(tmp_path / "clips" / f"Y{table['youtube_id'][0]}.wav")
    cut = read_audio(tmp_path / "noise" / table["path"][0])
    part = whole[30 * 16000 : 40 * 16000]
    np.testing.assert_allclose(cut, part * 0.9 / np.abs(part).max(), atol=1e-4)


def test_a_video_that_ends_before_its_segment_is_unreadable(audioset, tmp_path):
    for path in (tmp_path / "clips").iterdir():
        write_tone(path, seconds=20)
    with pytest.raises(AudioSetError, match="train: 0 usable noises"):
        collect(audioset, tmp_path)


def test_an_unknown_label_is_reported_before_the_lists_are_read(audioset, tmp_path):
    wrong = audioset.model_copy(update={"labels": ["Winds"], "segments": ["nowhere.csv"]})
    with pytest.raises(AudioSetError, match="no class 'Winds'; similar: 'Wind'"):
        collect(wrong, tmp_path)


def test_a_label_outside_the_ontology_is_written_as_its_id(audioset, tmp_path):
    path = Path(audioset.segments[0])
    path.write_text(path.read_text().replace(f"{WIND},{RAIN}", f"{WIND},/t/dd99999"))
    assert set(collect(audioset, tmp_path)["labels"]) == {"Wind;/t/dd99999"}


def test_the_noises_can_be_mixed(audioset, tmp_path):
    collect(audioset, tmp_path)
    clip = write_tone(tmp_path / "clip.wav", seconds=5)
    clips = pandas.DataFrame([{"uid": "a", "split": "test", "frames": 5, "audio": clip}])
    manifest = write_condition(tmp_path / "snr5", clips, read_noise_table(tmp_path / "noise"), 5.0, ["test"], seed=0)
    assert manifest["snr_achieved"].tolist() == pytest.approx([5.0], abs=0.01)
    assert manifest["noise"][0].endswith("_30000.flac")


@pytest.fixture
def sounds(tmp_path) -> Path:
    root, random = tmp_path / "sounds", np.random.default_rng(0)
    rows = [sound_row("source/dog.flac", role="source", split="test", label="dog")]
    for name, split in (("z", "test"), ("a", "test"), ("b", "train")):
        rows.append(sound_row(f"noise/{name}.flac", role="noise", split=split))
    rows.append(sound_row("noise/b.flac", role="noise", split="test"))  # in two splits
    for row in rows:
        write_single_sound(root, row["path"], random.uniform(-0.5, 0.5, 1000))
    write_sound_table(root, rows)
    return root


def test_copied_noises_keep_their_order_names_and_bytes(sounds, tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    copy_dataset_noises(folder, sounds, read_sound_table(sounds))
    table = read_noise_table(folder)
    assert [(path.name, split) for path, split in zip(table["path"], table["split"], strict=True)] == [
        ("z.flac", "test"),
        ("a.flac", "test"),
        ("b.flac", "train"),
        ("b.flac", "test"),
    ]
    for path in table["path"]:
        assert path.read_bytes() == (sounds / path.relative_to(folder)).read_bytes()
    assert not (folder / "source").exists()


def test_a_data_set_without_noise_is_reported(sounds, tmp_path):
    table = read_sound_table(sounds)
    with pytest.raises(AudioError, match=r"sounds.csv: no sound with the role noise"):
        copy_dataset_noises(tmp_path / "noise", sounds, table[table["role"] == "source"])


def test_a_missing_or_damaged_table_is_reported(tmp_path):
    with pytest.raises(AudioError, match="noise.csv: missing; the stage noise writes it"):
        read_noise_table(tmp_path)
    (tmp_path / "noise.csv").write_text("path,split\na,test\n")
    with pytest.raises(AudioError, match="noise.csv: no column source"):
        read_noise_table(tmp_path)
