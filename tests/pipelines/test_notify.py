"""Messages reach a local receiver; one that fails is a warning without the address."""

from __future__ import annotations

import pytest

from pipelines.notify import notify


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
