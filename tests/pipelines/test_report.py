"""The report page: its content, that it needs no other file, and the errors for missing or broken files."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from mlflow import MlflowClient
from PIL import Image

from pipelines.settings import preset_settings
from qdformer import tracking
from qdformer.data.manifest import read_classes, read_manifest
from qdformer.reporting.page import About, make_page
from qdformer.reporting.result import ReportError, read_result
from tests.helpers.result import FRAMES, SIDE, write_result, write_sources

ABOUT = About(
    title="QDFormer on toy",
    evaluation_setup={"split": "test, composed", "task": "avss"},
    facts={"Git commit": "0123abc", "MLflow run": "run-7"},
    settings={"train": {"epochs": 3, "seed": 0}},
    changed={"train.epochs": (3, 12)},
    commands=["make setup", "make repro DATA=toy"],
)


class Page(HTMLParser):
    """The addresses and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: dict[str, list[str]] = {}
        self.text = ""
        self._hidden = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._hidden = tag in ("style", "script")
        for name, value in attributes:
            if name in ("src", "href", "srcset", "poster", "data"):
                self.addresses.setdefault(tag, []).append(value)

    def handle_data(self, data):
        if not self._hidden:
            self.text += f" {data.strip()}" if data.strip() else ""


def content(address: str) -> bytes:
    return base64.b64decode(address.partition("base64,")[2])


