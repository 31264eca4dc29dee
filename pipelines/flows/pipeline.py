"""`dvc repro` under Prefect: what is stale and in which order is DVC's; each stage it runs becomes a task run."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from pipelines.cli import BAD_SETTINGS
from pipelines.workspace import dvc_command, tracking_environment

RUNNING = re.compile(r"Running stage '(.+)':")
SKIPPED = re.compile(r"Stage '(.+)' (didn't change, skipping|is cached)")
EXITED = re.compile(r"exited with (-?\d+)")
TIME_LIMIT = float(os.environ.get("QDFORMER_TIME_LIMIT", 24 * 3600))
"""Seconds after which a run of the pipeline is given up."""
GRACE = 15
"""Seconds that an interrupted stage has to stop by itself."""


class StageError(RuntimeError):
    """A stage (or DVC itself, where `stage` is empty) ended with an error. `code` is its exit code."""

    def __init__(self, stage: str, code: int, message: str) -> None:
        super().__init__(stage, code, message)
        self.stage, self.code, self.message = stage, code, message

    def __str__(self) -> str:
        return f"{self.stage or 'dvc'} failed with exit code {self.code}: {self.message}"


def _may_pass_next_time(task, run, state) -> bool:
    """Only what comes over a network is worth another try; wrong settings never are."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageError) and error.stage == "download" and error.code != BAD_SETTINGS


@task(
    name="dvc repro",
    retries=2,
    retry_delay_seconds=[5, 20],
    retry_condition_fn=_may_pass_next_time,
    timeout_seconds=TIME_LIMIT,
    cache_policy=NO_CACHE,
)
def run_dvc_repro(workspace: Path, lock: int, targets: tuple[str, ...] = ()) -> dict[str, float]:
    """Run what is stale in the workspace; return the seconds of each stage that ran.

    They are kept in `reports/timings.csv` too. `lock` is the descriptor of `workspace_lock`; DVC
    holds it with us. Raises `StageError`. However this is left, no process of it stays behind, and
    the same call goes on from there.
    """
    seconds: dict[str, float] = {}
    with _dvc_repro(workspace, lock, targets) as run:
        line = run.next_line()
        while line:
            if match := RUNNING.match(line):
                started = time.monotonic()
                line = _stage.with_options(task_run_name=match[1])(match[1], run)
                seconds[match[1]] = time.monotonic() - started
                _save_timing(workspace, match[1], seconds[match[1]])
            else:
                line = run.next_line()
        run.check("")
    return seconds


@task(name="stage", cache_policy=NO_CACHE)
def _stage(name: str, run: _Repro) -> str:
    """Follow one stage to its end; return the line after it (empty: DVC has ended)."""
    logger = get_run_logger()
    while line := run.next_line():
        if RUNNING.match(line) or SKIPPED.match(line):
            return line
        logger.info(line.rstrip())
    run.check(name)
    return line


class _Repro:
    """A running `dvc repro`: its output line by line (echoed), and the end of its error output (echoed as it comes)."""

    def __init__(self, process: subprocess.Popen, errors: int) -> None:
        self.process = process
        self.tail = b""
        self._errors = errors
        self._echo = threading.Thread(target=self._echo_errors, daemon=True)
        self._echo.start()

    def next_line(self) -> str:
        line = self.process.stdout.readline()
        print(line, end="", flush=True)
        return line

    def check(self, stage: str) -> None:
        if code := self.process.wait():
            self._echo.join(timeout=5)
            lines = [line.strip() for line in re.split(r"[\r\n]+", self.tail.decode(errors="replace")) if line.strip()]
            exited = EXITED.search(lines[-1]) if lines else None
            raise StageError(stage, int(exited[1]) if exited else code, " · ".join(lines[-4:]) or "no message")

    def _echo_errors(self) -> None:
        with contextlib.suppress(OSError):  # a terminal that was closed reads as an error
            while chunk := os.read(self._errors, 4096):
                self.tail = (self.tail + chunk)[-4096:]
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
        os.close(self._errors)


@contextlib.contextmanager
def _dvc_repro(workspace: Path, lock: int, targets: tuple[str, ...]) -> Iterator[_Repro]:
    read, write = _error_channel()
    process = subprocess.Popen(
        [dvc_command(), "repro", *targets],
        cwd=workspace,
        env={**os.environ, **tracking_environment(), "PATH": _path(), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=write,
        text=True,
        pass_fds=(lock,),
        start_new_session=True,  # DVC does not pass signals on: its group is stopped as a whole
    )
    os.close(write)
    try:
        yield _Repro(process, read)
    finally:
        _stop_group(process)


def _stop_group(process: subprocess.Popen) -> None:
    for kind, patience in ((signal.SIGINT, GRACE), (signal.SIGTERM, 5), (signal.SIGKILL, None)):
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(process.pid, kind)
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _error_channel() -> tuple[int, int]:
    """Ends to read and write the error output: a terminal if ours is one, so that progress bars show."""
    if not sys.stderr.isatty():
        return os.pipe()
    read, write = pty.openpty()
    fcntl.ioctl(write, termios.TIOCSWINSZ, fcntl.ioctl(sys.stderr, termios.TIOCGWINSZ, bytes(8)))
    return read, write


def _path() -> str:
    return os.pathsep.join((str(Path(dvc_command()).parent), os.environ.get("PATH", os.defpath)))


def _save_timing(workspace: Path, stage: str, seconds: float) -> None:
    path = workspace / "reports" / "timings.csv"
    timings = {**read_timings(workspace), stage: (round(seconds, 1), datetime.now(UTC).isoformat(timespec="seconds"))}
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("stage", "seconds", "finished")])
        csv.writer(file, lineterminator="\n").writerows((name, *rest) for name, rest in timings.items())
    os.replace(partial, path)


def read_timings(workspace: Path) -> dict[str, tuple[float, str]]:
    """For every stage ever run in the workspace: seconds and UTC time of its last run."""
    path = workspace / "reports" / "timings.csv"
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["stage"]: (float(row["seconds"]), row["finished"]) for row in csv.DictReader(file)}
