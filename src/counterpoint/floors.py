"""The least versions that a run may use, and why: checked before anything of them is imported.

Read from the packages' metadata, which takes milliseconds where importing torch takes seconds.

Not here: packages that only some options need (their own errors name them), and floors without a
reason of safety or correctness (``pyproject.toml``; ``pip`` keeps to those).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType

from counterpoint.errors import SetupError
from counterpoint.invocation import installing

FLOORS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "torch": (
            "2.10",
            "CVE-2026-24747: before it, a crafted file of weights could run code even with "
            "weights_only=True",
        ),
        "transformers": (
            "5.3",
            "CVE-2026-4372 and CVE-2026-1839: before it, a model's config.json or a checkpoint "
            "could run code without trust_remote_code",
        ),
        "datasets": ("4.7", "it is the first that reads rows of mixed shapes as they are"),
    }
)
"""Package -> (least version, what is wrong with an older one)."""


def check_floors() -> None:
    """Refuse versions below ``FLOORS``.

    Raises:
        SetupError: CP502, with the reason and the command that helps. A package that is missing
            altogether is left to the import that needs it.
    """
    old = []
    for package, (floor, reason) in FLOORS.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        if _numbers(version) < _numbers(floor):
            old.append((package, version, floor, reason))
    if not old:
        return
    seen = "; ".join(
        f"{package} {version} is older than {floor} ({reason})"
        for package, version, floor, reason in old
    )
    wanted = [f"{package}>={floor}" for package, _, floor, _ in old]
    raise SetupError("CP502", f"{seen}. Install what is safe: {installing(*wanted)}")


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor: no floor goes deeper; ``.dev0`` and ``+cpu`` are no numbers."""
    found = re.match(r"(?:\d+!)?(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)
