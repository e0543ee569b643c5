"""Pages are plain English: short sentences, and the usual words of the field.

Not here: what is written once and stays (CHANGELOG.md), tables, and the Chinese pages, which
``tests/examples/test_two_languages.py`` holds to the English ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = "<!-- Written by scripts/generate_docs.py"
PAGES = [
    page
    for page in sorted(
        [
            *(
                ROOT / name
                for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")
            ),
            *(ROOT / "docs").rglob("*.md"),
            *(ROOT / "benchmarks").glob("*.md"),
        ]
    )
    if not page.name.endswith(".zh-CN.md")
]
WRITTEN = [page for page in PAGES if GENERATED not in page.read_text(encoding="utf-8")]
NOT_YET: tuple[str, ...] = ()
"""Pages that still have to be rewritten, by their path."""

MOST_WORDS = 35

DIALECT = re.compile(
    r"\b(?:go|goes|going|gone|went) on\b"  # resume, continue
    r"|\b(?:alarms?|it|they|one|C[WN]\d{3}) sounds?\b"  # raise
    r"|\bheld off\b|\bcounts? no more\b|\b(?:to|until) (?:its|their) end\b"
    r"|\b(?:as|where) (?:it|they) lies?\b|\blet lie\b|\b(?:said|counted) aloud\b"
    r"|\bhanded? over\b|\btold apart\b|\btaken up again\b",
    re.IGNORECASE,
)
"""Phrases of a vocabulary of our own; each has a usual word."""

TABLES = re.compile(r"<!-- ([\w .]+): begin -->.*?<!-- \1: end -->", re.DOTALL)
CODE = re.compile(r"^( *)(`{3,}).*?^\1\2$", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$.*?\$\$", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs and items of lists, each on one line; no code, tables, headings or pictures."""
    for pattern in (TABLES, CODE, FORMULA, COMMENT):
        text = pattern.sub("\n", text)
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.split("\n")]
        prose = [line for line in lines if not line.startswith(("|", "#", "![", ":"))]
        for item in re.split(r"\n(?:[-*]|\d+\.) ", "\n" + "\n".join(prose)):
            if item.strip():
                yield " ".join(item.split())


def sentences(text: str) -> Iterator[str]:
    """Sentences; code, formulas and links count as one word each, or as their text."""
    for paragraph in paragraphs(text):
        plain = re.sub(r"`[^`]+`", "CODE", paragraph)
        plain = re.sub(r"\$[^$]+\$", "FORMULA", plain)
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)
        plain = re.sub(r"\b(Eq|e\.g|i\.e|vs)\. ", r"\1 ", plain)
        yield from re.split(r"(?<=[.!?])[\"*)]*\s+", plain)


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_no_sentence_has_more_words_than_a_reader_holds(page: Path) -> None:
    if name_of(page) in NOT_YET:
        pytest.skip("still to be rewritten")
    found = sentences(page.read_text(encoding="utf-8"))
    assert [sentence for sentence in found if words(sentence) > MOST_WORDS] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_has_the_usual_words(page: Path) -> None:
    if name_of(page) in NOT_YET:
        pytest.skip("still to be rewritten")
    found = paragraphs(page.read_text(encoding="utf-8"))
    assert [part for part in found if DIALECT.search(part)] == []


def test_pages_that_are_not_done_are_pages() -> None:
    assert {ROOT / name for name in NOT_YET} <= set(PAGES)


def test_the_test_sees_a_long_sentence_and_a_phrase() -> None:
    long = " ".join(["word"] * (MOST_WORDS + 1)) + "."
    code, table = f"```\n{long}\n```", f"| {long} |"
    page = f"# Title\n\nShort.\n\n{code}\n\n{table}\n\n- An item\n  that wraps.\n- {long}\n"
    assert [words(s) for s in sentences(page)] == [1, 4, MOST_WORDS + 1]
    assert DIALECT.search("The run goes on from its checkpoint.")
    assert DIALECT.search("CW421 sounds at the first line.")
    assert not DIALECT.search("Sounds and pictures are read as paths.")