def page_of(reports: Path) -> str:
    root = reports.parent / "data" / "dataset"
    clips = read_manifest(root)
    sounds = dict(zip(clips["uid"], clips["audio"], strict=True))
    return make_page(read_result(reports), read_classes(root), ABOUT, sounds)


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Path:
    return write_result(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def page(reports) -> str:
    return page_of(reports)


def test_the_page_needs_no_other_file(page):
    for tag, addresses in Page(page).addresses.items():
        for address in addresses:
            assert address.startswith(("data:", "#")), f"<{tag}> points at {address[:80]}"
    assert not re.search(r"@import|url\(", page)
    assert len(page) < 1_000_000


def test_the_page_shows_metrics_tables_settings_and_origin(page):
    text = Page(page).text
    for shown in (
        "mIoU, dataset-level 0.357 0.327–0.387",  # headline
        "mIoU, unseen classes 0.219",
        "SNR \u22125 dB background noise mixed in 0.178 0.148–0.208",
        "Shuffled sound control: the sound of another clip 0.036",
        "False-positive rate",  # of the negative condition alone, without an interval
        "Silence control: no sound 0.250",
        "dog unseen 4 0.250 0.200 0.300",
        "cat seen 0 – – –",  # a class that never occurred
        "train.epochs 3 12",
        "epochs: 3",
        "Git commit 0123abc MLflow run run-7",
        "make repro DATA=toy",
        "dog 0.50 0.63 0.77 0.90",
        "quiet",
        "No class has a probability of at least 0.3.",
    ):
        assert shown in text, shown
    assert "sounding sources" not in text


def test_the_page_has_a_table_of_the_decomposition(page):
    table = Page(page).text.partition(" Decomposition Is the mixed sound")[2].partition(" Curves ")[0]
    columns = "metric Clean sound SNR \u22125 dB Shuffled sound Silence"
    both = "Two of two right fraction of frames with two sounding classes whose two highest probabilities are those two"
    assert f"{columns} {both}; higher is better 0.410 0.380–0.440 0.205 0.175–0.235" in table
    assert "linear layer on the audio features, no picture 0.380 0.350–0.410" in table
    assert "lower is better 0.620 0.590–0.650" in table
    assert "Three of three right" not in table and "with the visible classes known" not in table
    assert "Two of two right" not in Page(page).text.partition(" Decomposition Is the mixed sound")[0]


def test_clips_play_with_their_sound(page):
    addresses = Page(page).addresses
    assert len(addresses["audio"]) == 3
    samples, rate = soundfile.read(io.BytesIO(content(addresses["audio"][0])))
    assert len(samples) / rate == pytest.approx(FRAMES, abs=0.05)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * rate / len(samples) == pytest.approx(440, abs=2)
    films = [Image.open(io.BytesIO(content(address))) for address in addresses["img"]]
    assert [film.size for film in films[:9]] == [(SIDE, FRAMES * SIDE)] * 9  # three clips with three film strips each
    truth = np.asarray(films[1].convert("RGB"), np.float32).reshape(FRAMES, SIDE, SIDE, 3)
    colorful = truth.max(-1) - truth.min(-1) > 60  # the mask over the gray picture
    centers = [np.nonzero(frame)[1].mean() for frame in colorful]
    assert centers == pytest.approx([4 * frame + 4.5 for frame in range(FRAMES)], abs=1.5)


def test_a_clip_opens_on_its_first_frame_with_a_sounding_object(page):
    assert re.findall(r'data-first="(\d+)"', page) == ["0", "1", "0"]
    assert re.findall(r"<output>(.+?)</output>", page) == [f"{frame} / {FRAMES}" for frame in (1, 2, 1)]


def test_metrics_and_conditions_have_proper_names(page):
    text = Page(page.partition('id="settings"')[0]).text
    for key in ("miou_dataset", "davis_jf", "miou_unseen", "snr-5", "shuffled"):
        assert key not in text, key


def test_text_from_files_cannot_become_markup(tmp_path):
    reports = write_result(tmp_path)
    classes = reports / "classes.csv"
    classes.write_text(classes.read_text().replace("dog", "<script>alert(1)</script>"))
    assert "<script>alert" not in page_of(reports)


def test_the_number_of_sources_is_shown_where_it_was_measured(tmp_path):
    reports = write_result(tmp_path)
    write_sources(reports)
    text = Page(page_of(reports)).text
    assert "By sounding sources" in text
    assert "1 2 0.300 0.200–0.400" in text
    assert "3+ 1 –" in text


@pytest.mark.parametrize(
    "name",
    ["intervals.json", "metrics/clean.json", "clips.csv", "classes.csv", "robustness.csv", "pictures.npz", "figures"],
)
def test_a_missing_file_is_named_with_its_remedy(tmp_path, name):
    reports = write_result(tmp_path)
    (reports / name).rename(tmp_path / "elsewhere")
    with pytest.raises(ReportError, match=f"reports/{name}: missing; `make repro` writes it"):
        read_result(reports)


def test_broken_files_are_named(tmp_path):
    reports = write_result(tmp_path)
    with np.load(reports / "pictures.npz") as file:
        arrays = dict(file)
    np.savez(reports / "pictures.npz", **{**arrays, "one/truth": arrays["one/truth"][:2]})
    with pytest.raises(ReportError, match=r"pictures\.npz: one/truth has the shape \(2, 32, 32\); expected 3 dim"):
        read_result(reports)
    (reports / "pictures.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ReportError, match=r"pictures\.npz: not a valid NPZ file"):
        read_result(reports)
    (reports / "intervals.json").write_text("{")
    with pytest.raises(ReportError, match=r"intervals\.json: not a valid JSON file"):
        read_result(reports)


def test_make_report_writes_the_page_and_attaches_it_to_the_run(project):
    done = project.python("-m", "pipelines.report")
    assert done.returncode == 1
    assert re.search(r"^error: .*reports/intervals\.json: missing; `make repro` writes it$", done.stderr.strip())

    reports = write_result(project.root)
    done = project.python("-m", "pipelines.report")
    assert done.returncode == 0, done.stderr
    assert re.search(r"report\.html: 0\.\d MB; open it in a browser", done.stdout)
    text = Page((project.root / "report.html").read_text(encoding="utf-8")).text
    assert "QDFormer on stamps" in text and "MLflow run none in this store" in text
    assert f"learning_rate: {0.3 / 1000}" in text

    store = f"sqlite:///{project.root / 'mlflow.db'}"
    client = MlflowClient(store)
    checkpoint = project.root / "models" / "qdformer" / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        run_id = tracking.log_evaluation(
            reports,
            preset_settings("", project.root),
            {"dataset_digest": "d"},
            checkpoint,
            project.root / "data" / "dataset",
        )
    assert project.python("-m", "pipelines.report").returncode == 0
    assert f"MLflow run {run_id}" in Page((project.root / "report.html").read_text(encoding="utf-8")).text
    assert "report.html" in {file.path for file in client.list_artifacts(run_id)}


def test_metrics_are_not_shown_beside_other_settings(project):
    write_result(project.root)
    values = yaml.safe_load((project.root / "params.yaml").read_text(encoding="utf-8"))
    lock = {"stages": {"train": {"params": {"params.yaml": {"train": {**values["train"], "epochs": 99}}}}}}
    (project.root / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    done = project.python("-m", "pipelines.report")
    assert done.returncode == 1
    assert "made with other settings (train.epochs); `make repro` renews it" in done.stderr
    assert not (project.root / "report.html").exists()
