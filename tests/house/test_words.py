"""One thing has one word wherever people read it; short forms are those of one table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint.language.texts import read_texts
from counterpoint.metric_names import SHORT, WORDS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for path in sorted((ROOT / "src").rglob("*.py"))
    if path.parent.name != "losses" and path.name != "metric_names.py"
] + sorted((ROOT / "src").rglob("language/*/*.toml"))
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])

OTHER_WORDS = re.compile(r"\bacc\b|\bacc\.|\bmult\b|λ|\b[Ll]og-?prob\b", re.ASCII)
"""Spellings of accuracy, multiplier and log-probability that are not theirs."""


def said(path: Path) -> Iterator[str]:
    """The texts of a module that are no docstrings, or of a file of texts."""
    if path.suffix == ".toml":
        for texts in read_texts(path).values():
            yield from (*texts, *texts.values())
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in notes:
            yield node.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_the_word_and_no_other(path: Path) -> None:
    assert [text for text in said(path) if OTHER_WORDS.search(text)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_says_the_word_and_no_other(path: Path) -> None:
    short = re.compile(r"\bacc\b|\bmult\b|\b[Ll]og-?prob\b", re.ASCII)
    assert short.findall(path.read_text(encoding="utf-8")) == []


def test_a_short_form_is_that_of_a_word() -> None:
    assert SHORT.keys() <= {*WORDS.values(), "multiplier"}
    assert all(len(short) < len(word) for word, short in SHORT.items())
