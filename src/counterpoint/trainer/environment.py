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
        process may use), "memory", "gpus" (a line each), "os", "python", and "git": "commit" and
        whether files that git knows are "changed", or None outside of a repository.
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
    commit = _git_says("rev-parse", "HEAD")
    if not commit:
        return None
    # new files are not looked for, which takes long where there are many
    changed = _git_says("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changed is None else bool(changed)}


def _git_says(*words: str) -> str | None:
    """What git answers about the working folder; None where it does not."""
    try:
        done = subprocess.run(
            # a repository's own configuration can name programs to run
            ["git", "-c", "core.fsmonitor=false", *words],
            capture_output=True,
            text=True,
            timeout=SECONDS_FOR_GIT,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
