"""Noise mixing: the written files have the requested SNR."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from qdformer.audio.io.read import AudioError
from qdformer.audio.io.write import write_audio
from qdformer.audio.noise import mixing
from qdformer.audio.noise.mixing import (
    MANIFEST_COLUMNS,
    measure_snr,
    mix_at_snr,
    read_condition,
    select_noise,
    write_condition,
)

RANDOM = np.random.default_rng(0)
CLEAN = (0.1 * RANDOM.standard_normal(80_000)).astype(np.float32)
NOISE = (0.02 * RANDOM.standard_normal(80_000)).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples.astype(np.float64))))


@pytest.mark.parametrize("snr", [20.0, 10.0, 0.0, -5.0])
@pytest.mark.parametrize("loudness", [0.2, 1.0, 8.0])
def test_the_requested_snr_is_achieved(snr, loudness):
    clean = np.clip(CLEAN * loudness, -1, 1)
    mix = mix_at_snr(clean, NOISE, snr)
    assert mix.audio.dtype == np.float32 and np.abs(mix.audio).max() < 1
    added = mix.audio - mix.scale * clean.astype(np.float64)
    measured = 10 * math.log10(mix.scale**2 * power(clean) / power(added))
    assert measured == pytest.approx(mix.snr_db, abs=1e-6)
    assert measured == pytest.approx(snr, abs=0.01)


def test_only_a_clipping_sum_is_scaled():
    assert mix_at_snr(CLEAN, NOISE, 20.0).scale == 1.0
    assert mix_at_snr(8 * CLEAN, NOISE, -5.0).scale < 1.0


def test_samples_are_sixteen_bit_steps():
    steps = mix_at_snr(CLEAN, NOISE, 0.0).audio * 32768.0
    assert np.array_equal(steps, np.round(steps)) and steps.max() <= 32767


def test_a_silent_clip_gets_noise_at_a_fixed_level():
    mix = mix_at_snr(np.zeros_like(NOISE), NOISE, 20.0)
    assert mix.snr_db == -math.inf
    assert math.sqrt(power(mix.audio)) == pytest.approx(0.005, rel=0.01)


def test_silent_noise_is_refused():
    with pytest.raises(AudioError, match="silent"):
        mix_at_snr(CLEAN, np.zeros_like(CLEAN), 0.0)


@pytest.mark.parametrize("snr", [40.0, 20.0, 0.0, -5.0])
@pytest.mark.parametrize("level", [1.01e-4, 1e-3, 1e-2])
def test_a_very_quiet_clip_gets_its_snr(snr, level):
    """16-bit rounding would change these; every SNR up to 40 dB is kept for every clip that is not silent."""
    steps = np.round(CLEAN / CLEAN.std() * level * 32768) / 32768  # as a 16-bit file holds it
    mix = mix_at_snr(steps * (level / math.sqrt(power(steps))), NOISE, snr)
    assert mix.snr_db == pytest.approx(snr, abs=0.01)
    assert mix.scale == 1.0


def test_24_bits_are_used_only_if_16_do_not_keep_the_snr():
    quiet = CLEAN * np.float32(1e-3 / CLEAN.std())
    assert mix_at_snr(CLEAN, NOISE, 40.0).bits == 16
    assert mix_at_snr(quiet, NOISE, 0.0).bits == 16
    mix = mix_at_snr(quiet, NOISE, 20.0)
    assert mix.bits == 24
    rounded = np.round(mix.audio * 32768.0) / 32768
    assert abs(measure_snr(quiet, rounded, 1.0) - 20.0) > 0.01


def test_an_snr_that_24_bits_do_not_keep_is_refused():
    quiet = CLEAN * np.float32(2e-4 / CLEAN.std())
    with pytest.raises(
        AudioError, match=r"an SNR of 80 dB cannot be kept: a clip of -74 dB full scale gets .* 24 bits"
    ):
        mix_at_snr(quiet, NOISE, 80.0)


def test_different_lengths_are_refused():
    with pytest.raises(AudioError, match="one length"):
        mix_at_snr(CLEAN, NOISE[:100], 0.0)


def test_the_noise_depends_on_seed_and_clip_only():
    noises = [Path(f"{i}.flac") for i in range(20)]

    def place(seed: int, uid: str):
        piece = select_noise(noises, seed, uid, 8000, lambda path: NOISE)
        return piece.path, piece.offset

    assert place(0, "a") == place(0, "a")
    assert len({place(seed, uid) for seed in range(3) for uid in "abcd"}) == 12


def test_removing_a_noise_changes_only_the_clips_that_use_it():
    noises = [Path(f"{i}.flac") for i in range(5)]

    def chosen(pool: list[Path]) -> dict[str, tuple[Path, int]]:
        pieces = {uid: select_noise(pool, 0, uid, 8000, lambda path: NOISE) for uid in map(str, range(100))}
        return {uid: (piece.path, piece.offset) for uid, piece in pieces.items()}

    before, after = chosen(noises), chosen(noises[::-1][:-1])
    assert {path for path, _ in before.values()} == set(noises)
    for uid, place in before.items():
        assert (after[uid] == place) == (place[0] != noises[0])


def test_short_noise_is_repeated_and_long_noise_is_cut_whole():
    short = select_noise([Path("a")], 0, "clip", 1000, lambda path: NOISE[:300])
    assert np.array_equal(short.audio[:300], short.audio[300:600])
    long = select_noise([Path("a")], 0, "clip", 1000, lambda path: NOISE)
    assert np.array_equal(long.audio, NOISE[long.offset : long.offset + 1000])


def test_another_offset_is_drawn_if_the_noise_is_silent():
    recording = np.concatenate([np.zeros(50_000, np.float32), NOISE[:10_000]])
    for uid in "abcdefgh":
        assert np.any(select_noise([Path("a")], 0, uid, 1000, lambda path: recording).audio)
    with pytest.raises(AudioError, match="quiet.flac: the noise is silent"):
        select_noise([Path("quiet.flac")], 0, "clip", 1000, lambda path: np.zeros(5000, np.float32))


@pytest.fixture
def tables(tmp_path) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    clips, sounds = [], []
    for index, split in enumerate(("train", "test", "test")):
        path = tmp_path / f"clip{index}.wav"
        soundfile.write(path, CLEAN[index * 16000 : (index + 2) * 16000], 16000)
        clips.append({"uid": f"clip{index}", "split": split, "frames": 2, "audio": path})
    for split in ("train", "test"):
        path = tmp_path / f"noise_{split}.flac"
        soundfile.write(path, NOISE, 16000)
        sounds.append({"path": path, "split": split})
    return pandas.DataFrame(clips), pandas.DataFrame(sounds)


def test_a_noisy_condition_covers_its_splits_with_their_own_noise(tables, tmp_path):
    folder = tmp_path / "mixed" / "snr10"
    write_condition(folder, *tables, 10.0, ["test"], seed=0)
    manifest = read_condition(folder)
    assert tuple(manifest.columns) == MANIFEST_COLUMNS
    assert list(manifest["uid"]) == ["clip1", "clip2"] and set(manifest["noise"]) == {"noise_test.flac"}
    assert sorted(path.name for path in folder.iterdir()) == ["clip1.flac", "clip2.flac", "manifest.csv"]
    for row in manifest.itertuples():
        clean, _ = soundfile.read(tmp_path / f"{row.uid}.wav")
        mixed, rate = soundfile.read(row.audio)
        noise = NOISE[row.offset : row.offset + len(clean)]
        np.testing.assert_allclose(mixed, row.scale * (clean + row.gain * noise), atol=2 / 32768)
        assert rate == 16000
        assert row.snr_achieved == pytest.approx(row.snr_asked, abs=0.01)


def test_the_condition_without_noise_points_at_all_the_clips(tables, tmp_path):
    folder = tmp_path / "mixed" / "clean"
    write_condition(folder, *tables, None, ["test"], seed=0)
    manifest = read_condition(folder)
    assert list(manifest["uid"]) == ["clip0", "clip1", "clip2"] and manifest["noise"].eq("").all()
    assert [path.resolve() for path in manifest["audio"]] == [path.resolve() for path in tables[0]["audio"]]
    assert [path.name for path in folder.iterdir()] == ["manifest.csv"]


def test_the_same_call_gives_the_same_bytes(tables, tmp_path):
    def contents(name: str) -> dict[str, bytes]:
        write_condition(tmp_path / name, *tables, 0.0, ["train", "test"], seed=3)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    assert contents("one") == contents("two")


def test_a_mixture_does_not_depend_on_other_clips(tables, tmp_path):
    clips, noises = tables
    several = pandas.concat([clips.assign(uid=[f"{uid}-{copy}" for uid in clips["uid"]]) for copy in range(4)])

    def mixes(name: str, chosen: pandas.DataFrame) -> dict[str, tuple]:
        manifest = write_condition(tmp_path / name, chosen, noises, -5.0, ["train", "test"], seed=1)
        rows = {row.uid: tuple(row)[1:] for row in manifest.itertuples()}
        return {uid: (row, (tmp_path / name / f"{uid}.flac").read_bytes()) for uid, row in rows.items()}

    whole = mixes("whole", several)
    assert mixes("turned", several[::-1]) == whole
    assert mixes("subset", several[5:7]) == {uid: whole[uid] for uid in several["uid"][5:7]}
    assert len({row[5] for row, _ in whole.values()}) > 6  # most have an offset of their own


def test_the_cache_of_recordings_changes_no_byte(tables, tmp_path, monkeypatch):
    def contents(name: str) -> dict[str, bytes]:
        write_condition(tmp_path / name, *tables, 0.0, ["train", "test"], seed=3)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    kept = contents("kept")
    monkeypatch.setattr(mixing, "_CACHED_RECORDINGS", 0)
    assert contents("forgotten") == kept


def test_the_scaling_of_a_loud_clip_is_recorded(tables, tmp_path):
    clips, noises = tables
    soundfile.write(clips["audio"].iloc[1], np.clip(8 * CLEAN[:32000], -1, 1), 16000)
    manifest = write_condition(tmp_path / "snr-5", clips, noises, -5.0, ["test"], seed=0).set_index("uid")
    assert manifest["scale"]["clip1"] < 1 and manifest["scale"]["clip2"] == 1
    assert np.abs(soundfile.read(tmp_path / "snr-5" / "clip1.flac")[0]).max() < 1
    assert manifest["snr_achieved"].tolist() == pytest.approx([-5.0, -5.0], abs=0.01)


def test_a_quiet_clip_is_written_with_its_snr(tables, tmp_path):
    clips, noises = tables
    quiet = np.round(CLEAN[:32000] / CLEAN.std() * 20) / 32768
    soundfile.write(clips["audio"].iloc[1], quiet, 16000, subtype="PCM_16")
    manifest = write_condition(tmp_path / "snr40", clips, noises, 40.0, ["test"], seed=0)
    assert manifest["snr_achieved"].tolist() == pytest.approx([40.0, 40.0], abs=0.01)
    mixed, _ = soundfile.read(tmp_path / "snr40" / "clip1.flac")
    assert 10 * math.log10(power(quiet) / power(mixed - quiet)) == pytest.approx(40.0, abs=0.01)


def test_a_silent_clip_is_written_and_its_snr_is_minus_infinity(tables, tmp_path):
    clips, noises = tables
    soundfile.write(clips["audio"].iloc[1], np.zeros(32000), 16000)
    write_condition(tmp_path / "snr0", clips, noises, 0.0, ["test"], seed=0)
    manifest = read_condition(tmp_path / "snr0").set_index("uid")
    assert manifest["snr_achieved"]["clip1"] == -math.inf
    assert math.sqrt(power(soundfile.read(tmp_path / "snr0" / "clip1.flac")[0])) == pytest.approx(0.05, rel=0.01)


def test_bad_clips_are_counted_and_named_and_no_folder_is_written(tables, tmp_path, capsys, monkeypatch):
    clips, noises = tables
    clips = pandas.concat([clips, clips[1:2].assign(uid="clip3")])
    (tmp_path / "clip2.wav").write_bytes(b"RIFF")
    tried = []
    monkeypatch.setattr(mixing, "write_audio", lambda path, *rest: (tried.append(path.name), write_audio(path, *rest)))
    with pytest.raises(
        AudioError, match=r"1 of 3 clips cannot be mixed at 0 dB:\n  clip clip2: .*clip2.wav: cannot be"
    ):
        write_condition(tmp_path / "mixed" / "snr0", clips, noises, 0.0, ["test"], seed=0)
    assert tried == ["clip1.flac", "clip3.flac"]
    assert "clip clip2: " in capsys.readouterr().err
    assert not list((tmp_path / "mixed").iterdir())


def test_a_written_file_with_another_snr_is_an_error(tables, tmp_path, monkeypatch):
    def write_other(path, samples, bits):
        write_audio(path, np.round(samples * 0.99 * 32768) / 32768, bits)

    monkeypatch.setattr(mixing, "write_audio", write_other)
    with pytest.raises(AudioError, match=r"clip clip1: clip1.flac: written with an SNR of .* dB, expected 20 dB"):
        write_condition(tmp_path / "snr20", *tables, 20.0, ["test"], seed=0)


def test_a_split_without_noise_is_reported(tables, tmp_path):
    clips, noises = tables
    with pytest.raises(AudioError, match="no noise of the split test, which clip clip1 needs"):
        write_condition(tmp_path / "snr0", clips, noises[noises["split"] == "train"], 0.0, ["test"], seed=0)


def test_mixing_needs_no_torch():
    code = "import sys, pipelines.stages.mix, pipelines.stages.noise; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
