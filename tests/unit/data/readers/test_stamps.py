"""The `stamps` data set: unpacking, fetching with a fake apt, properties of the catalogue, composing."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import tarfile
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
from PIL import Image

from qdformer.audio.io.read import read_audio
from qdformer.config.download import Clips, Download
from qdformer.data.checks import check_dataset, check_sounds
from qdformer.data.layout import DataError, track_paths
from qdformer.data.manifest import read_manifest
from qdformer.data.readers.stamps import compose as composing
from qdformer.data.readers.stamps import plan
from qdformer.data.readers.stamps.assets import Assets, read_cutout, read_photo
from qdformer.data.readers.stamps.catalogue import (
    CATALOGUE,
    CatalogueItem,
    catalogue_classes,
    read_catalogue,
    read_outlines,
    select_items,
)
from qdformer.data.readers.stamps.fetch import (
    FetchError,
    Source,
    fetch,
    read_package,
    read_qt_resources,
    read_sound_catalogue,
)
from qdformer.data.readers.stamps.plan import Actor, Scene, SoundEvent, plan_scene
from qdformer.data.readers.stamps.render import render_scene
from qdformer.data.readers.stamps.sounds import (
    LOUDNESS,
    PEAK,
    normalize_noise,
    normalize_recording,
    read_sound,
    render_sound_event,
)
from qdformer.utils.constants import SAMPLE_RATE, SPLITS

DOWNLOAD = Download(dataset="stamps", seed=3, clips=Clips(train=5, val=1, test=2), frames=3, image_size=64)

# ---------------------------------------------------------------- fake packages


def make_deb(path: Path, files: dict[str, bytes], compression: str = "xz") -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w" if compression == "zst" else f"w:{compression}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = archive.getvalue()
    if compression == "zst":
        data = pyarrow.compress(data, codec="zstd", asbytes=True)
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar.{compression}", data)]
    deb = b"!<arch>\n"
    for name, content in members:
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        deb += content + b"\n" * (len(content) % 2)
    path.write_bytes(deb)
    return deb


def make_qt_resources(version: int = 3) -> bytes:
    """A tree of /top.txt and /sounds/{plain,zlib,zstd}.ogg."""
    names = b""

    def name(text: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    data = b""

    def stored(content: bytes) -> int:
        nonlocal data
        at = len(data)
        data += struct.pack(">I", len(content)) + content
        return at

    tail = b"" if version == 1 else bytes(8)
    contents = {
        "plain.ogg": (0, b"plain sound"),
        "zlib.ogg": (1, struct.pack(">I", 50) + zlib.compress(b"z" * 50)),
        "zstd.ogg": (4, pyarrow.compress(b"s" * 60, codec="zstd", asbytes=True)),
    }
    tree = struct.pack(">IHII", 0, 2, 2, 1) + tail
    tree += struct.pack(">IHII", name("sounds"), 2, 3, 3) + tail
    tree += struct.pack(">IHHHI", name("top.txt"), 0, 0, 0, stored(b"top")) + tail
    for text, (flags, content) in contents.items():
        tree += struct.pack(">IHHHI", name(text), flags, 0, 0, stored(content)) + tail
    header = 20 if version < 3 else 24
    offsets = struct.pack(">III", header + len(data) + len(names), header, header + len(data))
    return b"qres" + struct.pack(">I", version) + offsets + bytes(header - 20) + data + names + tree


def make_sound_catalogue(sounds: list[bytes]) -> bytes:
    table, body = b"", b""
    for number, sound in enumerate(sounds):
        table += struct.pack("<II", 8 * len(sounds) + len(body), len(sound))
        title = f"Sound {number}".encode() + b"\0"
        body += bytes([len(title)]) + title + sound
    return table + body


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("compression", ["xz", "gz", "zst"])
def test_read_package(tmp_path: Path, compression: str) -> None:
    files = {"./usr/share/a.png": b"picture", "../../evil": b"out of the folder", "./usr/unused": b"?"}
    make_deb(tmp_path / "a.deb", files, compression)
    before = sorted(tmp_path.rglob("*"))
    assert dict(read_package(tmp_path / "a.deb", {"usr/share/a.png", "../../evil"})) == {
        "usr/share/a.png": b"picture",
        "../../evil": b"out of the folder",
    }
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written, whatever the names of the members


@pytest.mark.parametrize("damage", [lambda deb: b"junk" + deb, lambda deb: deb[:-60], lambda deb: deb[:100]])
def test_read_package_damaged(tmp_path: Path, damage) -> None:
    deb = make_deb(tmp_path / "a.deb", {"a": bytes(range(256)) * 200})
    (tmp_path / "a.deb").write_bytes(damage(deb))
    with pytest.raises(FetchError, match="a.deb"):
        dict(read_package(tmp_path / "a.deb", {"a"}))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_read_qt_resources(version: int) -> None:
    assert read_qt_resources(make_qt_resources(version)) == {
        "top.txt": b"top",
        "sounds/plain.ogg": b"plain sound",
        "sounds/zlib.ogg": b"z" * 50,
        "sounds/zstd.ogg": b"s" * 60,
    }


@pytest.mark.parametrize(
    "damage", [lambda r: b"no" + r, lambda r: r[:-30], lambda r: r[:10], lambda r: r[:4] + b"\0\0\0\x09" + r[8:]]
)
def test_read_qt_resources_damaged(damage) -> None:
    with pytest.raises(FetchError, match="Qt resource file"):
        read_qt_resources(damage(make_qt_resources()))


def test_read_sound_catalogue() -> None:
    content = make_sound_catalogue([b"RIFFone", b"RIFFtwo!"])
    assert read_sound_catalogue(content) == {"00": b"RIFFone", "01": b"RIFFtwo!"}
    with pytest.raises(FetchError, match="past the end"):
        read_sound_catalogue(content[:-1])
    with pytest.raises(FetchError, match="damaged"):
        read_sound_catalogue(content[:2])


# ---------------------------------------------------------------- fetching

APT = """#!{python}
import os, shutil, sys
from pathlib import Path
server = Path({server!r})
with open(server / "calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
words = [word for word in sys.argv[1:] if not word.startswith("-") and "=" not in word]
if (server / "offline").exists():
    sys.exit("E: Temporary failure resolving 'deb.example.org'")
if words[0] == "download":
    for package in words[1:]:
        deb = server / f"{{package}}_1_all.deb"
        if not deb.exists():
            sys.exit(f"E: Unable to locate package {{package}}")
        if "--print-uris" in sys.argv:
            print(f"'http://example.org/{{deb.name}}' {{deb.name}} {{deb.stat().st_size}} SHA256:0")
        else:
            shutil.copy(deb, deb.name)
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages served by a fake apt-get, first on the PATH, which logs its calls there."""
    folder = tmp_path / "server"
    tools = tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    apt = tools / "apt-get"
    apt.write_text(APT.format(python=sys.executable, server=str(folder)))
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return folder


def downloads(server: Path) -> int:
    calls = (server / "calls").read_text().splitlines() if (server / "calls").exists() else []
    return sum("download" in call and "--print-uris" not in call for call in calls)


def stock(server: Path) -> list[Source]:
    """Two packages on the server: a plain file, a file in a Qt resource file, one in a sound catalogue."""
    make_deb(server / "things_1_all.deb", {"./usr/a.png": b"picture", "./usr/unused": b"?" * 5000})
    containers = {"./usr/s.rcc": make_qt_resources(), "./usr/s.cat": make_sound_catalogue([b"RIFF0", b"RIFF1"])}
    make_deb(server / "sounds_1_all.deb", containers)
    return [
        Source("things", "usr/a.png", digest(b"picture")),
        Source("sounds", "usr/s.rcc!sounds/zlib.ogg", digest(b"z" * 50)),
        Source("sounds", "usr/s.cat!01", digest(b"RIFF1")),
    ]


def test_fetch_keeps_only_the_named_files(server: Path, tmp_path: Path) -> None:
    sources = stock(server)
    paths = fetch(sources, tmp_path / "cache", progress=False)
    assert [paths[source].read_bytes() for source in sources] == [b"picture", b"z" * 50, b"RIFF1"]
    assert len(list((tmp_path / "cache/files").iterdir())) == 3
    (server / "offline").touch()  # a second call needs no network
    assert fetch(sources, tmp_path / "cache", progress=False) == paths
    assert downloads(server) == 1


def test_fetch_repairs_a_damaged_file_from_the_cached_package(server: Path, tmp_path: Path) -> None:
    sources = stock(server)
    paths = fetch(sources, tmp_path / "cache", progress=False)
    paths[sources[0]].write_bytes(b"pic")
    paths[sources[1]].unlink()
    (server / "offline").touch()
    paths = fetch(sources, tmp_path / "cache", progress=False)
    assert paths[sources[0]].read_bytes() == b"picture"
    assert paths[sources[1]].read_bytes() == b"z" * 50


def test_fetch_downloads_a_damaged_package_again(server: Path, tmp_path: Path) -> None:
    sources = stock(server)
    paths = fetch(sources, tmp_path / "cache", progress=False)
    for path in paths.values():
        path.write_bytes(b"")
    for deb in (tmp_path / "cache/packages").iterdir():
        deb.write_bytes(deb.read_bytes()[:-40])
    paths = fetch(sources, tmp_path / "cache", progress=False)
    assert paths[sources[2]].read_bytes() == b"RIFF1"
    assert downloads(server) == 2


def test_fetch_continues_after_an_interruption(server: Path, tmp_path: Path) -> None:
    sources = stock(server)
    (tmp_path / "cache/downloading").mkdir(parents=True)
    (tmp_path / "cache/downloading/things_1_all.deb").write_bytes(b"half")
    fetch(sources[:1], tmp_path / "cache", progress=False)
    fetch(sources, tmp_path / "cache", progress=False)
    assert "things" not in (server / "calls").read_text().splitlines()[-1]  # only what is missing


def test_fetch_names_files_that_differ(server: Path, tmp_path: Path) -> None:
    sources = stock(server)
    sources.append(Source("things", "usr/unused", digest(b"another version")))
    sources.append(Source("things", "usr/gone.png", digest(b"gone")))
    with pytest.raises(FetchError, match="(?s)usr/gone.png is missing.*usr/unused differs.*DATA=toy"):
        fetch(sources, tmp_path / "cache", progress=False)


def test_fetch_without_network(server: Path, tmp_path: Path) -> None:
    sources = stock(server)
    (server / "offline").touch()
    with pytest.raises(FetchError, match="(?s)sounds, things.*Temporary failure resolving.*make repro DATA=toy"):
        fetch(sources, tmp_path / "cache", progress=False)


def test_fetch_unknown_package(server: Path, tmp_path: Path) -> None:
    stock(server)
    with pytest.raises(FetchError, match="(?s)nothing-like-it.*Unable to locate package"):
        fetch([Source("nothing-like-it", "a", digest(b""))], tmp_path / "cache", progress=False)


def test_fetch_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="(?s)no apt-get.*make repro DATA=toy"):
        fetch([Source("things", "a", digest(b""))], tmp_path / "cache", progress=False)


# ---------------------------------------------------------------- the catalogue


@pytest.fixture(scope="module")
def catalogue() -> list[CatalogueItem]:
    return read_catalogue()


def test_every_split_has_a_picture_and_a_sound_of_every_class(catalogue: list[CatalogueItem]) -> None:
    classes = catalogue_classes(catalogue)
    assert len(classes) >= 20
    assert all(info.unseen for info in classes)
    for info in classes:
        for split in SPLITS:
            assert select_items(catalogue, "picture", split, info.name), (info.name, split)
            assert select_items(catalogue, "sound", split, info.name), (info.name, split)
    for role in ("clutter", "background", "noise"):
        for split in SPLITS:
            assert select_items(catalogue, role, split), (role, split)


def test_splits_share_only_the_files_for_all_splits(catalogue: list[CatalogueItem]) -> None:
    users = defaultdict(list)
    for item in catalogue:
        if not item.instrument:  # a soundfont serves all splits, each with melodies of its own
            users[item.source.sha256].append(item)
    for items in users.values():
        if len({item.split for item in items}) > 1:  # parts of one recording that do not overlap
            assert all(item.role in ("sound", "noise") and item.end is not None for item in items), items[0]
            parts = sorted((item.start, item.end) for item in items)
            assert all(end <= start for (_, end), (start, _) in zip(parts, parts[1:], strict=False)), items[0]
    names = [(item.name, item.role) for item in catalogue if item.split == "all"]
    for name, role in names:
        assert {item.split for item in catalogue if (item.name, item.role) == (name, role)} == {"all"}, name
    assert all(item.role in ("picture", "sound") for item in catalogue if item.split == "all")


def test_catalogue_rows_are_complete(catalogue: list[CatalogueItem]) -> None:
    for item in catalogue:
        assert len(item.source.sha256) == 64 and int(item.source.sha256, 16), item
        assert item.license, item
        assert item.source.path.startswith("usr/share/") and ".." not in item.source.path.split("/"), item
        assert (item.role in ("picture", "sound")) == bool(item.name), item
    melodies = [(item.instrument, item.split, item.take) for item in catalogue if item.instrument]
    assert len(melodies) > 100 and len(set(melodies)) == len(melodies)


def test_unknown_instrument_is_named(tmp_path: Path) -> None:
    header, row = CATALOGUE.read_text().splitlines()[0], "x,sound,train,,,kazoo,3,a,b,c,d"
    (tmp_path / "catalogue.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(DataError, match="line 2.*kazoo.*violin"):
        read_catalogue(tmp_path / "catalogue.csv")


def test_outlines_belong_to_pictures_of_the_catalogue(catalogue: list[CatalogueItem]) -> None:
    outlines = read_outlines()
    assert set(outlines) <= {item.source.sha256 for item in catalogue if item.role == "picture"}
    for points in outlines.values():
        assert len(points) > 10 and all(0 <= value <= 1 for point in points for value in point)


# ---------------------------------------------------------------- single sounds


def tone(seconds: float, frequency: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype("f4")


def rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio))))


def test_read_sound_takes_a_part_as_16_khz_mono(tmp_path: Path) -> None:
    stereo = np.stack([np.concatenate([np.zeros(44100), 0.4 * np.ones(44100)])] * 2, axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44100)
    part = read_sound(tmp_path / "a.wav", 1.0, 1.5)
    assert part.shape == (8000,) and part.dtype == np.float32
    assert part[1000:-1000] == pytest.approx(0.4, abs=0.01)


def test_normalize_recording_equalizes_loudness_and_shortens_gaps() -> None:
    silence = np.zeros(SAMPLE_RATE, dtype=np.float32)
    audio = np.concatenate([silence, tone(0.5), silence, tone(0.5, level=0.2), silence])
    tidy = normalize_recording(audio)
    assert 1.0 < len(tidy) / SAMPLE_RATE < 1.5  # 3 s of silence became one short gap
    assert rms(tidy) == pytest.approx(LOUDNESS, rel=0.25)
    click = np.zeros(SAMPLE_RATE, dtype=np.float32)
    click[8000] = 1.0
    assert np.abs(normalize_recording(click)).max() <= PEAK + 1e-6
    assert rms(normalize_noise(np.concatenate([silence, tone(1), silence]))) == pytest.approx(LOUDNESS, rel=0.1)


@pytest.mark.parametrize("seconds", [0.2, 1.3, 9.0])
def test_a_sound_event_plays_only_in_its_seconds(seconds: float) -> None:
    on_T = np.array([False, True, True, False, True])
    recording = normalize_recording(tone(seconds))
    audio = render_sound_event(recording, on_T, 1.05, np.random.default_rng(0))
    assert audio.shape == (5 * SAMPLE_RATE,)
    for second, on in enumerate(on_T):
        level = rms(audio[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE])
        assert level > LOUDNESS / 3 if on else level == 0


# ---------------------------------------------------------------- scenes


def square(color: tuple[int, int, int], side: int = 40) -> Image.Image:
    return Image.new("RGBA", (side, side), (*color, 255))


@pytest.fixture(scope="module")
def assets() -> Assets:
    """Four classes of plain squares and tones; the first has its own picture and sound for test."""
    items, pictures, sounds = [], {}, {}

    def add(name: str, role: str, split: str, content) -> None:
        number = len(items)
        item = CatalogueItem(
            name, role, split, None, None, Source("made-up", f"{number}", digest(b"%d" % number)), "none"
        )
        items.append(item)
        (sounds if isinstance(content, np.ndarray) else pictures)[item] = content

    for number, name in enumerate(["alpha", "beta", "gamma", "delta"]):
        for split in ("train", "test") if name == "alpha" else ("all",):
            add(name, "picture", split, square((60 * number, 200, 30), 40 + 10 * number))
            add(name, "sound", split, normalize_recording(tone(0.7 + number, 300 * (number + 1))))
    for split in SPLITS:
        add("", "clutter", split, square((200, 30, 200)))
        add("", "background", split, Image.new("RGB", (90, 80), (100, 120, 140)))
        add("", "noise", split, normalize_noise(tone(1.0, 90)))
    return Assets(items, catalogue_classes(items), pictures, sounds)


def plans(assets: Assets, count: int = 80) -> list[Scene]:
    return [plan_scene(assets, DOWNLOAD, split, index)[0] for split in SPLITS for index in range(count)]


def test_scenes_follow_the_rules(assets: Assets) -> None:
    scenes = plans(assets)
    for scene in scenes:
        visible = [actor.label for actor in scene.actors if actor.label]
        sounding = [voice.label for voice in scene.sound_events]
        assert 1 <= len(visible) <= 3 and len(scene.actors) <= plan.MAX_ACTORS
        assert sounding[0] in visible and len(set(sounding)) == len(sounding)
        assert scene.subset == ("v1s" if len(sounding) == 1 else "v1m")
        on_VT = np.stack([voice.on_T for voice in scene.sound_events])
        assert on_VT.any(1).all() and on_VT.sum(0).max() <= plan.MAX_SIMULTANEOUS_SOUNDS
        for actor in scene.actors:
            assert (actor.side_T >= plan.SIDE_RANGE[0]).all() and (actor.side_T <= plan.SIDE_RANGE[1]).all()
        for item in [scene.background, *(a.item for a in scene.actors), *(v.item for v in scene.sound_events)]:
            alternatives = select_items(assets.items, item.role, scene.split, item.name)
            assert item in alternatives
    assert len({scene.uid for scene in scenes}) == len(scenes)


def test_scenes_contain_every_difficulty(assets: Assets) -> None:
    scenes = plans(assets)

    def share(condition) -> float:
        return np.mean([bool(condition(scene)) for scene in scenes])

    def labels(scene: Scene) -> list[int]:
        return [actor.label for actor in scene.actors if actor.label]

    def sounding(scene: Scene) -> set[int]:
        return {voice.label for voice in scene.sound_events}

    assert share(lambda scene: 0 in [actor.label for actor in scene.actors]) > 0.2  # clutter
    assert share(lambda scene: set(labels(scene)) - sounding(scene)) > 0.1  # objects that never sound
    assert share(lambda scene: sounding(scene) - set(labels(scene))) > 0.03  # off-screen sounds
    assert share(lambda scene: len(set(labels(scene))) < len(labels(scene))) > 0.03  # two objects of a class
    assert share(lambda scene: not np.any([voice.on_T for voice in scene.sound_events], axis=0).all()) > 0.2  # silence
    assert (
        share(lambda scene: any(np.diff(voice.on_T).any() for voice in scene.sound_events)) > 0.3
    )  # changes over time


def test_every_second_scene_is_a_duet(assets: Assets) -> None:
    for index in range(40):
        scene = plan_scene(assets, DOWNLOAD, "test", index)[0]
        first, second = (scene.sound_events * 2)[:2]
        visible = {actor.label for actor in scene.actors}
        together = {first.label, second.label} <= visible and first.label != second.label
        if index % 2:
            assert plan.is_duet(index) and together and (first.on_T & second.on_T).sum() >= plan.DUET_SECONDS


def test_only_training_varies_sounds(assets: Assets) -> None:
    for scene in plans(assets):
        low, high = plan.SPEED_RANGES[scene.split]
        for event in scene.sound_events:
            assert event.varied == (scene.split == "train") and low <= event.speed <= high
            assert plan.GAIN_RANGE_DB[0] <= event.gain_db <= plan.GAIN_RANGE_DB[1]


def test_leading_classes_take_turns(assets: Assets) -> None:
    for start in range(0, 20, 4):
        leading = [plan_scene(assets, DOWNLOAD, "train", start + i)[0].sound_events[0].label for i in range(4)]
        assert sorted(leading) == [1, 2, 3, 4]


def still_actor(assets: Assets, name: str, label: int, center: float, side: float) -> Actor:
    item = next(item for item in assets.items if item.role == "picture" and item.name == name)
    place = np.full((3, 2), center)
    return Actor(item, label, place, np.full(3, side), np.zeros(3), flip=False)


def still_scene(assets: Assets, actors: list[Actor], sound_events: list[tuple[int, list[int]]]) -> Scene:
    sounds = {item.name: item for item in assets.items if item.role == "sound"}
    names = [info.name for info in assets.classes]
    sounding = [
        SoundEvent(label, sounds[names[label - 1]], np.array(on, dtype=bool), 0.0, 1.0) for label, on in sound_events
    ]
    background = next(item for item in assets.items if item.role == "background")
    return Scene("still", "train", "v1m", actors, sounding, background)


def test_labels_follow_sound_and_occlusion(assets: Assets) -> None:
    back, front = still_actor(assets, "beta", 2, 0.4, 0.5), still_actor(assets, "gamma", 3, 0.6, 0.5)
    scene = still_scene(assets, [back, front], [(2, [1, 1, 0]), (3, [0, 1, 0])])
    frames, labels, audio, tracks = render_scene(scene, assets, DOWNLOAD, np.random.default_rng(0))
    assert frames.shape == (3, 64, 64, 3) and labels.shape == (3, 64, 64) and audio.shape == (3 * SAMPLE_RATE,)
    assert [sorted(np.unique(label)) for label in labels] == [[0, 2], [0, 2, 3], [0]]
    assert (labels[1] == 3).sum() == pytest.approx(32 * 32, rel=0.05)
    hidden = (labels[1] == 3) & (np.add.outer(np.arange(64), np.arange(64)) < 70)
    assert hidden.any() and not (labels[0][hidden] == 2).any()  # a silent object in front hides a sounding one
    assert (labels[0] == 2).sum() == (labels[1] == 2).sum()
    assert rms(audio[:SAMPLE_RATE]) > 0.03 and not audio[2 * SAMPLE_RATE :].any()
    assert np.abs(audio).max() <= 1
    assert np.allclose(np.sum(tracks, axis=0), audio, atol=1e-6)
    assert [[track[second * SAMPLE_RATE :][:SAMPLE_RATE].any() for second in range(3)] for track in tracks] == [
        [True, True, False],
        [False, True, False],
    ]


def test_two_of_one_class_are_both_labeled(assets: Assets) -> None:
    pair = [still_actor(assets, "beta", 2, center, 0.25) for center in (0.25, 0.75)]
    _, labels, _, _ = render_scene(
        still_scene(assets, pair, [(2, [1, 0, 0])]), assets, DOWNLOAD, np.random.default_rng(0)
    )
    assert (labels[0] == 2).sum() == pytest.approx(2 * 16 * 16, rel=0.1)
    assert not labels[1:].any()


def test_cutouts_are_cropped_and_photos_kept_small(tmp_path: Path) -> None:
    cutout = Image.new("RGBA", (900, 900))
    cutout.paste((255, 0, 0, 255), (100, 200, 800, 400))
    cutout.save(tmp_path / "a.png")
    assert read_cutout(tmp_path / "a.png").size == (320, 91)
    Image.new("RGB", (1600, 800)).save(tmp_path / "b.png")
    assert read_photo(tmp_path / "b.png").size == (640, 320)
    triangle = read_cutout(tmp_path / "b.png", [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75)])
    alpha = np.asarray(triangle)[..., 3]
    assert triangle.size == (320, 160) and alpha[5, 5] == 255 and alpha[-5, -5] == 0
    assert (alpha > 127).mean() == pytest.approx(0.5, abs=0.02)


def test_composed_set_is_valid_and_the_same_however_many_workers(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workers in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda count=workers: count)
        composing.write_scenes(tmp_path / f"{workers}", assets, DOWNLOAD, progress=False)
        composing.write_sounds(tmp_path / f"sounds{workers}", assets)
    for first, second in [("1", "3"), ("sounds1", "sounds3")]:
        trees = [
            {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
            for name in (first, second)
        ]
        assert trees[0] == trees[1]
    assert not check_dataset(tmp_path / "1").errors
    assert not check_sounds(tmp_path / "sounds1").errors
    manifest = read_manifest(tmp_path / "1")
    assert manifest["split"].value_counts().to_dict() == {"train": 5, "val": 1, "test": 2}
    for clip in manifest.itertuples():
        scene, _ = plan_scene(assets, DOWNLOAD, clip.split, int(clip.uid.rpartition("-")[2]))
        labels = {actor.label for actor in scene.actors if actor.label}
        tracks = [read_audio(path) for path in track_paths(clip.audio.parent)]
        assert len(tracks) == (len(scene.sound_events) if clip.split == "test" else 0)
        assert not tracks or np.allclose(np.sum(tracks, axis=0), read_audio(clip.audio), atol=1e-4)
        assert set(clip.classes) <= set(clip.visible) == {assets.classes[label - 1].name for label in labels}
