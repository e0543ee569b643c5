"""The docs build into a site: no warning, no page left out, and nothing fetched from elsewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the words of ``make site``."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the group docs is not installed")
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nsite:")[1]
    words = shlex.split(recipe.split("sphinx-build")[1].split("\n\t@")[0].replace("\\\n", " "))
    folder = tmp_path_factory.mktemp("site")
    assert words[-2:] == [".", "build/site"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--doctree-dir", f"{folder}/read", *words[:-1], folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def pages(site: Path) -> list[Path]:
    return sorted((site / "docs").rglob("*.html"))


def test_every_page_of_the_docs_is_a_page_of_the_site(site: Path) -> None:
    written = {path.relative_to(ROOT).with_suffix(".html") for path in ROOT.glob("docs/**/*.md")}
    assert written <= {page.relative_to(site) for page in pages(site)}


def test_a_page_says_which_language_it_is_in(site: Path) -> None:
    for name, language in (("guide", "en"), ("guide.zh-CN", "zh-CN")):
        text = (site / "docs" / f"{name}.html").read_text(encoding="utf-8")
        assert re.search(r'<html[^>]* lang="([^"]+)"', text)[1] == language


def test_no_page_needs_the_network(site: Path) -> None:
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|link)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text)
        assert fetched == [], page


def test_formulas_are_drawn_by_the_browser_itself(site: Path) -> None:
    text = (site / "docs" / "objectives.html").read_text(encoding="utf-8")
    assert text.count("<math") > 30
    assert r"\sigma" not in text


def test_the_front_door_leads_to_the_first_page(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    assert (site / re.search(r"url=([^\"]+)", text)[1]).is_file()
