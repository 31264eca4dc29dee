"""The checks of the files of a data set. The checks of its lists are in test_lists."""

import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from qdformer.audio.io.sound_table import sound_row, write_single_sound, write_sound_table
from qdformer.data.checks import KINDS, Report, check_dataset, check_sounds, raise_on_errors
from qdformer.data.checks.files import find_small_components
from qdformer.data.layout import DataError
from qdformer.reporting.check_page import make_page
from tests.helpers.dataset import write_small


@pytest.fixture
def root(tmp_path):
    return write_small(tmp_path / "dataset")


def cut(keep):
    return lambda path: path.write_bytes(path.read_bytes()[:keep])


def save_picture(array, mode=None):
    def change(path):
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path)

    return change


def save_sound(seconds, value, subtype="PCM_16"):
    return lambda path: soundfile.write(path, np.full(round(seconds * 16000), value, np.float32), 16000, subtype)


def labels(value=0, size=(32, 48)):
    return np.full(size, value, np.uint8)


def kinds(report):
    return {kind: len(findings) for kind, findings in report.by_kind().items()}


def test_a_valid_data_set_has_no_error(root):
    report = check_dataset(root)
    assert not report.errors and report.files == 4 * 7
    assert report.clips == {"train": 2, "val": 1, "test": 1}
    assert kinds(report) == {"absent-class": 1, "background-row": 1, "empty-mask": 1}  # all three for the silent clip
    raise_on_errors(report)


@pytest.mark.parametrize(
    ("file", "change", "kind", "problem"),
    [
        ("audio.wav", cut(0), "unreadable-file", "empty (0 bytes)"),
        ("audio.wav", cut(44), "unreadable-file", "truncated"),
        ("audio.wav", cut(-1000), "unreadable-file", "truncated"),
        ("audio.wav", lambda path: path.write_text("no sound"), "unreadable-file", "cannot be read as audio"),
        ("audio.wav", lambda path: path.unlink(), "missing-file", "missing; expected a sound"),
        ("audio.wav", save_sound(2, 0.1), "audio-length", "2.00 s long; expected 3 s"),
        ("audio.wav", save_sound(4, 0.1), "audio-length", "4.00 s long; expected 3 s"),
        ("audio.wav", save_sound(3, 0.0), "silent-audio", "all samples are 0, but the labels name"),
        ("audio.wav", save_sound(3, np.nan, "FLOAT"), "bad-samples", "48,000 samples are NaN or infinite"),
        ("frames/1.jpg", lambda path: path.unlink(), "missing-file", "missing; expected one for every second"),
        ("frames/1.jpg", cut(0), "unreadable-file", "not a readable picture"),
        ("frames/1.jpg", cut(-200), "unreadable-file", "damaged picture"),
        ("frames/1.jpg", lambda path: path.write_text("no picture"), "unreadable-file", "not a readable picture"),
        ("frames/1.jpg", save_picture(labels().repeat(4).reshape(32, 48, 4), "CMYK"), "wrong-mode", "mode CMYK"),
        ("labels_semantic/2.png", lambda path: path.unlink(), "missing-file", "missing"),
        ("labels_semantic/2.png", cut(-40), "unreadable-file", "damaged picture"),
        ("labels_semantic/2.png", save_picture(labels(1, (32, 40))), "wrong-size", "40x32 pixels; expected 48x32 like"),
        ("labels_semantic/2.png", save_picture(labels(3)), "class-id", "unknown class id 3; expected 0..2"),
        ("labels_semantic/2.png", save_picture(labels(), "RGB"), "wrong-mode", "mode RGB; expected P or L"),
    ],
)
def test_damage_is_an_error_that_names_its_clip_and_file(root, file, change, kind, problem):
    change(root / "v1m" / "b" / file)
    report = check_dataset(root)
    (error,) = report.errors
    assert (error.kind, error.clip, error.file) == (kind, "b", f"v1m/b/{file}") and problem in error.message
    with pytest.raises(DataError, match=re.escape(f"clip b: v1m/b/{file}: ")):
        raise_on_errors(report)


def test_all_pictures_of_a_clip_must_have_one_size(root):
    for name in ("frames/1.jpg", "labels_semantic/1.png"):
        path = root / "v1m" / "b" / name
        Image.open(path).resize((96, 64), Image.Resampling.NEAREST).save(path)
    (error,) = check_dataset(root).errors
    assert error.kind == "wrong-size" and "96x64 pixels; expected 48x32 like the clip's first" in error.message


