"""A run that is killed leaves nothing of its process group behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from qdformer.utils.processes import is_alive, process_identity

RUN = """
import subprocess, sys
from pipelines.flows.guard import start_guard
code = "import signal, sys, time; deaf = sys.argv[1] == 'deaf'"
code += "; signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.SIG_DFL); print(flush=True); time.sleep(120)"
shell = f'{sys.executable} -c "{code}" {sys.argv[1]} & wait'
group = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, start_new_session=True)
group.stdout.readline()
guard = start_guard(group.pid)
print(group.pid, guard.pid, flush=True)
input()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seconds"), [("plain", 15), ("deaf", 40)])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_group_of_a_killed_run_ends_within_a_bound(kind, seconds, how):
    run = subprocess.Popen([sys.executable, "-c", RUN, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    identities = [process_identity(int(pid)) for pid in run.stdout.readline().split()]
    assert all(map(is_alive, identities))
    run.send_signal(how)
    run.wait()
    deadline = time.monotonic() + seconds
    while any(map(is_alive, identities)):
        assert time.monotonic() < deadline, f"{kind}: still there after {seconds} s"
        time.sleep(0.2)
