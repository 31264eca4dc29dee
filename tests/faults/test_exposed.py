"""The servers answer their own pages and clients, and nobody else."""

from __future__ import annotations

import shlex

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from pipelines.services import config
from pipelines.services.gate import Gate, loopback_hosts

OWN, FOREIGN = "127.0.0.1:4200", "evil.example"


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()

    @app.get("/api/secret")
    async def secret() -> str:
        return "secret"

    @app.websocket("/api/events")
    async def events(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("secret")
        await socket.close()

    return TestClient(Gate(app, loopback_hosts(4200)), base_url=f"http://{OWN}")


@pytest.mark.parametrize("host", [OWN, "localhost:4200", "[::1]:4200", "LOCALHOST:4200"])
def test_own_addresses_are_answered(client, host):
    assert client.get("/api/secret", headers={"Host": host}).text == '"secret"'
    assert client.get("/api/secret", headers={"Host": host, "Origin": f"http://{OWN}"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": FOREIGN},
        {"Host": f"{FOREIGN}:4200"},
        {"Host": f"{OWN}.{FOREIGN}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:5000"},
        {"Host": ""},
        {"Origin": f"http://{FOREIGN}"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:5000"},
        {"Origin": f"https://{OWN}"},
        {"Origin": f"http://{OWN}.{FOREIGN}"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/api/secret", "/api/../api/secret", "/api/secret#x", "//api/secret"])
def test_foreign_hosts_and_pages_are_refused(client, headers, path):
    for method in ("GET", "POST", "OPTIONS", "DELETE"):
        refused = client.request(method, path, headers=headers)
        assert refused.status_code == 403 and "secret" not in refused.text
        assert "access-control-allow-origin" not in refused.headers


def test_events_are_for_own_pages_only(client):
    with client.websocket_connect("/api/events", headers={"Host": OWN}) as socket:
        assert socket.receive_text() == "secret"
    for headers in ({"Host": FOREIGN}, {"Host": OWN, "Origin": f"http://{FOREIGN}"}):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/events", headers=headers):
            pass


def test_the_services_listen_on_loopback_and_their_settings_do_not_move_them(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "FOLDER", tmp_path)
    for name, value in {"PREFECT_SERVER_API_HOST": "0.0.0.0", "MLFLOW_HOST": "0.0.0.0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    text = config.write_config(config.Services(4200, 5000, "sqlite:///mlflow.db")).read_text()
    (command,) = [line for line in text.splitlines() if "mlflow server" in line]
    words = shlex.split(command)
    assert words[words.index("--host") + 1] == config.HOST == "127.0.0.1"
    assert words[words.index("--allowed-hosts") + 1] == "127.0.0.1:5000,localhost:5000"
    assert words[words.index("--cors-allowed-origins") + 1] == "http://127.0.0.1:5000,http://localhost:5000"
    assert "[inet_http_server]" not in text and "chmod=0600" in text
