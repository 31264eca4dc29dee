"""Long composed videos: repeatable, with sounds that start and end inside of stays, and masks of what sounds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from qdformer.data.film import MAX_SIMULTANEOUS_SOUNDS, Film, Play, on_off
from qdformer.data.layout import ClassInfo
from qdformer.data.readers.stamps.assets import Assets
from qdformer.data.readers.stamps.catalogue import CatalogueItem
from qdformer.data.readers.stamps.fetch import Source
from qdformer.utils.constants import SAMPLE_RATE

NAMES = ("bell", "cat", "dog", "owl")
SIZE = (96, 72)


@pytest.fixture(scope="module")
def assets() -> Assets:
    """Each class is a square of its own red, a clutter square is green, the photo is black, and class k sounds at k."""
    items, pictures, sounds = [], {}, {}

    def add(name: str, role: str, **kept) -> None:
        item = CatalogueItem(name, role, "test", None, None, Source("package", f"{role}/{name}", ""), "")
        items.append(item)
        for table, value in ((pictures, kept.get("picture")), (sounds, kept.get("sound"))):
            if value is not None:
                table[item] = value

    for label, name in enumerate(NAMES, start=1):
        add(name, "picture", picture=Image.new("RGBA", (50, 50), (50 * label, 0, 0, 255)))
        add(name, "sound", sound=np.full(SAMPLE_RATE, 0.1, np.float32))
    add("", "clutter", picture=Image.new("RGBA", (50, 50), (0, 200, 0, 255)))
    add("", "background", picture=Image.new("RGB", (200, 160)))
    add("", "noise", sound=np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE).astype(np.float32))
    return Assets(items, [ClassInfo(name, False) for name in NAMES], pictures, sounds)


def test_equal_arguments_give_equal_films(assets):
    a, b, other = Film(assets, 12, 3, size=SIZE), Film(assets, 12, 3, size=SIZE), Film(assets, 12, 4, size=SIZE)
    assert np.array_equal(a.sound(), b.sound()) and not np.array_equal(a.sound(), other.sound())
    for own, same in zip(a.draw(7.3), b.draw(7.3), strict=True):
        assert np.array_equal(own, same)
    assert a.frame_count == 300 and len(a.sound()) == 12 * SAMPLE_RATE


def test_masks_are_the_visible_objects_that_sound(assets):
    film, labeled, silent = Film(assets, 60, 0, size=SIZE), 0, 0
    for time in np.arange(0.25, 60, 0.5):
        image, labels = film.draw(time)
        sounding = film.sounding(time)
        assert set(np.unique(labels)) - {0} <= sounding and len(sounding) <= MAX_SIMULTANEOUS_SOUNDS
        for label in range(1, len(NAMES) + 1):
            shown = (np.abs(image[..., 0].astype(int) - 50 * label) <= 4) & (image[..., 1] < 4)
            if label in sounding:
                assert (labels[shown] == label).all()
                labeled += shown.any()
            else:
                assert not (labels == label).any()
                silent += shown.any()
    assert labeled > 30 and silent > 30


def test_objects_come_and_go_and_stay_inside_the_time_of_their_lane(assets):
    film = Film(assets, 60, 1, size=SIZE)
    assert len(film.stays) >= 9 and {stay.edge for stay in film.stays} == {-1, 0, 1}
    for edge in (-1, 0, 1):
        own = [stay for stay in film.stays if stay.edge == edge]
        assert all(before.end < after.start for before, after in zip(own, own[1:], strict=False))
    stay = film.stays[1]
    assert film.draw(stay.start + 3)[0].any() and stay.end - stay.start > 1


def test_the_noise_has_the_level_that_was_asked_for(assets):
    quiet, noisy = (Film(assets, 30, 2, size=SIZE, snr_db=snr).sound() for snr in (None, 10.0))
    active = np.abs(quiet) > 0
    noise = noisy - quiet
    snr = 10 * np.log10(np.mean(quiet[active] ** 2) / np.mean(noise**2))
    assert 0.2 < active.mean() < 1 and snr == pytest.approx(10, abs=0.5)


def test_stretches_of_a_class_are_joined(assets):
    item = assets.items[1]
    plays = [Play(item, 1, 4.0, 5.0), Play(item, 1, 0.5, 2.0), Play(item, 1, 1.5, 3.0), Play(item, 2, 0.0, 9.0)]
    assert on_off(plays, 1) == [(0.5, 3.0), (4.0, 5.0)] and on_off(plays, 3) == []
