"""`dvc repro` under Prefect. DVC decides which stages run and in which order; each stage becomes a task run."""

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
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from pipelines.cli import BAD_SETTINGS, FAILED, SETTINGS_DIGEST, TRANSIENT, CommandError, settings_digest
from pipelines.environment import dvc_command, dvc_environment
from pipelines.flows.guard import PATIENCE, start_guard, stop_guard
from pipelines.workspace import PARAMS, REPORTS, keep_settings_in_lock
from qdformer.config.base import SettingsError
from qdformer.config.settings import Settings, load_settings, read_yaml
from qdformer.utils.files import write_rows

TIMINGS = REPORTS / "timings.csv"
RUNNING = re.compile(r"Running stage '(.+)':")
SKIPPED = re.compile(r"Stage '(.+)' (didn't change, skipping|is cached)")
EXITED = re.compile(r"exited with (-?\d+)")
STAGE_FAILED = re.compile(
    rb"^(\x1b\[\d*m)*ERROR(\x1b\[\d*m)*: failed to reproduce '.*': failed to run: .*exited with -?\d+.*(\r?\n)*", re.M
)
"""DVC's own line about a stage that failed. It is not shown: the stage has printed its error before it."""
TIME_LIMIT = float(os.environ.get("QDFORMER_TIME_LIMIT", 24 * 3600))
"""Seconds after which a run of the pipeline is stopped."""


class EditedError(CommandError):
    """The settings were edited during a run, which therefore stops after the stage that was running."""

    @property
    def message(self) -> str:
        return f"{self}; its result is kept with the settings that it was made with. Run the same command again"


class StageError(CommandError):
    """A stage (or DVC itself, if `stage` is empty) failed with the exit code `code`; `output` ends its error output."""

    def __init__(self, stage: str, code: int, output: str) -> None:
        super().__init__(stage, code, output)
        self.stage, self.code, self.output = stage, code, output
        self.exit_code = BAD_SETTINGS if code == BAD_SETTINGS else FAILED

    def __str__(self) -> str:
        return f"{self.stage or 'dvc'} failed with exit code {self.code}: {self.output}"

    @property
    def message(self) -> str:
        """One line without the reason, which the stage has printed itself."""
        return f"stage {self.stage} failed" if self.stage else "dvc failed"


