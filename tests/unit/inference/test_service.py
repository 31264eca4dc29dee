"""The service: uploads within limits, one job at a time, private files, and its OpenAPI description."""

from __future__ import annotations

import contextlib
import dataclasses
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient

from qdformer.inference.service.app import ResultFile, make_app
from qdformer.inference.service.jobs import JobQueue, Limits
from qdformer.utils.errors import InputError
from tests.helpers.video import write_video

UNKNOWN = "0" * 32


class Worker:
    """In place of the segmentation: reports two seconds, and waits in between if it is told to."""

    def __init__(self) -> None:
        self.go, self.started, self.names, self.at_once, self.most = threading.Event(), threading.Event(), [], 0, 0
        self.go.set()

    def __call__(self, video, name, folder, on_second) -> None:
        assert video.is_file() and not folder.exists()
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            self.names.append(name)
            on_second(1)
            self.started.set()
            assert self.go.wait(20)
            on_second(2)
            if name == "bad":
                raise InputError(f"{video}: holds no frames")
            if name == "bug":
                raise ZeroDivisionError
            folder.mkdir()
            for file in ResultFile:
                (folder / file.value).write_text(f"{file.value} of {name}")
        finally:
            self.at_once -= 1


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", 2).read_bytes()


@contextlib.contextmanager
def serving(worker, examples=None, api_key="", **limits) -> Iterator[tuple[TestClient, JobQueue]]:
    queue = JobQueue(worker, Limits(**limits))
    app = make_app(queue, ("bell", "dog"), examples or {}, api_key=api_key)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client, queue


def ended(client: TestClient, job_id: str) -> dict:
    deadline = time.monotonic() + 20
    while (job := client.get(f"/api/jobs/{job_id}").json())["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


def test_a_video_is_segmented_and_its_files_can_be_downloaded(worker, video):
    with serving(worker) as (client, queue):
        response = client.post("/api/jobs", params={"name": "../../my <clip>.mp4"}, content=video)
        assert response.status_code == 202 and response.json()["seconds"] == 2
        job = ended(client, response.json()["id"])
        assert (job["state"], job["done"], job["error"]) == ("done", 2, "")
        assert job["name"] == "../../my <clip>.mp4" and job["files"] == [file.value for file in ResultFile]
        for file in job["files"]:
            assert client.get(f"/api/jobs/{job['id']}/{file}").text == f"{file} of {job['name']}"
        folders = list(queue.root.iterdir())
        assert [folder.name for folder in folders] == [job["id"]]  # no part of the name became a path
        assert [path.name for path in folders[0].iterdir()] == ["results"]  # the upload is gone
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (queue.root, *folders))
        root = queue.root
    assert not root.exists()


def test_the_page_and_what_the_service_accepts(worker):
    with serving(worker, max_bytes=77, max_seconds=5) as (client, _):
        page = client.get("/")
        assert "Drop a video here" in page.text and "default-src 'self'" in page.headers["content-security-policy"]
        assert "javascript" in client.get("/page.js").headers["content-type"]
        service = client.get("/api/service").json()
        assert service["classes"] == ["bell", "dog"] and (service["max_bytes"], service["max_seconds"]) == (77, 5)


def test_one_at_a_time_in_order_and_no_more_than_may_wait(worker, video):
    worker.go.clear()
    with serving(worker, max_waiting=3) as (client, _):
        jobs = [client.post("/api/jobs", params={"name": name}, content=video).json() for name in "abc"]
        assert worker.started.wait(20)
        assert [client.get(f"/api/jobs/{job['id']}").json()["ahead"] for job in jobs] == [0, 1, 2]
        full = client.post("/api/jobs", params={"name": "d"}, content=video)
        assert full.status_code == 429 and full.json()["detail"].startswith("3 videos wait already")
        assert client.get(f"/api/jobs/{jobs[2]['id']}/result.json").status_code == 409
        worker.go.set()
        assert [ended(client, job["id"])["state"] for job in jobs] == ["done"] * 3
    assert worker.names == ["a", "b", "c"] and worker.most == 1


def test_uploads_that_are_under_way_count_as_waiting(worker, video):
    with serving(worker, max_waiting=2) as (client, queue), queue.new_folder(), queue.new_folder():
        full = client.post("/api/jobs", params={"name": "a"}, content=video)
        assert full.status_code == 429 and full.json()["detail"].startswith("2 videos wait already")
    with serving(worker, max_waiting=2) as (client, queue):
        with pytest.raises(ConnectionError), queue.new_folder():
            raise ConnectionError
        for _ in range(3):
            with queue.new_folder():
                pass
        assert client.post("/api/jobs", params={"name": "a"}, content=video).status_code == 202


def test_uploads_beyond_the_limits_are_refused_and_leave_nothing(worker, video):
    with serving(worker, max_bytes=len(video) - 1) as (client, queue):
        for content in (video, iter([video[:100], video[100:]])):  # the second states no length
            response = client.post("/api/jobs", params={"name": "a"}, content=content)
            assert response.status_code == 413 and str(len(video) - 1) in response.json()["detail"]
        assert not list(queue.root.iterdir())
    for limits, words in (({"max_seconds": 1}, "longer than 1 s"), ({"max_pixels": 3000}, "64 x 48 pixels")):
        with serving(worker, **limits) as (client, queue):
            response = client.post("/api/jobs", params={"name": "a"}, content=video)
            assert response.status_code == 413 and words in response.json()["detail"]
            assert not list(queue.root.iterdir())
    assert not worker.names


