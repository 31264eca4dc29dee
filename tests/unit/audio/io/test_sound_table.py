"""The table of single sounds."""

import pytest

from qdformer.audio.io.read import AudioError
from qdformer.audio.io.sound_table import read_sound_table, sound_row, write_sound_table


def test_sounds(tmp_path):
    good = sound_row("train/dog.flac", role="source", split="train", label="dog")
    noise = sound_row("train/hum.flac", role="noise", split="train")
    write_sound_table(tmp_path, [good, noise])
    table = read_sound_table(tmp_path)
    assert table["path"].tolist() == [tmp_path / "train/dog.flac", tmp_path / "train/hum.flac"]
    assert table["label"].tolist() == ["dog", ""]
    for change, problem in [
        ({"path": "../dog.flac"}, "path inside"),
        ({"path": "/dog.flac"}, "path inside"),
        ({"role": "music"}, "unknown role 'music'"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"label": ""}, "expected a class for a source"),
        ({"path": "train/hum.flac"}, "listed twice"),
    ]:
        write_sound_table(tmp_path, [good | change, noise])
        with pytest.raises(AudioError, match=problem) as caught:
            read_sound_table(tmp_path)
        assert "sounds.csv" in str(caught.value)
