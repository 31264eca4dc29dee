"""Identities of processes, and the end of a process with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from qdformer.utils.processes import holders, is_alive, process_identity


def test_an_identity_ends_with_its_process():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    assert identity.startswith(f"{child.pid} ") and is_alive(identity)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie has ended too
    assert not is_alive(identity)
    child.wait()
    assert not is_alive(identity) and not is_alive("") and not is_alive("unknown")
    own = process_identity(os.getpid())
    assert is_alive(own) and not is_alive(own.replace(own.split()[1], "1"))  # a reused id


def test_the_holders_of_a_file_are_found(tmp_path):
    path = tmp_path / "lock"
    with open(path, "w"):
        assert holders(path) == [os.getpid()]
    assert holders(path) == []


def test_a_process_ends_with_its_parent():
    grandchild = "import time; from qdformer.utils.processes import end_with_parent; end_with_parent(); "
    grandchild += "print(flush=True); time.sleep(60)"
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE); "
    code += "p.stdout.readline(); print(p.pid, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, grandchild], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    identity = process_identity(int(child.stdout.readline()))
    assert is_alive(identity)
    child.kill()
    child.wait()
    deadline = time.monotonic() + 20
    while is_alive(identity):
        assert time.monotonic() < deadline
        time.sleep(0.1)
