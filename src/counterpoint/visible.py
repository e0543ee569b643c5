"""Characters that command a terminal, or turn the direction of a line, are written as escapes.

Names, data and messages come from files of strangers. What they hold is shown and never sent: a
title of the window, a colour, a line that wipes out another, text that reads backwards. The escapes
are those of JSON, so that JSON stays JSON.

Not here: secrets (``masking``), HTML (``markup``).
"""

from __future__ import annotations

import re

_COMMANDS = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # but the tab and the end of a line
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # directions
    "\u2028\u2029\ufff9-\ufffb\ud800-\udfff]"  # line breaks, notes between lines, halves
)


def visible(text: str) -> str:
    r"""A text that is safe to show; ``\u001b`` in place of an escape character.

    Args:
        text: its tabs and ends of lines stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
