"""Messages reach a local receiver; one that fails is a warning without the address."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from pipelines.notify import notify


@pytest.fixture
def receiver():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if "fail" in self.path else 204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    received: list[dict[str, str]] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def test_a_message_is_delivered(receiver, monkeypatch):
    url, received = receiver
    monkeypatch.setenv("QDFORMER_WEBHOOK", url)
    assert notify("promotion", "qdformer-toy version 2")
    assert received == [{"event": "promotion", "text": "qdformer-toy version 2"}]


def test_without_an_address_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("QDFORMER_WEBHOOK", raising=False)
    assert not notify("promotion", "text")


@pytest.mark.parametrize("address", ["{url}/fail?key=secret", "http://127.0.0.1:9/secret", "secret"])
def test_a_failure_is_a_warning_that_shows_no_secret(receiver, monkeypatch, capsys, address):
    monkeypatch.setenv("QDFORMER_WEBHOOK", address.format(url=receiver[0]))
    assert not notify("failure", "text")
    told = capsys.readouterr().err
    assert "the message 'failure' was not delivered" in told and "secret" not in told
