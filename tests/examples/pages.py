"""A page of docs/ in its parts, and what two languages of one page must have in common."""

from __future__ import annotations

import io
import re
import shlex
import tokenize
from pathlib import Path

Block = tuple[str, str]

DOCS = Path(__file__).parents[2] / "docs"


def both(name: str) -> tuple[str, str]:
    """A page in English and in Chinese."""
    english, chinese = (DOCS / f"{name}{end}.md" for end in ("", ".zh-CN"))
    return english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Fenced blocks: their language, and what they hold."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The command lines of a block, as words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def bare(block: Block) -> Block:
    """A block without its comments, which are in the reader's language."""
    language, text = block
    if language == "yaml":
        return language, re.sub(r" *#.*", "", text)
    if language != "python":
        return block
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    kept = [(t.type, t.string) for t in tokens if t.type not in (tokenize.COMMENT, tokenize.NL)]
    return language, repr(kept)


def generated(page: str) -> dict[str, str]:
    """What a script has written into a page, by the name of its place."""
    return dict(re.findall(r"<!-- ([\w ]+): begin -->\n(.*?)<!-- \1: end -->", page, re.DOTALL))


def outline(page: str) -> list[str]:
    """Headings by depth, and the rows of tables, in their order."""
    return re.findall(r"^(#+ |\|)", page, re.MULTILINE)


def unlike_sections(english: str, chinese: str) -> list[str]:
    """Headings of the sections in which the languages name different codes or code."""
    found = []
    for one, other in zip(_sections(english), _sections(chinese), strict=True):
        for pattern in (r"\bC[PWN]\d{3}\b", r"(?<!`)`([^`\n]+)`(?!`)"):
            extra = {"chosen", "rejected"}  # set as code in Chinese, as words in English
            if (set(re.findall(pattern, one)) ^ set(re.findall(pattern, other))) - extra:
                found.append(one.splitlines()[0])
    return found


def _sections(page: str) -> list[str]:
    return re.split(r"^#+ ", page, flags=re.MULTILINE)
