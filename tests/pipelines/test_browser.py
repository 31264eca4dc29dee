"""In a browser: the MLflow dashboard's table of runs and comparison of a sweep, and the player of the report page."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from mlflow import MlflowClient

from pipelines.settings import preset_settings
from qdformer import tracking
from qdformer.data.manifest import read_classes, read_manifest
from qdformer.reporting.page import About, make_page
from qdformer.reporting.result import read_result
from qdformer.tracking import views
from tests.helpers.browser import NEEDS_CHROMIUM, chromium, is_remote
from tests.helpers.result import FRAMES, write_result

SCORES = {"baseline": 0.343, "decomposed": 0.232, "full": 0.121}
METRICS = ("clean/davis_jf", "clean/miou_dataset")
PROVENANCE = {"data_digest": "d1", "dataset_digest": "s1", "code_digest": "c1"}

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser) -> Iterator:
    """A new tab; the test fails if a script raises an error or the page requests anything from another machine."""
    tab, problems = browser.new_page(viewport={"width": 1600, "height": 1300}), []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: problems.append(request.url) if is_remote(request.url) else None)
    yield tab
    tab.close()
    assert not problems


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Iterator[tuple[str, str, str]]:
    """A dashboard with a training and a sweep: its address, the id of the experiment, the path of the saved view."""
    root = tmp_path_factory.mktemp("recorded")
    store, settings = f"sqlite:///{root / 'mlflow.db'}", preset_settings("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        write_result(root)
        _record(root, "train", 0.4567)
        with tracking.parent_run(settings, PROVENANCE, "sweep") as parent:
            for position, (name, score) in enumerate(SCORES.items(), start=1):
                for seed, change in enumerate((0.01, -0.01)):
                    tags = {"row": f"{position} {name}", "seed": str(seed)}
                    _record(root, f"{name} seed {seed}", score + change, parent, tags)
            table = "| row | miou_dataset |\n| --- | ---: |\n| full | 0.346 ± 0.020 |"
            view = tracking.save_comparison(parent, METRICS, "sweep of toy", table)
        experiment = MlflowClient(store).get_experiment_by_name("qdformer-toy").experiment_id
    with _dashboard(root, store) as address:
        yield address, experiment, view


def _record(
    root: Path, name: str, score: float, parent: str | None = None, tags: Mapping[str, str] = MappingProxyType({})
) -> None:
    settings, checkpoint = preset_settings("toy"), root / "models" / "qdformer" / "model.safetensors"
    dataset, reports = root / "data" / "dataset", root / name / "reports"
    checkpoint.write_text(name)
    (reports / "metrics").mkdir(parents=True)
    (reports / "metrics" / "clean.json").write_text(json.dumps({"miou_dataset": score, "davis_jf": score / 2}))
    origin = {**PROVENANCE, "code_digest": name, **tags}
    with tracking.training_run(settings, origin, dataset, name, parent) as run_id:
        tracking.finish_training(run_id, checkpoint)
    tracking.log_evaluation(reports, settings, PROVENANCE, checkpoint, dataset, name=name, parent=parent)


@contextlib.contextmanager
def _dashboard(root: Path, store: str) -> Iterator[str]:
    """The dashboard that `make ui` starts, on a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    command = [mlflow, "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store]
    address, environment = views.local_url(port), {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(root / "ui.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}health", timeout=5):
                break
            assert server.poll() is None and time.monotonic() < deadline, (root / "ui.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_the_table_of_runs_shows_their_metrics(recorded, page):
    address, experiment, _ = recorded
    page.goto(address + views.runs_path(experiment))
    for name in ("sweep", "train"):
        page.get_by_role("link", name=name, exact=True).wait_for(timeout=60_000)
    page.get_by_role("columnheader", name="clean/miou_dataset").first.wait_for()
    page.get_by_role("gridcell", name="0.4567").first.wait_for()
    page.get_by_role("link", name="train", exact=True).click()
    page.get_by_text("clean/miou_dataset").first.wait_for(timeout=60_000)
    page.get_by_text("0.4567").first.wait_for()
    page.get_by_text("toy-train").first.wait_for()  # the training data set


def test_the_saved_view_compares_a_sweep_in_charts_and_a_table(recorded, page):
    address, _, view = recorded
    page.goto(address + view)
    for position, row in enumerate(SCORES, start=1):
        page.get_by_text(f"Group: {position} {row}").first.wait_for(timeout=60_000)
        for seed in (0, 1):
            page.get_by_role("link", name=f"{row} seed {seed}", exact=True).wait_for()
    assert page.get_by_role("link", name="train", exact=True).count() == 0
    for metric in METRICS:
        page.get_by_text(metric, exact=True).first.wait_for()
    for score in SCORES.values():  # labels of the bars: the mean of the seeds
        page.locator("svg .bartext", has_text=f"{score:.2f}").first.wait_for()


def test_the_saved_view_is_in_the_list_of_views_and_has_its_metrics_as_columns(recorded, page):
    address, experiment, _ = recorded
    page.goto(f"{address}#/experiments/{experiment}/runs?{views.WORKFLOW}")
    page.get_by_role("link", name="train", exact=True).wait_for(timeout=60_000)
    page.get_by_role("button", name="Views").click()
    page.get_by_text("sweep of toy").click()
    page.get_by_role("columnheader", name="clean/miou_dataset").first.wait_for(timeout=60_000)
    cells = page.get_by_role("gridcell")
    for score in SCORES.values():
        cells.filter(has_text=f"{score}").first.wait_for()
    heights = [
        page.get_by_text(f"Group: {position} {row}").first.bounding_box()["y"]
        for position, row in enumerate(SCORES, start=1)
    ]
    assert heights == sorted(heights), "the rows are not in the order of the sweep"


def test_the_description_of_a_sweep_has_its_table_and_links_to_the_comparison(recorded, page):
    address, experiment, _ = recorded
    page.goto(f"{address}#/experiments/{experiment}/runs?{views.WORKFLOW}")
    page.get_by_role("link", name="sweep", exact=True).click(timeout=60_000)
    page.get_by_text("0.346 ± 0.020").first.wait_for(timeout=60_000)
    page.goto(address + page.get_by_role("link", name="MLflow's comparison of the runs").get_attribute("href"))
    page.get_by_text("Comparing 6 Runs").first.wait_for(timeout=60_000)
    page.set_viewport_size({"width": 2600, "height": 1300})  # columns outside of the window are not in the page
    for shown in (*METRICS, *(f"{score + 0.01:.3f}" for score in SCORES.values())):
        page.get_by_text(shown).first.wait_for()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_the_report_plays_its_clips(browser, tmp_path, scheme, width):
    reports = write_result(tmp_path)
    root = tmp_path / "data" / "dataset"
    clips = read_manifest(root)
    about = About("QDFormer on toy", {"split": "test"}, {}, {}, {}, ["make repro"])
    sounds = dict(zip(clips["uid"], clips["audio"], strict=True))
    html = make_page(read_result(reports), read_classes(root), about, sounds)
    (tmp_path / "report.html").write_text(html, encoding="utf-8")

    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: problems.append(request.url) if is_remote(request.url) else None)
    tab.goto((tmp_path / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.strip("rgb()").split(","))) < 200) == (scheme == "dark")

    assert tab.locator(".clip output").all_inner_texts() == [f"{frame} / {FRAMES}" for frame in (1, 2, 1)]
    clip = tab.locator(".clip").first
    frame, button, slider, sound = (clip.locator(name) for name in ("output", "button", "input", "audio"))
    tab.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState > 0)")
    assert sound.evaluate("a => a.duration") == pytest.approx(FRAMES, abs=0.1)
    film = clip.locator(".film img").first

    def shown_frame() -> float:
        """The index of the frame that the film shows; not an integer if it stands between two frames."""
        return film.evaluate("f => -new DOMMatrix(getComputedStyle(f).transform).m42 / f.parentElement.clientHeight")

    assert shown_frame() == 0
    button.click()
    tab.wait_for_function("document.querySelector('.clip output').textContent.startsWith('3 /')", timeout=20_000)
    assert shown_frame() == pytest.approx(2, abs=0.02)
    assert sound.evaluate("a => a.currentTime") == pytest.approx(2, abs=0.9)
    assert button.inner_text() == "Pause"
    button.click()
    assert sound.evaluate("a => a.paused")
    slider.fill("1")
    assert frame.inner_text() == f"2 / {FRAMES}" and shown_frame() == pytest.approx(1, abs=0.02)
    assert sound.evaluate("a => a.currentTime") == 1
    slider.fill(str(FRAMES - 1))
    button.click()  # plays to the end, then returns to the frame on which the clip opened
    tab.wait_for_function("document.querySelector('.clip button').textContent === 'Pause'")
    tab.wait_for_function("document.querySelector('.clip button').textContent === 'Play'", timeout=20_000)
    assert frame.inner_text() == f"1 / {FRAMES}"
    tab.close()
    assert problems == []
