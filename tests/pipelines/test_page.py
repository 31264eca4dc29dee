"""The page of `make serve` in a browser: a video is dropped, watched and downloaded; a recording is segmented."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import uvicorn

from pipelines.serve import segment_upload
from qdformer.data.manifest import Classes
from qdformer.inference import ClipPrediction, Segmenter
from qdformer.inference.service.app import ResultFile, make_app
from qdformer.inference.service.jobs import JobQueue, Limits
from tests.helpers.browser import NEEDS_CHROMIUM, chromium, is_remote
from tests.helpers.video import write_video

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]

FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name));
  const drop = document.getElementById("drop");
  for (const kind of ["dragover", "drop"])
    drop.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


class Quarter:
    """In place of a predictor: a bell fills the upper left quarter of each second; waits while it is told to."""

    classes = Classes(("bell",), (False,))

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()

    def predict(self, frames, waveform, sample_rate) -> ClipPrediction:
        assert self.go.wait(60)
        count, height, width = frames.shape[:3]
        labels = np.zeros((count, height, width), np.uint8)
        labels[:, : height // 2, : width // 2] = 1
        return ClipPrediction(self.classes.names, labels, labels.astype("f4"), np.full((count, 1), 0.75, "f4"))


@pytest.fixture(scope="module")
def predictor() -> Quarter:
    return Quarter()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "my clip.mp4", 4, size=(320, 240))


@pytest.fixture(scope="module")
def service(predictor, video) -> Iterator[tuple[str, JobQueue]]:
    segmenter = Segmenter(predictor, clip_frames=2)
    queue = JobQueue(lambda *job: segment_upload(segmenter, *job), Limits(max_seconds=30))
    app = make_app(queue, segmenter.classes, {"composed video 1": video})
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/", queue
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium(*FAKE_CAMERA) as started:
        yield started


@pytest.fixture(params=[("light", 1100), ("dark", 390)], ids=["wide", "phone"])
def page(request, browser, service) -> Iterator:
    """The open page; the test fails if a script raises an error or anything is loaded from another machine."""
    scheme, width = request.param
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda sent: problems.append(sent.url) if is_remote(sent.url) else None)
    tab.goto(service[0])
    tab.get_by_text("The model knows: bell.").wait_for()
    yield tab
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    tab.close()
    assert problems == []


def drop(page, name: str, content: bytes) -> None:
    page.evaluate(DROP, [name, base64.b64encode(content).decode()])


def until(element, condition: str) -> None:
    """Wait until a function of the element is true. Playwright's own wait needs `eval`, which the page forbids."""
    deadline = time.monotonic() + 30
    while not element.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def watch(page, seconds: float) -> None:
    """Wait for the result, and play it for a moment: picture, sound and captions."""
    page.locator("#result").wait_for(timeout=60_000)
    until(page.locator("#overlay"), "element => element.readyState >= 2")
    overlay, timeline = page.locator("#overlay"), page.locator("#timeline")
    assert overlay.evaluate("v => v.error") is None
    assert overlay.evaluate("v => v.duration") == pytest.approx(seconds, abs=0.3)
    overlay.evaluate("v => { v.muted = true; return v.play(); }")
    until(page.locator("#overlay"), "element => element.currentTime > 0.3")
    until(page.locator("#timeline"), "element => element.naturalWidth > 300")
    assert timeline.is_visible()


def test_a_dropped_video_is_watched_downloaded_and_removed(page, service, video, tmp_path):
    drop(page, video.name, video.read_bytes())
    watch(page, 4)
    assert page.locator("#title").inner_text() == "my clip.mp4"
    overlay = page.locator("#overlay")
    assert overlay.evaluate("v => [v.videoWidth, v.videoHeight]") == [320, 240]
    overlay.evaluate("v => { v.textTracks[0].mode = 'hidden'; }")  # loads the captions without showing them
    until(overlay, "element => element.textTracks[0].cues?.length === 1")
    assert overlay.evaluate("v => v.textTracks[0].cues[0].text") == "bell 0.75"

    for file in ResultFile:
        with page.expect_download() as download:
            page.get_by_role("link", name=file.value).click()
        download.value.save_as(tmp_path / file.value)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["video"] == "my clip.mp4" and len(result["seconds"]) == 4
    assert len(zipfile.ZipFile(tmp_path / "masks.zip").namelist()) >= 4
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert container.streams.audio
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert abs(frame[60, 40].astype(int) - frame[200, 300]).max() > 20  # the marked quarter differs

    page.get_by_role("button", name="Remove now").click()
    page.locator("#result").wait_for(state="hidden")
    deadline = time.monotonic() + 30
    while list(service[1].root.iterdir()):
        assert time.monotonic() < deadline, "the files are still there"
        time.sleep(0.05)


def test_a_recording_from_camera_and_microphone(page):
    page.get_by_role("button", name="Record from camera and microphone").click()
    page.get_by_role("button", name="Stop and segment").wait_for()
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Stop and segment").click()
    page.locator("#result").wait_for(timeout=60_000)
    until(page.locator("#overlay"), "element => element.readyState >= 2")
    assert page.locator("#title").inner_text() == "recording"
    width, duration = page.locator("#overlay").evaluate("v => [v.videoWidth, v.duration]")
    assert width > 0 and duration > 0  # a busy machine records few frames


def test_an_example_a_file_that_is_no_video_and_progress_that_is_canceled(page, predictor, video):
    page.get_by_role("button", name="composed video 1").click()
    watch(page, 4)
    drop(page, "notes.mp4", b"no video\n" * 300)
    page.get_by_role("alert").get_by_text("notes.mp4: ").wait_for()
    assert page.locator("#result").is_hidden()

    predictor.go.clear()
    try:
        page.locator("#file").set_input_files(video)
        page.get_by_text("my clip.mp4: 0 of 4 s").wait_for(timeout=30_000)
        assert page.get_by_role("alert").is_hidden()
        page.get_by_role("button", name="Cancel").click()
        page.locator("#status").wait_for(state="hidden")
    finally:
        predictor.go.set()
    assert page.locator("#result").is_hidden()
