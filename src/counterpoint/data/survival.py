"""Whether what a row says survives its chat template: every value is looked for in the text.

1. Numbers and words may be spelled as JSON or as Python spells them; white space around thoughts is
   layout.
2. First in order, as nearly every template writes them. Where that fails, the longest value takes
   its place first, wherever it is, so that a short one is not found inside of a long one.
3. A value that has no place of its own was dropped, or changed if a part of it is there. One that
   stands more often in the text than in the row is repeated.

What a template adds (a default system turn, a date, marks) is none of this. Plain text goes through
no template.

Not here: the values (``said_values``), a way to keep what is lost (``switches``), counting
(``counts``), and saying it (``doctor.of_data``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from counterpoint.data.chat import Rendered, conversations, is_prefilled
from counterpoint.data.said_values import (
    TAG,
    SaidValue,
    parts_said,
    spellings,
    tools_named,
    values_said,
)
from counterpoint.preference_row import PreferenceRow

LEAST_REPEATED = 24
"""Characters from which a text that is there twice is no accident."""

PARTS_SEEN = 3
"""Parts of a value that are looked for, to tell a changed one from a dropped one."""

LEAST_PART = 12
"""Characters of such a part."""

SHOWN = 40
"""Characters of a value that are shown."""


class LostText(NamedTuple):
    """One thing that did not survive.

    Args:
        how: "dropped", "changed" or "repeated".
        what: "system", "content", "thoughts", "calls", "results", "tools" or "spaces".
        where: "prompt", "chosen" or "rejected".
        shown: how the value begins.
    """

    how: str
    what: str
    where: str
    shown: str

    @property
    def in_words(self) -> str:
        """What happened to what: "drops thoughts of the prompt"."""
        return f"{_VERBS[self.how]} {_NAMES[self.what]} of {_PLACES[self.where]}"

    @property
    def code(self) -> str:
        """The warning's code."""
        return _CODES[self.how]


_JSON = json.JSONEncoder(ensure_ascii=False)
_CODES = {"dropped": "CW216", "changed": "CW217", "repeated": "CW218"}
_VERBS = {"dropped": "drops", "changed": "changes", "repeated": "repeats"}
_NAMES = {
    "system": "the system turn",
    "content": "content",
    "thoughts": "thoughts",
    "calls": "tool calls",
    "results": "tool results",
    "tools": "the tools",
    "spaces": "white space",
}
_PLACES = {"prompt": "the prompt", "chosen": "chosen", "rejected": "rejected"}


_Fate = tuple[str, SaidValue]
"""How a value was lost."""


def losses(row: PreferenceRow, rendered: Rendered) -> list[LostText]:
    """What of a row its rendered texts do not say as the row does.

    Args:
        row: the row.
        rendered: what ``chat.render`` made of it.

    Returns:
        Each kind of loss once; nothing for plain text.
    """
    if isinstance(row.prompt, str):
        return []
    asked, good, bad = (
        values_said(messages, where)
        for messages, where in zip(conversations(row), _PLACES, strict=True)
    )
    in_order: list[_Fate] = []
    end = _walk(asked, rendered.chosen, 0, in_order)
    found = in_order if end >= 0 else []
    for side, text in ((good, rendered.chosen), (bad, rendered.rejected)):
        in_order = []
        begun = end >= 0 and (side is good or text.startswith(rendered.chosen[:end]))
        if begun and _walk(side, text, end, in_order) >= 0:
            found.extend(in_order)
        else:
            found += _missing([*asked, *side], text, _completion_begins(row, rendered, text))
    found += _repeated([*asked, *good], [*asked, *good], rendered.chosen, row)
    found += _repeated(bad, [*asked, *bad], rendered.rejected, row)
    for name in tools_named(row.tools or []):
        if name not in rendered.chosen:
            found.append(("dropped", SaidValue("tools", "prompt", name)))
    once: dict[tuple[str, str, str], str] = {}
    for how, (what, where, said) in found:
        once.setdefault((how, what, where), said)
    return [LostText(*kind, _shown(said)) for kind, said in once.items()]


def as_column(lost: Iterable[LostText]) -> str:
    """What a row lost, as one text; "" for nothing."""
    found = [*lost]
    return _JSON.encode(found) if found else ""


def from_column(text: str) -> list[LostText]:
    """The same again."""
    return [LostText(*each) for each in json.loads(text)] if text else []


