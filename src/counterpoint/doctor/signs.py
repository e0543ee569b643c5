"""What can be seen in the texts of one row: functions of a row, no tokens, no other rows.

Not here: counting over a data set (``survey``), and what a count is worth (``of_data``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache

from counterpoint.data.cells import row_spells_messages
from counterpoint.preference_row import Message, PreferenceRow, Text

SMALL = 16
"""Pixels of a side below which little is to be seen: about one patch of a vision tower."""

LARGE = 2**24
"""Pixels of a picture from which decoding it takes longer than looking at it."""

SHORTEST_PROMPT = 20
"""Characters from which a prompt that turns up in an answer is no accident."""

LOOKED_AT = 400
"""Characters of a completion that say which script it is written in, and whether it refuses."""

MARKS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|user\|>|<\|start_of_role\|>|"
    r"\[INST\]|<｜User｜>"  # noqa: RUF001 - DeepSeek's own bars
)
"""Marks with which templates of well-known models begin a turn."""

SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----|gh[pousr]_[A-Za-z0-9]{36}|"
    r"sk-(?:proj-|ant-)?[A-Za-z0-9_\-]{32,}|xox[abprs]-[0-9A-Za-z\-]{20,}|hf_[A-Za-z]{34}"
)
"""Keys whose form gives them away: AWS, PEM, GitHub, OpenAI, Slack, Hugging Face."""

_REFUSAL = re.compile(
    r"(?:i['’]?m|i am)? ?(?:very |so )?sorry,? but|i (?:can['’]?t|cannot|won['’]?t) |"
    r"i(?:['’]m| am) (?:not able|unable) to|as an ai|"
    r"(?:很抱歉|抱歉|对不起).{0,12}(?:不能|无法)|作为(?:一个|一名)?(?:ai|人工智能)|我(?:不能|无法)",
    re.IGNORECASE,
)

_SCRIPTS = {
    "Han": re.compile(r"[\u4e00-\u9fff]"),
    "kana": re.compile(r"[\u3040-\u30ff]"),
    "Hangul": re.compile(r"[\uac00-\ud7af]"),
    "Cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "Arabic": re.compile(r"[\u0600-\u06ff]"),
    "Devanagari": re.compile(r"[\u0900-\u097f]"),
    "Greek": re.compile(r"[\u0370-\u03ff]"),
    "Latin": re.compile(r"[A-Za-z\u00c0-\u024f]"),
}
_PER_WORD = {"Han": 2, "kana": 2}
"""Characters of a word where words are short; elsewhere five."""

FEWEST_WORDS = 4
"""Words that a text needs before it is said to be in a script."""


def as_text(text: Text) -> str:
    """A text as a string; of messages their contents, a line each, tool calls included."""
    if isinstance(text, str):
        return text
    return "\n".join(_content(message) for message in text)


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content)
    calls = message.get("tool_calls")
    return f"{content or ''}{calls if calls else ''}"


def signs(
    row: PreferenceRow, texts: tuple[str, str, str], marks: re.Pattern[str] | None, eos: str | None
) -> Iterator[str]:
    """The codes, or names, of what stands out in a row.

    Args:
        row: as read.
        texts: its prompt, chosen and rejected, as ``as_text`` gives them.
        marks: the tokenizer's special tokens; None if it is not known.
        eos: the text of the EOS token; None if there is none.

    Yields:
        Codes of ``table.TABLE``, and "refused chosen" or "refused rejected".
    """
    prompt, chosen, rejected = texts
    if _folded_alike(chosen, rejected):
        yield "CW201"
    elif chosen.startswith(rejected) or rejected.startswith(chosen):
        yield "CW206"
    if _repeats(row, prompt, chosen):
        yield "CW207"
    if row_spells_messages(row):
        yield "CW220"
    if row.weight == 0:
        yield "CW215"
    if _different_scripts(chosen, rejected):
        yield "CW213"
    if any(SECRETS.search(text) for text in texts):
        yield "CW214"
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if _REFUSAL.match(text[:LOOKED_AT].lstrip()):
            yield f"refused {name}"
    yield from _of_turns(row)
    yield from _of_pictures(row)
    yield from _marked(row, texts, marks, eos)


def _of_turns(row: PreferenceRow) -> Iterator[str]:
    sides = [side for side in (row.chosen, row.rejected) if not isinstance(side, str)]
    if any(message["role"] != "assistant" for side in sides for message in side):
        yield "CW138"


def _of_pictures(row: PreferenceRow) -> Iterator[str]:
    if any(min(one.width, one.height) < SMALL for one in row.pictures):
        yield "CW230"
    if any(one.width * one.height > LARGE for one in row.pictures):
        yield "CW231"


def _folded_alike(one: str, other: str) -> bool:
    # different beginnings settle nearly every row; 32 folded characters are enough to see them
    if _folded(one[:128])[:32] != _folded(other[:128])[:32]:
        return False
    return _folded(one) == _folded(other)


def _folded(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.split())


def _repeats(row: PreferenceRow, prompt: str, chosen: str) -> bool:
    asked = prompt if isinstance(row.prompt, str) else _content(row.prompt[-1])
    asked = asked.strip()
    return len(asked) >= SHORTEST_PROMPT and asked in chosen


def _different_scripts(one: str, other: str) -> bool:
    if one.isascii() and other.isascii():
        return False
    mine, theirs = script(one), script(other)
    return mine is not None and theirs is not None and mine != theirs


def script(text: str) -> str | None:
    """The script that most words of a text's beginning are written in; None for too few words.

    Japanese is kana where it holds any, since Han characters are part of it.
    """
    text = text[:LOOKED_AT]
    if len(text.encode("ascii", "ignore")) > 0.9 * len(text):  # as most are, and much faster
        return "Latin" if len(text) >= 5 * FEWEST_WORDS else None
    counts = {
        name: len(pattern.findall(text)) / _PER_WORD.get(name, 5)
        for name, pattern in _SCRIPTS.items()
    }
    if counts["kana"] >= 1:
        counts["kana"] += counts.pop("Han")
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= FEWEST_WORDS else None


def _marked(
    row: PreferenceRow, texts: tuple[str, str, str], marks: re.Pattern[str] | None, eos: str | None
) -> Iterator[str]:
    if isinstance(row.prompt, str):
        if any(MARKS.search(text) and not _is_token(text, marks) for text in texts):
            yield "CW306"
    elif any(MARKS.search(text) or (marks and marks.search(text)) for text in texts):
        yield "CW305"
    if eos and any(_inside(text, eos) for text in texts[1:]):
        yield "CW310"


def _is_token(text: str, marks: re.Pattern[str] | None) -> bool:
    """Whether the first mark of a template in a text is a token of the tokenizer."""
    found = MARKS.search(text)
    # where no tokenizer is known, nothing can be said against it
    return marks is None or bool(found and marks.match(text, found.start()))


def _inside(text: str, eos: str) -> bool:
    at = text.find(eos)
    return at >= 0 and bool(text[at:].replace(eos, "").strip())


@cache
def pattern_of(marks: frozenset[str]) -> re.Pattern[str] | None:
    """A pattern of any of these texts, the longest first; None for none."""
    longest_first = sorted(marks, key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first))) if marks else None