def test_a_video_whose_header_states_no_length_is_stopped_at_the_limit(worker, tmp_path, monkeypatch, video):
    import qdformer.inference.service.jobs as jobs

    real = jobs.read_info
    monkeypatch.setattr(jobs, "read_info", lambda path: dataclasses.replace(real(path), seconds=None))
    with serving(worker, max_seconds=1) as (client, _):
        job = ended(client, client.post("/api/jobs", params={"name": "a"}, content=video).json()["id"])
        assert job["state"] == "failed" and "longer than 1 s" in job["error"]


@pytest.mark.parametrize("content", [b"", b"no video\n" * 300, b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"\0" * 5000])
def test_what_is_no_video_is_refused_without_our_paths(worker, content):
    with serving(worker) as (client, queue):
        response = client.post("/api/jobs", params={"name": "notes.txt"}, content=content)
        assert response.status_code == 400 and response.json()["detail"].startswith("notes.txt: ")
        assert str(queue.root) not in response.text and not list(queue.root.iterdir())


def test_a_failure_is_stated_and_does_not_stop_the_service(worker, video, capfd):
    with serving(worker) as (client, queue):
        for name, error in (("bad", "bad: holds no frames"), ("bug", "bug: the segmentation failed"), ("good", "")):
            job = ended(client, client.post("/api/jobs", params={"name": name}, content=video).json()["id"])
            assert job["error"].startswith(error) and str(queue.root) not in job["error"]
            assert job["state"] == ("done" if name == "good" else "failed")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_jobs_are_removed_after_their_time_or_at_once(worker, video):
    with serving(worker, keep_seconds=0.2) as (client, queue):
        job = client.post("/api/jobs", params={"name": "a"}, content=video).json()
        deadline = time.monotonic() + 20
        while client.get(f"/api/jobs/{job['id']}").status_code != 404 or list(queue.root.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    worker.go.clear()
    worker.started.clear()
    with serving(worker) as (client, queue):
        running, waiting = (client.post("/api/jobs", params={"name": n}, content=video).json()["id"] for n in "ab")
        assert worker.started.wait(20)
        for job_id in (waiting, running):
            assert client.delete(f"/api/jobs/{job_id}").status_code == 204
            assert client.get(f"/api/jobs/{job_id}").status_code == 404
        worker.go.set()
        deadline = time.monotonic() + 20
        while list(queue.root.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.delete(f"/api/jobs/{running}").status_code == 404


def test_other_sites_and_other_host_names_are_refused(worker, video):
    with serving(worker) as (client, _):
        for origin, status in (("http://evil.example", 403), ("http://127.0.0.1", 202)):
            headers = {"origin": origin}
            assert client.post("/api/jobs?name=a", content=video, headers=headers).status_code == status
        assert client.get("/api/service", headers={"host": "evil.example"}).status_code == 400


def test_a_service_with_a_key_answers_only_those_who_have_it(worker, video):
    key = "correct-horse-battery"
    with serving(worker, api_key=key) as (client, queue):
        for path in ("/", "/page.js", "/openapi.json", "/api/service", f"/api/jobs/{UNKNOWN}"):
            refused = client.get(path)
            assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
        for wrong in (f"Bearer {key}x", "Bearer ", f"Token {key}", key, "Basic %%%", "Basic /w=="):
            assert client.get("/api/service", headers={"authorization": wrong}).status_code == 401
        assert client.get("/api/service", auth=("anyone", key[:-1])).status_code == 401
        assert client.post("/api/jobs?name=a", content=video).status_code == 401
        assert worker.names == []
        assert client.get("/api/service", auth=("anyone", key)).json()["classes"] == ["bell", "dog"]
        headers = {"authorization": f"Bearer {key}"}
        assert client.post("/api/jobs?name=a", content=video, headers=headers).status_code == 202
        foreign = headers | {"origin": "http://evil.example"}
        assert client.post("/api/jobs?name=b", content=video, headers=foreign).status_code == 403


def test_paths_of_clients_are_not_used(worker, video):
    with serving(worker) as (client, _):
        job = ended(client, client.post("/api/jobs", params={"name": "a"}, content=video).json()["id"])
        for file in ("upload", "..%2Fupload", "%2Fetc%2Fpasswd", "results"):
            assert client.get(f"/api/jobs/{job['id']}/{file}").status_code in (404, 422)
        for job_id in ("..", "A" * 32, "x"):
            assert client.get(f"/api/jobs/{job_id}/result.json").status_code in (404, 422)
        assert client.get(f"/api/jobs/{UNKNOWN}/result.json").status_code == 404


def test_examples(worker, video, tmp_path):
    (tmp_path / "a.mp4").write_bytes(video)
    with serving(worker, {"a dog": tmp_path / "a.mp4"}) as (client, _):
        assert client.get("/api/service").json()["examples"] == ["a dog"]
        assert ended(client, client.post("/api/examples/0").json()["id"])["name"] == "a dog"
        assert client.post("/api/examples/1").status_code == 404
    assert Path(tmp_path / "a.mp4").is_file()


@contextlib.contextmanager
def listening(app) -> Iterator[str]:
    """The application on a free port of the loopback interface; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_the_api_is_as_its_description_says(worker, tmp_path, video):
    """Schemathesis generates requests from the OpenAPI description and checks each answer against it."""
    (tmp_path / "a.mp4").write_bytes(video)
    app = make_app(JobQueue(worker, Limits(max_waiting=5)), ("bell",), {"a dog": tmp_path / "a.mp4"})
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", "--max-examples=12", "--seed=0"]
    # Random bytes are rarely a video, and Starlette lists in "Allow" the methods of the first route of a path only.
    command += ["--exclude-checks=positive_data_acceptance,allow_header_conformance"]
    with listening(app) as address:
        done = subprocess.run(
            [*command, f"{address}/openapi.json"], cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "POST /api/jobs" in done.stdout or "Tested: 6" in done.stdout or "passed" in done.stdout, done.stdout
