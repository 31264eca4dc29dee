"""Refuses requests that a foreign web page or host name leads to a server on the loopback interface."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_POLICY_VIOLATION = 1008  # a close code of WebSocket


class Gate:
    """An ASGI application in front of `app` that answers only requests to the addresses `hosts` (HOST:PORT).

    The header Host must name one of them, and the header Origin, which browsers add to requests of web pages, must be
    one of their pages. This stops other sites' pages, also those that use DNS rebinding.
    """

    def __init__(self, app: App, hosts: Iterable[str]) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.origins = frozenset(f"http://{host}" for host in self.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_allowed(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"foreign Host or Origin\n"})

    def _is_allowed(self, scope: Scope) -> bool:
        headers = [(key.lower(), value.decode("latin-1")) for key, value in scope["headers"]]
        hosts = [value for key, value in headers if key == b"host"]
        origins = [value for key, value in headers if key == b"origin"]
        return len(hosts) == 1 and hosts[0].lower() in self.hosts and all(value in self.origins for value in origins)


def loopback_hosts(port: int) -> tuple[str, ...]:
    """The addresses of a port on the loopback interface."""
    return tuple(f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]"))
