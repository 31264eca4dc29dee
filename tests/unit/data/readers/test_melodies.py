"""Soundfonts and the melodies played with them, on a soundfont of one looped sine per preset."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from qdformer.data.readers.stamps import melodies
from qdformer.data.readers.stamps.melodies import INSTRUMENTS, SECONDS, TONICS, Instrument, play, write_melody
from qdformer.data.readers.stamps.soundfont import Preset, Soundfont, SoundfontError
from qdformer.utils.constants import SAMPLE_RATE, SPLITS

RATE, PERIOD, ROOT = 44100, 100, 69
VIOLIN, DRUMS = Preset(0, 40), Preset(128, 0)


def make_soundfont(path: Path) -> Path:
    """A looped sine of 441 Hz at key 69 for `VIOLIN`, above key 99 nothing; the same without a loop for `DRUMS`."""
    sine = (20000 * np.sin(2 * np.pi * np.arange(20 * PERIOD) / PERIOD)).astype("<i2").tobytes()

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)

    def generators(*pairs: tuple[int, int]) -> bytes:
        return b"".join(struct.pack("<HH", generator, amount & 65535) for generator, amount in pairs)

    def preset(name: bytes, program: int, bank: int, bag: int) -> bytes:
        return struct.pack("<20s3H3I", name, program, bank, bag, 0, 0, 0)

    pdta = {
        b"phdr": preset(b"violin", 40, 0, 0) + preset(b"drums", 0, 128, 1) + preset(b"EOP", 0, 0, 2),
        b"pbag": struct.pack("<6H", 0, 0, 1, 0, 2, 0),
        b"pgen": generators((41, 0), (41, 1), (0, 0)),
        b"inst": struct.pack("<20sH", b"a", 0) + struct.pack("<20sH", b"b", 2) + struct.pack("<20sH", b"EOI", 3),
        b"ibag": struct.pack("<8H", 0, 0, 1, 0, 4, 0, 5, 0),
        # the first zone of the first instrument holds its defaults: a release of 0.5 s
        b"igen": generators((38, -1200), (43, 99 << 8), (54, 1), (53, 0), (53, 0), (0, 0)),
        b"shdr": struct.pack("<20s5IBbHH", b"s", 0, 20 * PERIOD, 10 * PERIOD, 19 * PERIOD, RATE, ROOT, 0, 0, 1)
        + struct.pack("<20s5IBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    lists = chunk(b"LIST", b"sdta" + chunk(b"smpl", sine))
    lists += chunk(b"LIST", b"pdta" + b"".join(chunk(name, content) for name, content in pdta.items()))
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(lists)) + b"sfbk" + lists)
    return path


@pytest.fixture
def soundfont(tmp_path: Path) -> Soundfont:
    return Soundfont(make_soundfont(tmp_path / "a.sf2"))


def pitch(audio: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(audio * np.hanning(len(audio)))).argmax() * rate / len(audio))


@pytest.mark.parametrize(("key", "frequency"), [(69, 441.0), (81, 882.0), (57, 220.5)])
def test_a_note_has_its_pitch_and_is_looped(soundfont: Soundfont, key: int, frequency: float) -> None:
    note = soundfont.note(VIOLIN, key, 127, 1.0, 32000)
    assert pitch(note[:32000], 32000) == pytest.approx(frequency, rel=0.005)
    assert np.abs(note[30000:32000]).max() == pytest.approx(np.abs(note[:2000]).max(), rel=0.02)


def test_a_note_follows_its_envelope_velocity_and_limit(soundfont: Soundfont) -> None:
    note = soundfont.note(VIOLIN, 69, 127, 1.0, 32000)
    assert 1.25 < len(note) / 32000 < 1.35  # until the release has fallen by 60 dB
    assert np.abs(note[-320:]).max() < 0.005
    assert np.abs(soundfont.note(VIOLIN, 69, 64, 1.0, 32000)).max() == pytest.approx(np.abs(note).max() / 4, rel=0.05)
    assert len(soundfont.note(VIOLIN, 69, 127, 1.0, 32000, longest=0.25)) == 8000
    assert len(soundfont.note(DRUMS, 69, 127, 1.0, 44100)) < 21 * PERIOD  # no loop


def test_soundfont_errors_name_the_file(soundfont: Soundfont, tmp_path: Path) -> None:
    with pytest.raises(SoundfontError, match="a.sf2.*no preset 41 in bank 0"):
        soundfont.note(Preset(0, 41), 69, 100, 1.0, 32000)
    with pytest.raises(SoundfontError, match="a.sf2.*key 120"):
        soundfont.note(VIOLIN, 120, 100, 1.0, 32000)
    whole = (tmp_path / "a.sf2").read_bytes()
    for damaged in (b"", b"RIFX" + whole[4:], whole[:400], whole.replace(b"ibag", b"ibug")):
        (tmp_path / "b.sf2").write_bytes(damaged)
        with pytest.raises(SoundfontError, match="b.sf2.*not a soundfont"):
            Soundfont(tmp_path / "b.sf2")


def test_melodies_repeat_exactly_and_differ_between_splits(soundfont: Soundfont) -> None:
    tunes = {(split, take): play(soundfont, "violin", split, take) for split in SPLITS for take in range(2)}
    for (split, take), audio in tunes.items():
        assert audio.shape == (int(SECONDS * SAMPLE_RATE),) and audio.dtype == np.float32
        assert 0.5 < np.abs(audio).max() < 0.8
        assert np.array_equal(audio, play(soundfont, "violin", split, take))
    assert len({audio.tobytes() for audio in tunes.values()}) == len(tunes)


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_melodies_stay_in_range(name: str) -> None:
    instrument = INSTRUMENTS[name]
    for take in range(5):
        notes = list(write_melody(instrument, "train", np.random.default_rng(take)))
        assert len(notes) > 5
        for note in notes:
            assert 0 <= note.start < SECONDS and note.length > 0 and 1 <= note.velocity <= 127
            if instrument.style != "kit":
                assert instrument.low <= note.key <= instrument.high


def test_tonics_of_splits_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(tonic for limits in TONICS.values() for tonic in range(*limits)) == list(range(12))
    monkeypatch.setattr(melodies, "_SCALES", ((0,),))  # only tonics are left
    for split in SPLITS:
        keys = {
            note.key % 12
            for take in range(20)
            for note in write_melody(Instrument(VIOLIN, "melody", 48, 84), split, np.random.default_rng(take))
        }
        assert keys <= set(range(*TONICS[split]))
