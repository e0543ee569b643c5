"""The part of the package's metadata that has to be computed: its page and its addresses.

On a package index README.md stands alone, where its links to files of the repository lead nowhere.
Here they become absolute, under the address in ``[tool.counterpoint]``; while there is no address
their text stays and the link goes.

Not here: everything else (pyproject.toml).
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|mailto:|#)([^)]+)\)")


def page(text: str, home: str, branch: str) -> str:
    """README.md as it reads away from its repository.

    Args:
        text: markdown.
        home: address of the repository on the web; "" where there is none.
        branch: that the links lead to.
    """
    return LINK.sub(rf"[\1]({home}/blob/{branch}/\2)" if home else r"\1", text)


def addresses(home: str, branch: str) -> dict[str, str]:
    """The addresses that a package index shows; none without a home."""
    if not home:
        return {}
    return {
        "Source": home,
        "Documentation": f"{home}/blob/{branch}/docs/index.md",
        "Changelog": f"{home}/blob/{branch}/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }


if __name__ == "__main__":
    told = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    where = told["tool"]["counterpoint"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=page(readme, where["home"], where["branch"]),
        long_description_content_type="text/markdown",
        project_urls=addresses(where["home"], where["branch"]),
    )