def _is_worth_a_retry(task: Any, run: Any, state: State[Any]) -> bool:
    """Only a stage that waits for something outside of this machine is retried."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageError) and error.code == TRANSIENT


@task(
    name="dvc repro",
    retries=2,
    retry_delay_seconds=[5, 20],
    retry_condition_fn=_is_worth_a_retry,
    timeout_seconds=TIME_LIMIT,
    cache_policy=NO_CACHE,
)
def run_dvc_repro(workspace: Path, lock: int, targets: tuple[str, ...] = ()) -> dict[str, float]:
    """Run the workspace's stale stages; return the seconds of each stage that ran, also kept in `reports/timings.csv`.

    `lock` is the descriptor of `workspace_lock`, which DVC inherits. Raises `StageError`. However this call ends, it
    leaves no process behind, and the next call continues.
    """
    seconds: dict[str, float] = {}
    values, settings, stage, began = read_yaml(workspace / PARAMS), load_settings(workspace / PARAMS), "", time.time()
    try:
        with _dvc_repro(workspace, lock, targets, settings) as run:
            line = run.next_line()
            while line:
                if match := RUNNING.match(line):
                    stage, started = match[1], time.monotonic()
                    line = _stage.with_options(task_run_name=stage)(stage, run)
                    seconds[stage] = time.monotonic() - started
                    _save_timing(workspace, stage, seconds[stage])
                    if _was_edited(workspace, settings):
                        run.muted = True  # what DVC has begun since then is stopped
                        raise EditedError(f"params.yaml was edited while stage {stage} ran")
                else:
                    line = run.next_line()
            run.check("")
    except EditedError:
        keep_settings_in_lock(workspace, stage, values, began)
        raise
    return seconds


def _was_edited(workspace: Path, settings: Settings) -> bool:
    try:
        return load_settings(workspace / PARAMS) != settings
    except SettingsError:
        return True


@task(name="stage", cache_policy=NO_CACHE)
def _stage(name: str, run: _Repro) -> str:
    """Follow the output of one stage to its end; return the line after it (empty if DVC has ended)."""
    logger = get_run_logger()
    while line := run.next_line():
        if RUNNING.match(line) or SKIPPED.match(line):
            return line
        logger.info(line.rstrip())
    run.check(name)
    return line


class _Repro:
    """A running `dvc repro`. Its output and its error output are printed as they come."""

    def __init__(self, process: subprocess.Popen[str], errors: int) -> None:
        self.process = process
        self.tail = b""
        self.muted = False
        self._errors = errors
        self._echo = threading.Thread(target=self._echo_errors, daemon=True)
        self._echo.start()

    def next_line(self) -> str:
        """Read and print the next line of output; empty at the end."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        print(line, end="", flush=True)
        return line

    def check(self, stage: str) -> None:
        """Wait for DVC to end; raise `StageError` if it failed."""
        if code := self.process.wait():
            self._echo.join(timeout=5)
            lines = [line.strip() for line in re.split(r"[\r\n]+", self.tail.decode(errors="replace")) if line.strip()]
            exited = EXITED.search(lines[-1]) if lines else None
            raise StageError(stage, int(exited[1]) if exited else code, " · ".join(lines[-4:]) or "no message")

    def _echo_errors(self) -> None:
        with contextlib.suppress(OSError):  # a terminal that was closed reads as an error
            line_cut = False
            while chunk := os.read(self._errors, 4096):
                self.tail = (self.tail + chunk)[-4096:]
                shown, found = STAGE_FAILED.subn(b"", chunk)
                if line_cut:  # DVC writes the end of its line apart
                    shown = shown.lstrip(b"\r\n")
                line_cut = found > 0 and not chunk.endswith(b"\n")
                if not self.muted:
                    sys.stderr.buffer.write(shown)
                    sys.stderr.buffer.flush()
        os.close(self._errors)


@contextlib.contextmanager
def _dvc_repro(workspace: Path, lock: int, targets: tuple[str, ...], settings: Settings) -> Iterator[_Repro]:
    read, write = _error_channel()
    process = subprocess.Popen(
        [dvc_command(), "repro", *targets],
        cwd=workspace,
        env=dvc_environment() | {SETTINGS_DIGEST: f"{workspace.resolve()} {settings_digest(settings)}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=write,
        text=True,
        pass_fds=(lock,),
        start_new_session=True,  # DVC does not pass signals on, so its process group is stopped as a whole
    )
    os.close(write)
    guard = start_guard(process.pid)
    try:
        yield _Repro(process, read)
    finally:
        stop_group(process)
        stop_guard(guard)


def stop_group(process: subprocess.Popen[Any]) -> None:
    """End a process and its group: by SIGINT, and by SIGTERM and SIGKILL if it takes its time."""
    for kind, patience in PATIENCE:
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(process.pid, kind)
            process.wait(patience or None)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _error_channel() -> tuple[int, int]:
    """Descriptors to read and write the error output: of a terminal if ours is one, so that progress bars appear."""
    if not sys.stderr.isatty():
        return os.pipe()
    read, write = pty.openpty()
    fcntl.ioctl(write, termios.TIOCSWINSZ, fcntl.ioctl(sys.stderr, termios.TIOCGWINSZ, bytes(8)))
    return read, write


def _save_timing(workspace: Path, stage: str, seconds: float) -> None:
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    timings = {**read_timings(workspace), stage: (round(seconds, 1), finished)}
    rows = [{"stage": name, "seconds": taken, "finished": when} for name, (taken, when) in timings.items()]
    write_rows(workspace / TIMINGS, ["stage", "seconds", "finished"], rows)


def read_timings(workspace: Path) -> dict[str, tuple[float, str]]:
    """Seconds and UTC time of the last run of every stage that ever ran in the workspace."""
    path = workspace / TIMINGS
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["stage"]: (float(row["seconds"]), row["finished"]) for row in csv.DictReader(file)}
