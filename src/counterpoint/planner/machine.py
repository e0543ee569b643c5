"""How much memory there is, and how much of it to plan with.

Not here: how much is needed (``demand``).
"""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import torch

from counterpoint.errors import ConfigError

SHARE = 0.85
"""Share of the memory to plan with. The rest is for buffers inside of operations, fragmentation,
and the planner's own error, which was within 15 % wherever it was measured."""

GIB = 2**30
UNITS = {"B": 1, **{f"{p}iB": 2 ** (10 * n) for n, p in enumerate("KMGT", 1)}} | {
    f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)
}
"""Units by name: GiB is 2**30 bytes, GB 10**9."""

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


def read_bytes(text: str, name: str = "memory") -> int:
    """Bytes from text such as "24GiB", "80 GB" or "512MiB".

    Args:
        text: a number and a unit of ``UNITS``.
        name: of the option, for the message.

    Raises:
        ConfigError: CP103 for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    units = {unit.lower(): size for unit, size in UNITS.items()}
    unit = units.get(found[2].lower()) if found else None
    value = round(float(found[1]) * unit) if found and unit else 0
    if not value:
        raise ConfigError(
            "CP103", f"{name}={text} should be a number above 0 with its unit, as in 24GiB."
        )
    return value


def show_bytes(size: int) -> str:
    """Bytes as people read them: "17.3 GiB"."""
    unit = next((name for name in ("TiB", "GiB", "MiB") if size >= UNITS[name]), "KiB")
    number = size / UNITS[unit]
    return f"{number:,.0f} {unit}" if number >= 1000 or unit == "KiB" else f"{number:.3g} {unit}"


def available_memory(device: torch.device) -> int:
    """Bytes that a device has left, or the machine and the container this process runs in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), _left_in_container())


def _left_in_container() -> int:
    """Bytes up to the limit of this process's container, what can be given back counted as left."""
    unlimited = 2**62
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        kinds = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return unlimited  # not Linux, or no container
    if not limit.isdecimal():
        return unlimited
    return max(0, int(limit) - used + int(kinds.get("inactive_file", 0)))
