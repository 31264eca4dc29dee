"""AudioSet: the published lists and ontology, the selection of segments, and the files of segments."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from qdformer.audio.io.read import AUDIO_SUFFIXES, CONTAINER_SUFFIXES
from qdformer.audio.noise.audioset import (
    CLASSES_CSV,
    MID,
    AudioSetError,
    Ontology,
    Segment,
    assign_split,
    find_clip_file,
    index_clip_files,
    labels_of_classes,
    read_class_mapping,
    read_segments,
    select_segments,
)
from qdformer.config.settings import load_settings
from qdformer.data.readers.stamps.catalogue import catalogue_classes, read_catalogue
from qdformer.data.readers.toy import CLASSES as TOY_CLASSES
from tests.helpers import PROJECT
from tests.helpers.audioset import ANIMAL, BARK, CAT, DOG, LEAVES, RAIN, WIND, write_list, write_ontology, youtube_id

# The published names: AVSBench-Semantic's 70 classes and the 23 categories of S4
AVSS = """
accordion airplane axe baby bassoon bell bird boat boy bus car cat cello clarinet clipper clock dog donkey drum duck
elephant emergency-car erhu flute frying-food girl goose guitar gun guzheng hair-dryer handpan harmonica harp
helicopter hen horse keyboard leopard lion man marimba missile-rocket motorcycle mower parrot piano pig pipa saw
saxophone sheep sitar sorna squirrel tabla tank tiger tractor train trombone truck trumpet tuba ukulele utv
vacuum-cleaner violin wolf woman
"""
S4 = """
ambulance_siren baby_laughter cap_gun_shooting cat_meowing chainsawing_trees coyote_howling dog_barking
driving_buses female_singing helicopter horse_clip-clop lawn_mowing lions_roaring male_speech mynah_bird_singing
playing_acoustic_guitar playing_glockenspiel playing_piano playing_tabla playing_ukulele playing_violin race_car
typing_on_computer_keyboard
"""


@pytest.fixture
def ontology(tmp_path) -> Ontology:
    return Ontology(write_ontology(tmp_path / "ontology.json"))


def test_every_class_of_every_data_set_maps_or_is_declared_unmappable():
    avsbench = [AVSS.split(), S4.split()]
    assert [len(names) for names in avsbench] == [70, 23]
    stamps = {info.name for info in catalogue_classes(read_catalogue())}
    toy = {kind.name for kind in TOY_CLASSES}
    table = read_class_mapping()
    assert set(table) == stamps.union(toy, *avsbench)
    assert {name for name, mids in table.items() if not mids} == toy


def test_the_table_of_classes_is_well_formed():
    with CLASSES_CSV.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(bool(row["name"]) == bool(row["mid"]) for row in rows)
    assert all(MID.fullmatch(row["mid"]) for row in rows if row["mid"])
    assert all(count == 1 for count in Counter((row["class"], row["mid"]) for row in rows).values())
    pairs = {(row["name"], row["mid"]) for row in rows}
    assert len({name for name, _ in pairs}) == len({mid for _, mid in pairs}) == len(pairs)
    assert {("Dog", "/m/0bt9lr"), ("Human voice", "/m/09l8g"), ("Siren", "/m/03kmc9")} <= pairs


def test_published_segments(tmp_path):
    path = write_list(tmp_path / "eval.csv", [("--4gqARaEJE", 0, [DOG, ANIMAL]), ("_-abcdefghi", 30, [RAIN])])
    first, second = read_segments(path)
    assert first == Segment("--4gqARaEJE", 0.0, 10.0, (DOG, ANIMAL))
    assert second.name == "_-abcdefghi_30000"


@pytest.mark.parametrize(
    "line",
    [
        'tooshort, 0.000, 10.000, "/m/0jbk"',
        "--4gqARaEJE, 0.000, 10.000",
        '--4gqARaEJE, ten, 20.000, "/m/0jbk"',
        '--4gqARaEJE, 10.000, 10.000, "/m/0jbk"',
        '--4gqARaEJE, nan, 10.000, "/m/0jbk"',
        '--4gqARaEJE, 0.000, 10.000, "Animal"',
        '--4gqARaEJE, 0.000, 10.000, ""',
        '../../../etc, 0.000, 10.000, "/m/0jbk"',
    ],
)
def test_a_bad_line_is_reported(tmp_path, line):
    path = write_list(tmp_path / "eval.csv", [("--4gqARaEJE", 0, [DOG])])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(AudioSetError, match=r"eval.csv, line 5: .*expected YTID, start, end"):
        list(read_segments(path))


def test_missing_and_wrong_files_are_reported(tmp_path):
    with pytest.raises(AudioSetError, match="none.csv: no such file"):
        list(read_segments(tmp_path / "none.csv"))
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AudioSetError, match="a.csv: not a text file"):
        list(read_segments(tmp_path / "a.csv"))
    with pytest.raises(AudioSetError, match="none.json: no such file"):
        Ontology(tmp_path / "none.json")
    for content in ("{", "{}x", '{"a": 1}', '[{"id": "/m/0jbk"}]'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(AudioSetError, match=r"a.json: not AudioSet's ontology.json"):
            Ontology(tmp_path / "a.json")


def test_classes_by_name_and_id(ontology, tmp_path):
    assert ontology.resolve_ids(["Wind", RAIN, "rustling LEAVES"]) == [WIND, RAIN, LEAVES]
    with pytest.raises(AudioSetError, match=r"no class 'Wnd'; similar: 'Wind'"):
        ontology.resolve_ids(["Wnd"])
    double = Ontology(write_ontology(tmp_path / "double.json", {DOG: ("Dog", []), CAT: ("dog", [])}))
    with pytest.raises(AudioSetError, match=f"2 classes are called 'Dog'; give the id, {DOG} or {CAT}"):
        double.resolve_ids(["Dog"])


def test_descendants_of_a_cyclic_ontology(ontology, tmp_path):
    assert ontology.with_descendants([ANIMAL]) == {ANIMAL, DOG, BARK, CAT}
    circle = Ontology(write_ontology(tmp_path / "circle.json", {DOG: ("Dog", [BARK]), BARK: ("Bark", [DOG])}))
    assert circle.with_descendants([BARK]) == {DOG, BARK}
    with pytest.raises(AudioSetError, match=r"no class with the id '/m/none'"):
        ontology.with_descendants(["/m/none"])


def test_labels_of_classes_include_descendants(ontology):
    assert labels_of_classes(["dog"], ontology) == {DOG, BARK}
    assert labels_of_classes(["circle"], ontology) == frozenset()
    with pytest.raises(AudioSetError, match="no row for the class 'unicorn'"):
        labels_of_classes(["dog", "unicorn"], ontology)
    with pytest.raises(AudioSetError, match="no class with the id '/m/0mkg'"):  # of accordion; not in this ontology
        labels_of_classes(["accordion"], ontology)


def test_segments_with_labels_of_the_classes_are_excluded_but_general_labels_are_not(ontology, tmp_path):
    fit = [(youtube_id(0), 0, [WIND]), (youtube_id(1), 0, [LEAVES]), (youtube_id(2), 0, [ANIMAL, WIND])]
    unfit = [(youtube_id(3), 0, [WIND, DOG]), (youtube_id(4), 0, [BARK, WIND]), (youtube_id(5), 0, [RAIN])]
    path = write_list(tmp_path / "a.csv", fit + unfit)
    wanted, excluded = ontology.with_descendants([WIND]), labels_of_classes(["dog"], ontology)
    assert {segment.youtube_id for segment in select_segments([path], wanted, excluded, 0)} == {
        name for name, *_ in fit
    }
    assert len(select_segments([path], wanted, labels_of_classes([], ontology), 0)) == 5


def test_the_order_depends_on_the_seed_and_not_on_the_lists(tmp_path):
    segments = [(youtube_id(number), 0, [WIND]) for number in range(20)]
    one, other = write_list(tmp_path / "a.csv", segments), write_list(tmp_path / "b.csv", segments[::-1])

    def order(paths: list[Path], seed: int) -> list[str]:
        return [segment.youtube_id for segment in select_segments(paths, frozenset({WIND}), frozenset(), seed)]

    assert order([one], 0) == order([other], 0) == order([one, other], 0)
    assert order([one], 0) != order([one], 1)
    rest = order([write_list(tmp_path / "c.csv", segments[5:])], 0)
    assert rest == [name for name in order([one], 0) if name in rest]


def test_videos_are_assigned_to_splits_in_proportion_to_the_counts():
    counts = {"train": 60, "val": 10, "test": 30}
    splits = [assign_split(youtube_id(number), counts, 0) for number in range(3000)]
    assert splits == [assign_split(youtube_id(number), counts, 0) for number in range(3000)]
    turned = dict(reversed(counts.items()))
    assert splits == [assign_split(youtube_id(number), turned, 0) for number in range(3000)]
    for split, count in counts.items():
        assert splits.count(split) / 3000 == pytest.approx(count / 100, abs=0.03)


def test_customary_names_of_clips(tmp_path):
    names = ["-0abcdefghi.wav", "sub/Y-1abcdefghi.FLAC", "-2abcdefghi_30.000_40.000.mp4", "-3abcdefghi_30000.mp3"]
    names += ["Y-4abcdefghi_30_40.webm", "_5abcd_fghi_30000_40000.ogg"]
    for name in [*names, "notes.wav", "-6abcdefghi.json", "-7abcdefghi_x.wav", "-8abcdefghi_0.wav"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    index = index_clip_files(tmp_path)
    for name in names:
        stem = Path(name).name.removeprefix("Y")
        assert find_clip_file(index, Segment(stem[:11], 30.0, 40.0, (WIND,))) == tmp_path / name
    assert find_clip_file(index, Segment("-6abcdefghi", 30.0, 40.0, (WIND,))) is None
    assert find_clip_file(index, Segment("-7abcdefghi", 30.0, 40.0, (WIND,))) is None
    assert find_clip_file(index, Segment("-8abcdefghi", 30.0, 40.0, (WIND,))) is None  # another segment of that video
    assert find_clip_file(index, Segment("-8abcdefghi", 0.0, 10.0, (WIND,))) == tmp_path / "-8abcdefghi_0.wav"


def test_an_id_that_starts_with_y_and_a_name_with_the_start(tmp_path):
    for name in ("Yabcdefghij.wav", "YYbcdefghijk.wav", "-9abcdefghi.wav", "-9abcdefghi_30.wav"):
        (tmp_path / name).touch()
    index = index_clip_files(tmp_path)
    assert set(index) == {"Yabcdefghij", "Ybcdefghijk", "-9abcdefghi"}
    assert find_clip_file(index, Segment("-9abcdefghi", 30.0, 40.0, (WIND,))) == tmp_path / "-9abcdefghi_30.wav"
    assert find_clip_file(index, Segment("-9abcdefghi", 50.0, 60.0, (WIND,))) == tmp_path / "-9abcdefghi.wav"
    with pytest.raises(AudioSetError, match="none: no such folder"):
        index_clip_files(tmp_path / "none")


def test_all_readable_formats_are_found(tmp_path):
    """The suffixes are those of `audio.io.read`."""
    suffixes = sorted(AUDIO_SUFFIXES | CONTAINER_SUFFIXES)
    for number, suffix in enumerate(suffixes):
        (tmp_path / f"{youtube_id(number)}{suffix}").touch()
    index = index_clip_files(tmp_path)
    assert [index[youtube_id(number)][0].path.suffix for number in range(len(suffixes))] == suffixes


def test_the_default_noises_are_no_labels_of_a_class():
    """Segments with such a label are excluded, so that the noise pool could be empty."""
    names = {row["name"] for row in csv.DictReader(CLASSES_CSV.open(encoding="utf-8", newline=""))}
    assert not names & set(load_settings(PROJECT / "params.yaml").noise.labels)
