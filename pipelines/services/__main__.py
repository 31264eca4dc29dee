"""The services in the background: `python -m pipelines.services {up,run,status,logs,down} [SERVICE]`."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from typing import Any

from pipelines.cli import CommandError, command_main
from pipelines.console import print_table
from pipelines.environment import PROJECT
from pipelines.services.config import FOLDER, HOST, NAMES, Services, read_services, socket_path, write_config
from pipelines.services.health import answer
from pipelines.services.watch import BEAT_SECONDS, HEARTBEAT
from qdformer.utils.processes import process_identity

HEALTHY_SECONDS = float(os.environ.get("QDFORMER_HEALTHY_SECONDS", 120))
"""How long `up` waits."""
STOP_SECONDS = 120.0


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(str(socket_path()))


class _UnixTransport(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _UnixConnection("localhost")


def supervisor() -> Any:
    """Supervisor's interface, or None if it does not run."""
    proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_UnixTransport())
    try:
        proxy.supervisor.getState()
    except (OSError, http.client.HTTPException):
        return None
    except xmlrpc.client.Fault as fault:
        raise CommandError(f"supervisor is stopping ({fault.faultString}); try again in a minute") from None
    return proxy.supervisor


def up() -> None:
    """Start what does not run, and wait until all of it is healthy. A second call changes nothing."""
    services = read_services()
    control = supervisor()
    if control is None:
        command, environment = _supervisord(services)
        if subprocess.run(command, cwd=PROJECT, env=environment).returncode:
            raise CommandError(f"supervisor did not start; see {FOLDER / 'supervisord.log'}")
        deadline = time.monotonic() + 20
        while (control := supervisor()) is None:
            if time.monotonic() > deadline:
                raise CommandError(f"supervisor does not answer; see {FOLDER / 'supervisord.log'}")
            time.sleep(0.2)
    for process in control.getAllProcessInfo():
        if process["statename"] in ("STOPPED", "EXITED", "FATAL"):
            control.startProcess(process["name"], False)
    started = time.monotonic()
    while True:
        rows = _rows(services, control)
        if all(row[2] == "healthy" for row in rows):
            break
        if time.monotonic() - started > HEALTHY_SECONDS:
            _show(rows)
            raise CommandError(f"not all services are healthy after {HEALTHY_SECONDS:.0f} s: make logs SERVICE=NAME")
        time.sleep(0.5)
    _show(rows)
    print(f"\nPrefect: http://{HOST}:{services.prefect_port}   MLflow: {services.tracking_uri}")


def run() -> None:
    """Become supervisor and run the services in the foreground until SIGTERM, for systemd and containers."""
    if supervisor() is not None:
        raise CommandError("the services run already; make down stops them")
    command, environment = _supervisord(read_services(), "--nodaemon")
    os.chdir(PROJECT)
    os.execve(command[0], command, environment)


def status() -> None:
    """Show each service; fail if one is not healthy."""
    control = supervisor()
    if control is None:
        raise CommandError("no service runs; make up starts them")
    rows = _rows(read_services(), control)
    _show(rows)
    if any(row[2] != "healthy" for row in rows):
        raise CommandError("not all services are healthy: make logs SERVICE=NAME")


def logs(service: str) -> None:
    """Print the end of the logs."""
    for name in [service] if service else NAMES:
        path = FOLDER / f"{name}.log"
        if path.is_file():
            print(f"--- {path}")
            print("".join(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[-100:]), end="")
        elif service:
            raise CommandError(f"{path}: no such log; expected SERVICE to be one of {', '.join(NAMES)}")


def down() -> None:
    """Stop all services; no process is left."""
    control = supervisor()
    if control is None:
        print("No service runs.")
        return
    pid = control.getPID()
    control.shutdown()
    deadline = time.monotonic() + STOP_SECONDS
    while process_identity(pid):
        if time.monotonic() > deadline:
            raise CommandError(f"supervisor (process {pid}) has not ended after {STOP_SECONDS:.0f} s")
        time.sleep(0.2)
    print("All services have stopped.")


def _supervisord(services: Services, *options: str) -> tuple[list[str], dict[str, str]]:
    """The command that starts supervisor, and its environment, once all is ready for it."""
    _require_free(services)
    socket_path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = write_config(services)
    environment = os.environ | services.environment()
    environment.pop("SUPERVISOR_SERVER_URL", None)
    return [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(config), *options], environment


def _rows(services: Services, control: Any) -> list[list[str]]:
    checks = {
        "prefect": lambda: answer(f"{services.prefect_api}/health") is not None,
        "mlflow": lambda: answer(f"{services.tracking_uri}/health") is not None,
        "worker": lambda: _worker_is_ready(services),
        "watch": lambda: HEARTBEAT.is_file() and time.time() - HEARTBEAT.stat().st_mtime < 4 * BEAT_SECONDS,
    }
    rows = []
    for process in sorted(control.getAllProcessInfo(), key=lambda one: NAMES.index(one["name"])):
        running = process["statename"] == "RUNNING"
        health = "healthy" if running and checks[process["name"]]() else "not healthy"
        rows.append([process["name"], process["statename"].lower(), health, process["description"]])
    return rows


def _show(rows: list[list[str]]) -> None:
    print_table("Services", ["service", "state", "health", "process"], rows)


def _worker_is_ready(services: Services) -> bool:
    """Whether the worker asks the server for the runs of its deployments."""
    found = answer(f"{services.prefect_api}/deployments/filter", b"{}")
    return found is not None and any(deployment["status"] == "READY" for deployment in json.loads(found))


def _require_free(services: Services) -> None:
    """Raise `CommandError` if another program has one of the ports."""
    ports = {"PREFECT_SERVER_API_PORT": services.prefect_port}
    if "mlflow" in services.names:
        ports["MLFLOW_PORT"] = services.mlflow_port
    for variable, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                raise CommandError(f"port {port} is taken; choose another one: {variable}=...") from None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.services", description=__doc__)
    parser.add_argument("command", choices=["up", "run", "status", "logs", "down"])
    parser.add_argument("service", nargs="?", default="", help="with logs: one of " + ", ".join(NAMES))
    arguments = parser.parse_args()
    if arguments.command == "logs":
        logs(arguments.service)
    else:
        {"up": up, "run": run, "status": status, "down": down}[arguments.command]()


if __name__ == "__main__":
    command_main(main)
