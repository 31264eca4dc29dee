"""The machine on which a result was computed."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> dict[str, str]:
    """The machine as text: `cpu`, `cores` (those that this process may use), `memory_gib`, `gpu` (or 'none'), `os`."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "gpu": ", ".join(gpus) or "none",
        "os": platform.platform(),
    }


def _cpu_name() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