def test_label_maps_also_decide_whether_a_clip_may_be_silent(root):
    path = root / "v1m" / "quiet" / "labels_semantic" / "0.png"
    few = labels()
    few[3, 3] = 255
    save_picture(few)(path)
    assert not check_dataset(root).errors  # a pixel that is not labeled does not sound
    few[3, 3] = 1
    save_picture(few)(path)
    (error,) = check_dataset(root).errors
    assert (error.kind, error.clip) == ("silent-audio", "quiet")


def test_tolerated_errors_are_warnings(root):
    save_sound(2, 0.1)(root / "v1m" / "a" / "audio.wav")
    save_sound(3, 0.0)(root / "v1m" / "b" / "audio.wav")
    report = check_dataset(root, tolerate=["audio-length"])
    assert [error.kind for error in report.errors] == ["silent-audio"]
    assert report.by_kind()["audio-length"][0].severity == "warning"


def test_one_message_lists_many_problems_in_order(root):
    for uid in ("c", "a"):
        (root / "v1m" / uid / "audio.wav").unlink()
        for index in range(3):
            cut(9)(root / "v1m" / uid / "frames" / f"{index}.jpg")
            cut(9)(root / "v1m" / uid / "labels_semantic" / f"{index}.png")
    with pytest.raises(DataError) as caught:
        raise_on_errors(check_dataset(root))
    message = str(caught.value)
    assert message.index("clip a") < message.index("clip c") and message.endswith("and 4 more")


def test_no_file_is_opened_if_rows_are_invalid(root):
    path = root / "metadata.csv"
    path.write_text(path.read_text().replace("b,b,", "b,../b,"))
    report = check_dataset(root)
    assert report.files == 0
    with pytest.raises(DataError, match="clip ../b: metadata.csv: line 3: '../b' is not a plain name"):
        raise_on_errors(report)


def test_a_clip_listed_twice_is_reported_with_all_other_faults(root):
    path = root / "metadata.csv"
    row = path.read_text().splitlines()[1]
    path.write_text(path.read_text() + row + "\n")
    (root / "v1m" / "b" / "audio.wav").unlink()
    report = check_dataset(root)
    assert [(error.kind, error.clip, error.file) for error in report.errors] == [
        ("missing-file", "b", "v1m/b/audio.wav"),
        ("duplicate-uid", "a", "metadata.csv"),
    ]
    assert report.files == 4 * 7 and "duplicate-media" not in kinds(report)
    with pytest.raises(DataError, match="correct the files in /avs/a.zip, /avs/b and run the pipeline again"):
        raise_on_errors(report, ["/avs/a.zip", "/avs/b"])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="label2idx.json: missing"):
        check_dataset(tmp_path / "nowhere")


def test_identical_clips(root):
    clips = root / "v1m"
    (clips / "c" / "audio.wav").write_bytes((clips / "a" / "audio.wav").read_bytes())
    for index in range(3):
        (clips / "b" / "frames" / f"{index}.jpg").write_bytes((clips / "a" / "frames" / f"{index}.jpg").read_bytes())
    found = check_dataset(root).by_kind()["duplicate-media"]
    assert [finding.message for finding in found] == [
        "the same pictures as b (train)",
        "the same sound as c (train, test)",
    ]


def test_silent_sounds_are_not_duplicates(root):
    for uid in ("a", "b"):
        save_sound(3, 0.0)(root / "v1m" / uid / "audio.wav")
    assert "duplicate-media" not in kinds(check_dataset(root))


def test_empty_label_maps(root):
    for index in (0, 2):
        save_picture(labels())(root / "v1m" / "a" / "labels_semantic" / f"{index}.png")
    for index in range(3):
        save_picture(labels(255))(root / "v1m" / "b" / "labels_semantic" / f"{index}.png")
    found = {finding.clip: finding.message for finding in check_dataset(root).by_kind()["empty-mask"]}
    assert found == {
        "a": "nothing is labeled in 2 of 3 label maps",
        "b": "nothing is labeled in any of 3 label maps, but its row names cat, dog",
        "quiet": "nothing is labeled in any of 3 label maps",
    }


