"""Whether a server answers."""

from __future__ import annotations

import http.client
import time
import urllib.request

WAIT_SECONDS = 300.0
"""How long a service waits for another one: the start of a server takes a minute on a busy machine."""


def answer(url: str, data: bytes | None = None) -> bytes | None:
    """The body of the answer to a request, to a POST of JSON if there is `data`; None without an answer."""
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.read()
    except (OSError, http.client.HTTPException):
        return None


def wait_for(url: str) -> None:
    """Wait until a server answers at `url`; raises `TimeoutError` after `WAIT_SECONDS`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while answer(url) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url}: no answer within {WAIT_SECONDS:.0f} s")
        time.sleep(0.5)
