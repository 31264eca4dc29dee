"""Recognizing processes across restarts, and ending a process with the one that started it (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_STATE, _START = 0, 19  # fields of /proc/PID/stat after the name


def process_identity(pid: int) -> str:
    """A process id with its start in ticks since the boot, and the boot's id; '' if no such process runs.

    Ids are reused, and a clock that is set changes start times in seconds, but not these.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return "" if fields[_STATE] in "ZX" else f"{pid} {fields[_START]} {boot}"


def is_alive(identity: str) -> bool:
    """Whether the process with this `process_identity` runs on this machine."""
    pid = identity.partition(" ")[0]
    return pid.isdecimal() and process_identity(int(pid)) == identity


def end_with_parent(kind: signal.Signals = signal.SIGTERM) -> None:
    """Let the kernel send `kind` to this process when the thread that started it ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(kind))
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), kind)


def holders(path: Path) -> list[int]:
    """The ids of this user's processes that have the file open."""
    wanted = path.stat()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            entries = list((process / "fd").iterdir())
        except OSError:  # it ended, or belongs to another user
            continue
        for entry in entries:
            with contextlib.suppress(OSError):  # it was closed
                opened = entry.stat()
                if (opened.st_dev, opened.st_ino) == (wanted.st_dev, wanted.st_ino):
                    found.append(int(process.name))
                    break
    return sorted(found)
