"""The page is open to other machines only with a key."""

from __future__ import annotations

import sys

import pytest

from pipelines import serve
from qdformer.utils.errors import InputError

KEY = "correct-horse-battery"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gpu-server", ""])
def test_other_interfaces_demand_a_key_before_the_model_is_loaded(host, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve", "--host", host])
    monkeypatch.setattr(serve, "load_segmenter", lambda *arguments: pytest.fail("the model was loaded"))
    monkeypatch.delenv(serve.API_KEY, raising=False)
    with pytest.raises(InputError, match=f"--host {host}: other machines reach it; expected a key .*QDFORMER_API_KEY"):
        serve.main()
    monkeypatch.setenv(serve.API_KEY, KEY)
    assert serve.read_api_key(host) == KEY


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_the_loopback_interface_needs_none_but_takes_one(host, monkeypatch):
    monkeypatch.delenv(serve.API_KEY, raising=False)
    assert serve.read_api_key(host) == ""
    monkeypatch.setenv(serve.API_KEY, KEY)
    assert serve.read_api_key(host) == KEY


@pytest.mark.parametrize("key", ["short", "schlüssel-für-alle-leute"])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused_without_showing_it(key, monkeypatch):
    monkeypatch.setenv(serve.API_KEY, key)
    with pytest.raises(InputError, match="QDFORMER_API_KEY: expected at least 16 ASCII characters") as error:
        serve.read_api_key("127.0.0.1")
    assert key not in str(error.value)


@pytest.mark.parametrize(("host", "key", "served"), [("127.0.0.2", "", "127.0.0.2"), ("0.0.0.0", KEY, "*")])
def test_the_key_and_the_interface_reach_the_application(host, key, served, monkeypatch):
    from types import SimpleNamespace

    import uvicorn

    from qdformer.inference.service import app

    made = {}

    def make_app(queue, classes, examples, hosts, api_key):
        made.update(hosts=hosts, api_key=api_key)

    monkeypatch.setattr(sys, "argv", ["serve", "--host", host])
    monkeypatch.setenv(serve.API_KEY, key)
    monkeypatch.setattr(serve, "open_workspace", lambda name: None)
    monkeypatch.setattr(serve, "load_segmenter", lambda *arguments: SimpleNamespace(classes=("dog",)))
    monkeypatch.setattr(app, "make_app", make_app)
    monkeypatch.setattr(uvicorn.Config, "bind_socket", lambda self: SimpleNamespace(getsockname=lambda: (host, 8000)))
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    serve.main()
    assert served in made["hosts"] and made["api_key"] == key
