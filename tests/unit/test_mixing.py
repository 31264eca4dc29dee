"""Noise mixing: the SNR that is asked for is the SNR that a 16-bit file holds."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from qdformer.audio.mixing import MANIFEST_COLUMNS, choose_noise, mix_at_snr, read_condition, write_condition
from qdformer.audio.read import AudioError

RANDOM = np.random.default_rng(0)
CLEAN = (0.1 * RANDOM.standard_normal(80_000)).astype(np.float32)
NOISE = (0.02 * RANDOM.standard_normal(80_000)).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples.astype(np.float64))))


@pytest.mark.parametrize("snr", [20.0, 10.0, 0.0, -5.0])
@pytest.mark.parametrize("loudness", [0.2, 1.0, 8.0])
def test_achieved_snr(snr, loudness):
    clean = np.clip(CLEAN * loudness, -1, 1)
    mix = mix_at_snr(clean, NOISE, snr)
    assert mix.audio.dtype == np.float32 and np.abs(mix.audio).max() < 1
    added = mix.audio - mix.scale * clean.astype(np.float64)
    measured = 10 * math.log10(mix.scale**2 * power(clean) / power(added))
    assert measured == pytest.approx(mix.achieved_snr, abs=1e-6)
    assert measured == pytest.approx(snr, abs=0.01)


def test_nothing_is_scaled_without_need():
    assert mix_at_snr(CLEAN, NOISE, 20.0).scale == 1.0
    assert mix_at_snr(8 * CLEAN, NOISE, -5.0).scale < 1.0


def test_samples_are_sixteen_bit_steps():
    steps = mix_at_snr(CLEAN, NOISE, 0.0).audio * 32768.0
    assert np.array_equal(steps, np.round(steps)) and steps.max() <= 32767


def test_a_silent_clip_gets_noise_at_a_fixed_loudness():
    mix = mix_at_snr(np.zeros_like(NOISE), NOISE, 20.0)
    assert mix.achieved_snr == -math.inf
    assert math.sqrt(power(mix.audio)) == pytest.approx(0.005, rel=0.01)


def test_silent_noise_is_refused():
    with pytest.raises(AudioError, match="silent"):
        mix_at_snr(CLEAN, np.zeros_like(CLEAN), 0.0)


def test_other_lengths_are_refused():
    with pytest.raises(AudioError, match="one length"):
        mix_at_snr(CLEAN, NOISE[:100], 0.0)


def test_noise_depends_on_seed_and_clip_alone():
    noises = [Path(f"{i}.flac") for i in range(20)]

    def place(seed: int, uid: str):
        piece = choose_noise(noises, seed, uid, 8000, lambda path: NOISE)
        return piece.path, piece.offset

    assert place(0, "a") == place(0, "a")
    assert len({place(seed, uid) for seed in range(3) for uid in "abcd"}) == 12


def test_short_noise_is_repeated_and_long_noise_is_cut_whole():
    short = choose_noise([Path("a")], 0, "clip", 1000, lambda path: NOISE[:300])
    assert np.array_equal(short.audio[:300], short.audio[300:600])
    long = choose_noise([Path("a")], 0, "clip", 1000, lambda path: NOISE)
    assert np.array_equal(long.audio, NOISE[long.offset : long.offset + 1000])


def test_a_silent_piece_is_drawn_anew():
    recording = np.concatenate([np.zeros(50_000, np.float32), NOISE[:10_000]])
    for uid in "abcdefgh":
        assert np.any(choose_noise([Path("a")], 0, uid, 1000, lambda path: recording).audio)
    with pytest.raises(AudioError, match="quiet.flac: the noise is silent"):
        choose_noise([Path("quiet.flac")], 0, "clip", 1000, lambda path: np.zeros(5000, np.float32))


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
        sounds.append({"path": path, "role": "noise", "split": split, "label": ""})
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
    assert list(manifest["uid"]) == ["clip0", "clip1", "clip2"] and manifest["noise"].isna().all()
    assert [path.resolve() for path in manifest["audio"]] == [path.resolve() for path in tables[0]["audio"]]
    assert [path.name for path in folder.iterdir()] == ["manifest.csv"]


def test_the_same_call_gives_the_same_bytes(tables, tmp_path):
    def contents(name: str) -> dict[str, bytes]:
        write_condition(tmp_path / name, *tables, 0.0, ["train", "test"], seed=3)
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    assert contents("one") == contents("two")


def test_a_bad_clip_leaves_nothing_half_written(tables, tmp_path):
    (tmp_path / "clip2.wav").write_bytes(b"RIFF")
    with pytest.raises(AudioError, match="clip2.wav"):
        write_condition(tmp_path / "mixed" / "snr0", *tables, 0.0, ["test"], seed=0)
    assert not (tmp_path / "mixed" / "snr0").exists()


def test_a_split_without_noise_is_named(tables, tmp_path):
    clips, sounds = tables
    with pytest.raises(AudioError, match="no noise of the split test, which clip clip1 needs"):
        write_condition(tmp_path / "snr0", clips, sounds[sounds["split"] == "train"], 0.0, ["test"], seed=0)


def test_mixing_needs_no_torch():
    code = "import sys, qdformer.audio.mixing, qdformer.data.manifest; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
