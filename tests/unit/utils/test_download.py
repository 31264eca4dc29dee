"""Downloads: interrupted and resumed, changed in between, unreachable, or with another digest."""

from __future__ import annotations

import errno
import hashlib
import http.server
import threading

import pytest

from qdformer.utils.download import DownloadError, InterruptedDownloadError, download, is_url

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `content` with ranges and an ETag; each response ends after `cut` bytes if that is not 0."""

    def __init__(self) -> None:
        self.content, self.version, self.cut, self.ranges = CONTENT, '"1"', 0, []
        self.refuses = 0

    def __enter__(self) -> Server:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if outer.refuses:
                    return self.send_error(outer.refuses)
                wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
                outer.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
                if start and condition not in (None, outer.version):
                    start = 0
                if start >= len(outer.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(outer.content)}")
                    self.end_headers()
                    return None
                self.send_response(206 if start else 200)
                self.send_header("ETag", outer.version)
                self.send_header("Content-Length", str(len(outer.content) - start))
                self.end_headers()
                self.wfile.write(outer.content[start:][: outer.cut or None])
                return None

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.tar?key=1"
        return self

    def __exit__(self, *error) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    with Server() as instance:
        yield instance


def test_a_download_is_resumed_and_done_once(server, tmp_path):
    server.cut = 1000
    for _ in range(2):
        with pytest.raises(InterruptedDownloadError, match="they are kept, and another try resumes from them"):
            download(server.url, tmp_path, progress=False)
    server.cut = 0
    path = download(server.url, tmp_path, progress=False)
    assert path.read_bytes() == CONTENT and path.name.endswith("-set.tar")
    assert server.ranges == [None, "bytes=1000-", "bytes=2000-"]
    assert download(server.url, tmp_path, progress=False) == path and len(server.ranges) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_changed_in_between_is_downloaded_again(server, tmp_path):
    server.cut = 1000
    with pytest.raises(DownloadError):
        download(server.url, tmp_path, progress=False)
    server.content, server.version, server.cut = CONTENT[::-1], '"2"', 0
    assert download(server.url, tmp_path, progress=False).read_bytes() == CONTENT[::-1]


def test_a_complete_partial_file_is_used(server, tmp_path):
    server.cut = len(CONTENT)
    name = f"{DIGEST[:16]}-set.tar"
    (tmp_path / f"{name}.partial").write_bytes(CONTENT)
    assert download(server.url, tmp_path, DIGEST, progress=False).read_bytes() == CONTENT
    (tmp_path / name).rename(tmp_path / f"{name}.partial")
    server.content = CONTENT[:-1]  # the partial file is longer than the server's: not the same file
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        download(server.url, tmp_path, DIGEST, progress=False)


def test_another_digest_and_an_unreachable_server(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"SHA-256 is {DIGEST}, expected 12345678"):
        download(server.url, tmp_path, "12345678", progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InterruptedDownloadError, match="http://127.0.0.1:9/x: cannot be downloaded"):
        download("http://127.0.0.1:9/x", tmp_path, progress=False)
    assert is_url("https://a/b.zip") and not is_url("/a/b.zip") and not is_url("file:///a")


@pytest.mark.parametrize(("code", "again"), [(404, False), (403, False), (503, True), (429, True)])
def test_only_a_refusal_that_can_end_is_worth_another_try(server, tmp_path, code, again):
    server.refuses = code
    with pytest.raises(DownloadError, match=f"HTTP Error {code}") as raised:
        download(server.url, tmp_path, progress=False)
    assert isinstance(raised.value, InterruptedDownloadError) == again


def test_a_full_disk_is_not_worth_another_try(server, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(DownloadError, match="No space left") as raised:
        download(server.url, tmp_path, progress=False)
    assert not isinstance(raised.value, InterruptedDownloadError)
