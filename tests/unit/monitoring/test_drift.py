"""Profiles of clips and the drift between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from qdformer.monitoring.drift import measure_drift
from qdformer.monitoring.profile import (
    Profile,
    ProfileError,
    describe_picture,
    estimate_snr_db,
    load_profile,
    profile_clips,
    save_profile,
)
from tests.helpers.dataset import write_small

NAMES = ("cat", "dog", "train")


def drawn(
    generator, count: int, loudness: float = 1, tint: float = 0, dogs: float = 0.4, noise: float = 0, prefix: str = "a"
) -> Profile:
    """A profile of clips drawn from one distribution, which the arguments change in one aspect each."""
    pictures = generator.dirichlet(np.linspace(1, 2, 12), size=count) + tint * np.eye(12)[0]
    return Profile(
        uids=tuple(f"{prefix}{index}" for index in range(count)),
        audio=loudness * generator.exponential(size=(count, 16)).astype(np.float32),
        pictures=np.sqrt(pictures).astype(np.float32),
        classes=(generator.random((count, 3)) < (0.3, dogs, 0.3)).astype(np.float32),
        snr_db=generator.normal(30 - noise, 8, (count, 1)).astype(np.float32),
        class_names=NAMES,
        weights_sha256="1" * 64,
    )


def flagged(reference: Profile, new: Profile, p_value: float = 0.01) -> set[str]:
    return {shift.aspect for shift in measure_drift(reference, new, p_value).shifts if shift.flagged}


def test_clips_of_the_same_kind_are_rarely_flagged():
    """The share of false alarms over all four aspects stays at the level that was asked for."""
    generator = np.random.default_rng(0)
    alarms = sum(bool(flagged(drawn(generator, 60), drawn(generator, 20), 0.1)) for _ in range(150))
    assert binomtest(alarms, 150, 0.1, alternative="greater").pvalue > 0.001
    assert alarms > 0, "a test that is never wrong at 0.1 is none"


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        ({"loudness": 2}, "sound"),
        ({"noise": 15}, "estimated SNR"),
        ({"tint": 0.3}, "pictures"),
        ({"dogs": 0.95}, "class mix"),
    ],
)
def test_a_change_is_flagged_in_its_aspect_alone(change, aspect):
    generator = np.random.default_rng(1)
    for _ in range(5):
        assert flagged(drawn(generator, 100), drawn(generator, 40, **change)) == {aspect}


def test_the_report_names_what_differs():
    generator = np.random.default_rng(2)
    drift = measure_drift(drawn(generator, 100), drawn(generator, 40, dogs=1), 0.01)
    assert drift.flagged and drift.complete
    assert str(drift).startswith("40 new clips against 100 training clips of the champion: sound: MMD² ")
    assert "class mix: MMD² +0." in str(drift) and "p 0.001, differs; dog in 100% of the clips instead of " in str(
        drift
    )


@pytest.mark.parametrize("p_value", [0.05, 0.001])
def test_every_level_can_be_reached(p_value):
    generator = np.random.default_rng(3)
    assert flagged(drawn(generator, 60), drawn(generator, 30, loudness=5), p_value) == {"sound"}


def test_what_cannot_be_compared_is_told():
    generator = np.random.default_rng(4)
    reference = drawn(generator, 50)
    few = measure_drift(reference, drawn(generator, 7), 0.01)
    assert few.shifts == () and "7 new clips, at least 8 are needed" in str(few)
    assert few.complete and not few.flagged
    other = measure_drift(reference, replace(drawn(generator, 20), weights_sha256="2" * 64), 0.01)
    assert not other.complete and "not measured: sound, because VGGish has changed" in str(other)
    assert {shift.aspect for shift in other.shifts} == {"pictures", "estimated SNR", "class mix"}
    renamed = measure_drift(reference, replace(drawn(generator, 20), class_names=("a", "b", "c")), 0.01)
    assert not renamed.complete
    assert {shift.aspect for shift in renamed.shifts} == {"sound", "pictures", "estimated SNR"}
    without = replace(drawn(generator, 20), snr_db=np.full((20, 1), np.nan, np.float32))
    spectrograms = measure_drift(reference, without, 0.01)
    assert not spectrograms.complete and "the estimated SNR, because not all clips have samples" in str(spectrograms)


def test_a_profile_holds_the_training_clips_and_survives_its_file(tmp_path):
    dataset = write_small(tmp_path / "dataset")
    features = {uid: np.full((3, 128), index, np.float32) for index, uid in enumerate(("a", "b", "c", "quiet"))}
    profile = profile_clips(dataset, features, "1" * 64)
    assert set(profile.uids) == {"a", "b"}, "c is a test clip, quiet one of val"
    assert sorted(profile.audio.mean(axis=1)) == [0, 1]
    assert profile.classes.tolist() == [[1, 1], [1, 1]] and profile.class_names == ("dog", "cat")
    save_profile(tmp_path / "profile.npz", profile)
    again = load_profile(tmp_path / "profile.npz")
    assert (again.uids, again.class_names, again.weights_sha256) == (profile.uids, ("dog", "cat"), "1" * 64)
    for name in ("audio", "pictures", "classes", "snr_db"):
        assert np.array_equal(getattr(again, name), getattr(profile, name))
    assert profile_clips(dataset, features, "1" * 64, only=["b", "c"]).uids == ("b",)


def test_problems_of_profiles_are_named(tmp_path):
    dataset = write_small(tmp_path / "dataset")
    with pytest.raises(ProfileError, match="dataset: no training clip with features"):
        profile_clips(dataset, {"c": np.zeros((3, 128), np.float32)}, "")
    (tmp_path / "profile.npz").write_bytes(b"damaged")
    with pytest.raises(ProfileError, match="profile.npz: not a profile of training data"):
        load_profile(tmp_path / "profile.npz")


@pytest.mark.parametrize("snr_db", [0, 10, 30])
def test_the_snr_of_bursts_in_noise_is_estimated(snr_db):
    generator = np.random.default_rng(0)
    noise = generator.normal(size=5 * 16000)
    bursts = np.where(np.arange(len(noise)) % 16000 < 4000, 10 ** (snr_db / 20), 0) * generator.normal(size=len(noise))
    expected = 10 * np.log10(10 ** (snr_db / 10) + 1)  # of bursts with noise over noise alone
    assert estimate_snr_db(0.01 * (bursts + noise)) == pytest.approx(expected, abs=1.5)
    assert estimate_snr_db(noise) < 2 and estimate_snr_db(np.zeros(16000)) == 0 and estimate_snr_db(noise[:10]) == 0
    assert estimate_snr_db(np.where(np.arange(16000) < 8000, 0, 1)) == 80


def test_a_picture_is_described_by_its_colors_and_edges(tmp_path):
    def description(name: str, pixels) -> np.ndarray:
        path = tmp_path / f"{name}.png"
        Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
        return describe_picture(path)

    red, blue = np.zeros((80, 96, 3)), np.zeros((80, 96, 3))
    red[..., 0], blue[..., 2] = 255, 255
    flat, other = description("red", red), description("blue", blue)
    assert flat @ flat == pytest.approx(2), "two histograms"
    assert flat[:64] @ other[:64] == 0 and flat[64:] @ other[64:] == pytest.approx(1)
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (128, 128, 1)).repeat(3, axis=2)
    smooth = np.broadcast_to(np.linspace(0, 255, 128)[:, None, None], (128, 128, 3))
    assert description("noise", noise)[64:] @ description("smooth", smooth)[64:] < 0.5
    assert description("again", red) == pytest.approx(description("larger", red.repeat(2, 0).repeat(2, 1)))
