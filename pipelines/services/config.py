"""Where the services listen and keep their state, and the file by which supervisor runs them."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.environment import PROJECT, tracking_environment
from qdformer.utils.digests import short_digest
from qdformer.utils.errors import InputError
from qdformer.utils.files import write_text

HOST = "127.0.0.1"
FOLDER = PROJECT / "services"
ARTIFACTS = PROJECT / "mlartifacts"
NAMES = ("prefect", "mlflow", "worker", "watch")
_PROGRAM = """
[program:{name}]
command={command}
directory={project}
autorestart=true
startsecs=5
startretries=10
stopasgroup=true
killasgroup=true
stopwaitsecs=30
redirect_stderr=true
stdout_logfile={folder}/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


@dataclass(frozen=True)
class Services:
    """Ports and stores, from the environment."""

    prefect_port: int
    mlflow_port: int
    store: str
    """The database of MLflow's server."""

    @property
    def prefect_api(self) -> str:
        return f"http://{HOST}:{self.prefect_port}/api"

    @property
    def tracking_uri(self) -> str:
        """MLflow's server as its clients see it; another server that the environment names is used as it is."""
        return self.store if is_server(self.store) else f"http://{HOST}:{self.mlflow_port}"

    @property
    def names(self) -> tuple[str, ...]:
        """The services to run: without MLflow's server if the environment names one that runs elsewhere."""
        return tuple(name for name in NAMES if name != "mlflow" or not is_server(self.store))

    def environment(self) -> dict[str, str]:
        """The variables of all services, laid over those of the caller."""
        return {
            "PREFECT_HOME": str(PROJECT / ".prefect"),
            "PREFECT_API_URL": self.prefect_api,
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH", "")))),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "PYTHONUNBUFFERED": "1",
        }


def read_services() -> Services:
    """The services as the environment describes them; raises `InputError` for a port that is none."""
    return Services(
        _port("PREFECT_SERVER_API_PORT", 4200),
        _port("MLFLOW_PORT", 5000),
        tracking_environment()["MLFLOW_TRACKING_URI"],
    )


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def socket_path() -> Path:
    """Supervisor's socket. It lies in the folder for temporary files, because its path may have only 107 characters."""
    return Path(tempfile.gettempdir(), f"qdformer-{os.getuid()}-{short_digest([PROJECT])}", "supervisor.sock")


def write_config(services: Services) -> Path:
    """Write supervisor's configuration and return its path."""
    python = _quoted(sys.executable)
    hosts = f"{HOST}:{services.mlflow_port},localhost:{services.mlflow_port}"
    origins = ",".join(f"http://{host}" for host in hosts.split(","))
    commands = {
        "prefect": f"{python} -m pipelines.flows.server {services.prefect_port} service",
        "mlflow": f"{python} -m mlflow server --host {HOST} --port {services.mlflow_port} --workers 1"
        f" --backend-store-uri {_quoted(services.store)} --artifacts-destination {_quoted(str(ARTIFACTS))}"
        # where commands that read the database without this server find the files of runs too
        f" --default-artifact-root {_quoted(ARTIFACTS.as_uri())}"
        f" --allowed-hosts {hosts} --cors-allowed-origins {origins}",
        "worker": f"{python} -m pipelines.services.worker",
        "watch": f"{python} -m pipelines.services.watch",
    }
    folder, control = _escaped(str(FOLDER)), _escaped(str(socket_path()))
    text = (
        f"[unix_http_server]\nfile={control}\nchmod=0600\n\n"
        f"[supervisord]\nlogfile={folder}/supervisord.log\npidfile={folder}/supervisord.pid\n\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\n"
        f"[supervisorctl]\nserverurl=unix://{control}\n"
    )
    for name in services.names:
        command, project = _escaped(commands[name]), _escaped(str(PROJECT))
        text += _PROGRAM.format(name=name, command=command, project=project, folder=folder)
    path = FOLDER / "supervisord.conf"
    write_text(path, text)
    return path


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise InputError(f"{variable}={text}: not a port; expected a number up to 65535")
    return int(text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
