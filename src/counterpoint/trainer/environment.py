"""Where a run runs, as far as its numbers depend on it or its user will ask.

Not here: versions of packages (``runlog``), how much memory is left (``planner``).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from counterpoint.planner.machine import show_bytes

SECONDS_FOR_GIT = 5.0
"""After which git is not waited for; a working folder may be huge, or far away."""


def environment() -> dict[str, Any]:
    """Machine, operating system, Python, and the commit of the working folder.

    Returns:
        "machine" (the processor's architecture), "cpu" (its name), "cores" (those that this
        process may use), "memory", "gpus" (a line each), "os", "python", and "git": the "commit",
        or None outside of a repository.
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


def _git() -> dict[str, Any] | None:
    commit = _git_says("rev-parse", "--verify", "HEAD^{commit}")
    return {"commit": commit} if commit else None


def _git_says(*words: str) -> str | None:
    """What git answers about the working folder; None where it does not.

    Only what reads names of commits may be asked. Whether files have changed may not: to know it,
    git runs the filters that the repository's own configuration names, which may be a stranger's.
    """
    try:
        done = subprocess.run(
            # a repository's own configuration can name programs to run
            ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *words],
            capture_output=True,
            text=True,
            timeout=SECONDS_FOR_GIT,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
