"""The videos that wait for segmentation, their progress and their files, in a private folder.

One thread works on one job at a time, in the order of arrival. A job's folder has a random name, and the file names in
it are fixed: nothing that a client sends becomes part of a path. A finished job is removed after `keep_seconds`.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType

from qdformer.inference.video import read_info
from qdformer.utils.errors import InputError


class State(StrEnum):
    """Where a job is: it waits, is worked on, and ends in one of the last two."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class LimitError(InputError):
    """A video is larger, longer or of higher resolution than the limits allow."""


class QueueFullError(InputError):
    """As many jobs wait as may wait."""


class _Removed(Exception):
    """The job that is being worked on was removed."""


@dataclass(frozen=True)
class Limits:
    """What is accepted, and for how long results are kept."""

    max_bytes: int = 200 * 2**20
    max_seconds: int = 600
    max_pixels: int = 4096 * 2304
    max_waiting: int = 10
    keep_seconds: float = 3600.0


@dataclass
class Job:
    """A video and its segmentation. `name` is the client's name of the file, which is only shown."""

    id: str
    name: str
    folder: Path
    state: State = State.WAITING
    seconds: int | None = None
    """Length of the video, None if its header does not say."""
    done: int = 0
    """Seconds that are segmented."""
    error: str = ""
    ended: float | None = None
    removed: bool = field(default=False, repr=False)

    @property
    def video(self) -> Path:
        return self.folder / "upload"

    @property
    def results(self) -> Path:
        return self.folder / "results"


Work = Callable[[Path, str, Path, Callable[[int], None]], None]
"""Segments a video: takes its path, its shown name, the folder to create with the results, and a function to be called
with the number of finished seconds."""


class JobQueue:
    """Runs jobs one at a time while its `with` block lasts; the folder of all jobs is removed at its end."""

    def __init__(self, work: Work, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._work, self._jobs = work, dict[str, Job]()
        self._changed, self._stopped = threading.Condition(), False
        self._uploading = 0
        self._thread = threading.Thread(target=self._run, name="segmentation", daemon=True)

    def __enter__(self) -> JobQueue:
        self.root = Path(tempfile.mkdtemp(prefix="qdformer-"))  # for this user only
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            for job in self._jobs.values():
                job.removed = True
            self._changed.notify_all()
        self._thread.join()
        shutil.rmtree(self.root, ignore_errors=True)

    @contextmanager
    def new_folder(self) -> Iterator[Path]:
        """A new folder for an upload, which is removed if the block raises an error. Raises `QueueFullError`."""
        with self._changed:
            if self.position(None) + self._uploading >= self.limits.max_waiting:
                raise QueueFullError(f"{self.limits.max_waiting} videos wait already; try again later")
            self._uploading += 1
        folder = self.root / secrets.token_hex(16)
        try:
            folder.mkdir(mode=0o700)
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            with self._changed:
                self._uploading -= 1

    def add(self, folder: Path, name: str) -> Job:
        """Queue the video `upload` in a folder of `new_folder`.

        Raises `VideoError` if it cannot be read, and `LimitError` if it is too long or too large.
        """
        job = Job(folder.name, name, folder)
        try:
            info = read_info(job.video)
        except InputError as error:
            raise type(error)(self._shown(job, error)) from None
        if info.width * info.height > self.limits.max_pixels:
            raise LimitError(f"{name}: {info.width} x {info.height} pixels; at most {self.limits.max_pixels} in all")
        if info.seconds is not None:
            job.seconds = max(1, round(info.seconds))
            self._check_length(job, job.seconds)
        with self._changed:
            self._jobs[job.id] = job
            self._changed.notify_all()
        return job

    def find(self, job_id: str) -> Job | None:
        """The job, or None if there is none or it was removed."""
        with self._changed:
            return self._jobs.get(job_id)

    def position(self, job: Job | None) -> int:
        """The number of jobs that are to be worked on before this one, or before one that is added now."""
        with self._changed:
            unfinished = [own.id for own in self._jobs.values() if own.state in (State.WAITING, State.RUNNING)]
        return unfinished.index(job.id) if job is not None and job.id in unfinished else len(unfinished)

    def remove(self, job_id: str) -> bool:
        """Remove a job and its files; one that is being worked on is stopped. Returns whether there was one."""
        with self._changed:
            job = self._jobs.pop(job_id, None)
            if job is None:
                return False
            job.removed = True
            running = job.state is State.RUNNING
        if not running:  # otherwise the thread removes it
            shutil.rmtree(job.folder, ignore_errors=True)
        return True

    def remove_old(self) -> None:
        """Remove the jobs that ended more than `keep_seconds` ago."""
        now = time.monotonic()
        with self._changed:
            old = [job.id for job in self._jobs.values() if job.ended and now - job.ended > self.limits.keep_seconds]
        for job_id in old:
            self.remove(job_id)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._work(job.video, job.name, job.results, partial(self._on_second, job))
                self._end(job, State.DONE)
            except _Removed:
                pass
            except InputError as error:
                self._end(job, State.FAILED, self._shown(job, error))
            except Exception:  # a failure of one job must not stop the service
                traceback.print_exc(file=sys.stderr)
                self._end(job, State.FAILED, f"{job.name}: the segmentation failed; the log of the server says why")
            if job.removed:
                shutil.rmtree(job.folder, ignore_errors=True)

    def _next(self) -> Job | None:
        """Wait for the next job, and remove old ones meanwhile; None at the end."""
        while True:
            self.remove_old()
            with self._changed:
                if self._stopped:
                    return None
                waiting = next((job for job in self._jobs.values() if job.state is State.WAITING), None)
                if waiting is not None:
                    waiting.state = State.RUNNING
                    return waiting
                self._changed.wait(timeout=min(10.0, self.limits.keep_seconds))

    def _on_second(self, job: Job, done: int) -> None:
        if job.removed:
            raise _Removed
        job.done = done
        self._check_length(job, done)

    def _check_length(self, job: Job, seconds: int) -> None:
        if seconds > self.limits.max_seconds:
            raise LimitError(f"{job.name}: longer than {self.limits.max_seconds} s, the limit of this service")

    def _end(self, job: Job, state: State, error: str = "") -> None:
        job.video.unlink(missing_ok=True)
        with self._changed:
            job.state, job.error, job.ended = state, error, time.monotonic()

    def _shown(self, job: Job, error: InputError) -> str:
        """The message with the client's name of the file in place of ours."""
        return str(error).replace(str(job.video), job.name).replace(str(self.root), "")
