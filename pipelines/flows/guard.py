"""Runs a process group that ends with the process that started it, even if that one is killed.

A second process waits for the end of the pipe to the parent, and then stops the group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

PATIENCE = ((signal.SIGINT, 15.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 0.0))
"""How the group is stopped: the signals, and the seconds it may take after each."""


def start_guard(group: int) -> subprocess.Popen[bytes]:
    """Start the process that stops the process group `group` when this one ends; kill it when it is not needed."""
    command = [sys.executable, "-S", __file__, str(group)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/")


def stop_guard(guard: subprocess.Popen[bytes]) -> None:
    """End the guard without stopping its group."""
    guard.kill()
    guard.wait()
    if guard.stdin:
        guard.stdin.close()


def _watch(group: int) -> None:
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)
    sys.stdin.buffer.read()  # returns when the parent has ended
    with contextlib.suppress(ProcessLookupError):
        for kind, seconds in PATIENCE:
            os.killpg(group, kind)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.1)


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
