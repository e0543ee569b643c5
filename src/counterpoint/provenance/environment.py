"""Where a run runs, as far as its numbers depend on it or its user will ask.

Not here: versions of packages (``runlog``), how much memory is left (``planner``).
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil
import torch

from counterpoint.planner.machine import show_bytes
from counterpoint.provenance.commit import commit_of
from counterpoint.provenance.installed import how_installed


def environment() -> dict[str, Any]:
    """Machine, operating system, Python, and where the code came from.

    Returns:
        "machine" (the processor's architecture), "cpu" (its name), "cores" (those that this
        process may use), "memory", "gpus" (a line each), "os", "python", and "git": its
        "commit", or None outside of a repository; and "installed": how Counterpoint was.
    """
    return {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": _cores(),
        "memory": show_bytes(int(psutil.virtual_memory().total)),
        "gpus": [_gpu(number) for number in range(torch.cuda.device_count())],
        "os": platform.platform(),
        "python": platform.python_version(),
        "git": _git(),
        "installed": how_installed(),
    }


def _cpu() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        info = ""
    named = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", info, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu(number: int) -> str:
    found = torch.cuda.get_device_properties(number)
    return f"{found.name} ({show_bytes(found.total_memory)})"


def _git() -> dict[str, str] | None:
    try:
        commit = commit_of(Path.cwd())
    except OSError:  # the working folder is gone
        return None
    return None if commit is None else {"commit": commit}