def test_pixels_that_touch_at_corners_are_connected():
    drawn = labels(0, (100, 100))
    drawn[10:20, 10:20] = 1
    drawn[20, 20] = 1  # touches at a corner
    drawn[50, 60:63] = 1  # a component of 3 pixels besides the object
    drawn[70:73, 5] = 2  # the only component of its class
    drawn[90, 90] = 255
    assert find_small_components(drawn, 4 / 10_000) == [(1, 3, (60, 50, 63, 51), False), (2, 3, (5, 70, 6, 73), True)]
    assert find_small_components(drawn, 3 / 10_000) == []


def test_small_components_are_counted_per_clip(root):
    for index in range(2):
        path = root / "v1m" / "a" / "labels_semantic" / f"{index}.png"
        drawn = np.array(Image.open(path))
        drawn[31, 0] = 1
        drawn[0, 45:47] = 1
        save_picture(drawn)(path)
    report = check_dataset(root, min_component_area=0.002)  # 3.07 of 32 x 48 pixels
    (finding,) = report.by_kind()["small-component"]
    assert finding.message == "4 small components in 2 of 3 label maps; the smallest is dog, 1 of 1,536 pixels"
    assert finding.values["box"] == [0, 31, 1, 32] and "only-small-components" not in kinds(report)
    assert "small-component" not in kinds(check_dataset(root, min_component_area=0.0005))
    drawn = labels()
    drawn[5, 5] = 2
    save_picture(drawn)(path)
    assert kinds(check_dataset(root, min_component_area=0.002))["only-small-components"] == 1


def test_sounds(tmp_path):
    write_single_sound(tmp_path, "a.flac", np.full(100, 0.1))
    write_sound_table(tmp_path, [sound_row("a.flac", role="noise", split=split) for split in ("train", "val")])
    report = check_sounds(tmp_path)
    assert not report.findings and report.files == 1
    write_single_sound(tmp_path, "a.flac", np.zeros(100))
    assert str(check_sounds(tmp_path).errors[0]) == "a.flac: all samples are 0"
    cut(60)(tmp_path / "a.flac")
    assert check_sounds(tmp_path).errors[0].kind == "unreadable-file"


def damage(root):
    """Introduce one fault of most kinds, each in another clip or file."""
    clips = root / "v1m"
    (clips / "a" / "frames" / "0.jpg").unlink()
    cut(-200)(clips / "a" / "frames" / "1.jpg")
    save_picture(labels(1, (32, 40)))(clips / "a" / "labels_semantic" / "2.png")
    save_picture(labels(9))(clips / "b" / "labels_semantic" / "0.png")
    save_picture(labels(), "RGB")(clips / "b" / "labels_semantic" / "1.png")
    save_sound(2, 0.1)(clips / "b" / "audio.wav")
    drawn = labels()
    drawn[5, 5] = 2
    save_picture(drawn)(clips / "c" / "labels_semantic" / "1.png")
    save_sound(2, 0.1)(clips / "c" / "audio.wav")


def test_the_page_shows_all_kinds_and_is_self_contained(root):
    damage(root)
    report = check_dataset(root, min_component_area=0.002)
    page = make_page([report])
    for kind in report.by_kind():
        assert f'-{kind}">' in page and KINDS[kind].title in page
    assert {"missing-file", "unreadable-file", "wrong-size", "wrong-mode", "class-id", "only-small-components"} <= set(
        kinds(report)
    )
    sources = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"'>\s)]+)", page)
    assert sources and all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "://" not in page and "<script" not in page
    assert "<svg" in page and page.count("<img") >= 6
    assert page == make_page([check_dataset(root, min_component_area=0.002)])


def test_names_are_escaped_in_the_page(root):
    path = root / "metadata.csv"
    path.write_text(path.read_text().replace("b,b,", "b,<script>b,"))
    page = make_page([check_dataset(root)])
    assert "&lt;script&gt;b" in page and "<script>" not in page


def test_a_report_survives_json(root):
    damage(root)
    report = check_dataset(root)
    text = json.dumps(report.to_dict())
    assert Report.from_dict(json.loads(text)) == report
    assert text == json.dumps(check_dataset(root).to_dict())
    assert json.loads(text)["kinds"] == {**dict.fromkeys(KINDS, 0), **kinds(report)}