# Places in the text


def _walk(values: Iterable[SaidValue], text: str, place: int, lost: list[_Fate]) -> int:
    """Find values one after the other; white space that some of them lost is noted.

    Returns:
        The place after the last one; -1 where they are not all there in this order.
    """
    for value in values:
        said = value.text
        start = text.find(said, place)
        if start < 0:
            said = said.strip()
            start = text.find(said, place)
            if start < 0:
                return -1
            lost.append(("changed", value._replace(what="spaces")))
        place = start + len(said)
    return place


def _completion_begins(row: PreferenceRow, rendered: Rendered, text: str) -> int:
    """Where at the earliest a completion's values stand; a begun turn is part of it."""
    if is_prefilled(row.prompt):
        return 0
    if text.startswith(rendered.prompt):
        return len(rendered.prompt)
    both = zip(rendered.prompt, text, strict=False)
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))


class _Taken:
    """The text, and what of it has been found to be some value's."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._bare = "".join(text.split())
        self._spans: list[tuple[int, int]] = []
        self._held: list[str] = []

    def take(self, said: str, begin: int) -> bool:
        """Whether a value has a place of its own from there on, which then is taken."""
        start = self.text.find(said, begin)
        while start >= 0:
            end = start + len(said)
            over = [span for span in self._spans if start < span[1] and span[0] < end]
            if not over:
                self._spans.append((start, end))
                self._held.append("".join(said.split()))
                return True
            start = self.text.find(said, max(span[1] for span in over))
        return False

    def fate(self, said: str) -> str:
        """What became of one that has none: "spaces" if only white space within it changed."""
        words = said.split()
        bare = "".join(words)
        if len(words) > 1 and self._is_free(bare):
            return "spaces"
        size = max(LEAST_PART, len(bare) // PARTS_SEEN)
        parts = (bare[at : at + size] for at in range(0, len(bare) - size, size))
        return "changed" if any(map(self._is_free, parts)) else "dropped"

    def _is_free(self, bare: str) -> bool:
        """Whether it stands, whatever the white space, where no other value has been found."""
        return self._bare.count(bare) > sum(held.count(bare) for held in self._held)


def _missing(values: Iterable[SaidValue], text: str, begin: int) -> list[_Fate]:
    """What the text does not hold as it is, in whatever order it holds the rest.

    Args:
        values: of the prompt and one completion.
        text: of the two.
        begin: where at the earliest the completion's values stand.
    """
    taken = _Taken(text)

    def take(said: str, value: SaidValue) -> bool:
        return taken.take(said, 0 if value.where == "prompt" else begin)

    # of two that are alike the completion's takes its place first
    pieces: list[SaidValue] = []
    for value in sorted(values, key=lambda one: one.where == "prompt"):
        if value.what != "content" or not TAG.search(value.text):
            pieces.append(value)
        elif not take(value.text, value):
            pieces += parts_said(value)
    found: list[_Fate] = []
    left: list[SaidValue] = []
    for piece in sorted(pieces, key=lambda one: -len(one.text.strip())):
        if take(piece.text, piece):
            continue
        if not any(take(spelled, piece) for spelled in spellings(piece.text.strip())):
            left.append(piece)
        elif piece.what != "thoughts" and not any(s in text for s in spellings(piece.text)):
            found.append(("changed", piece._replace(what="spaces")))
    for piece in left:
        fate = taken.fate(piece.text)
        spaces = fate == "spaces"
        found.append(("changed", piece._replace(what=fate)) if spaces else (fate, piece))
    return found


def _repeated(
    values: Iterable[SaidValue], every: Sequence[SaidValue], text: str, row: PreferenceRow
) -> Iterator[_Fate]:
    """Values that are more often in the text than among those that it holds."""
    for value in values:
        said = value.text.strip()
        if len(said) < LEAST_REPEATED or text.count(said) < 2:
            continue
        texts = [*(other.text for other in every), json.dumps(row.tools, ensure_ascii=False)]
        if text.count(said) > sum(other.count(said) for other in texts):
            yield "repeated", value


def _shown(said: str) -> str:
    said = " ".join(said[: 4 * SHOWN].split())
    return said if len(said) <= SHOWN else f"{said[:SHOWN].rstrip()}…"


# What becomes of it
