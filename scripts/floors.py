"""Print the oldest versions that ``pyproject.toml`` allows, as pip takes them.

python scripts/floors.py
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest() -> list[str]:
    """One requirement for each package: any release that begins with its floor's numbers."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["peft"]]
    return [re.sub(r">=(\S+)", r"==\1.*", one) for one in wanted]


if __name__ == "__main__":
    print("\n".join(oldest()))
