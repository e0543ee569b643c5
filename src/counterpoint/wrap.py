"""Text folded to a number of terminal columns, where a Chinese character takes two.

``textwrap`` counts characters, and so lets Chinese text run over the edge.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

_WIDE = ("W", "F")
# a word with the spaces before it; or one wide character, between which a line may break
_PIECE = re.compile(r"\s*[^\s\u2e80-\uffef]+|\s*[\u2e80-\uffef]|\s+")


def width_of(stream: IO[str]) -> int | None:
    """Columns to fold what a stream shows; None where it is a pipe or a file.

    On a terminal the variable ``COLUMNS`` counts before what the terminal says, as for other
    programs.
    """
    if not stream.isatty():
        return None
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def columns(text: str) -> int:
    """Columns that a text takes on a terminal: two for a wide character, none for accents."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(each) in _WIDE for each in text)
    return len(text) + wide - sum(unicodedata.category(each) in ("Mn", "Me") for each in text)


def padded(text: str, width: int) -> str:
    """A text with spaces behind it, until it takes ``width`` columns or more."""
    return text + " " * (width - columns(text))


def wrap(text: str, width: int, first: str = "", rest: str = "") -> Iterator[str]:
    """Fold a text.

    Args:
        text: its own line breaks are kept.
        width: columns of a line, prefix included.
        first: before the first line.
        rest: before every other.

    Yields:
        Lines no wider than ``width``; a word wider than a line is cut.
    """
    prefix = first
    for paragraph in text.splitlines() or [""]:
        line = ""
        for piece in _PIECE.findall(paragraph):
            while columns(prefix) + columns(line) + columns(piece) > width:
                if not line.strip() and columns(piece.lstrip()) > width - columns(prefix):
                    kept, piece = cut_text(piece.lstrip(), width - columns(prefix))
                    line = kept
                elif not line.strip():
                    break
                yield f"{prefix}{line}".rstrip()
                prefix, line, piece = rest, "", piece.lstrip()
            line += piece
        yield f"{prefix}{line}".rstrip()
        prefix = rest


def help_width(width: int | None) -> int:
    """Columns to wrap help at; None takes the terminal's, at most 110."""
    return max(40, width or min(shutil.get_terminal_size().columns, 110))


def refold(text: str, width: int) -> str:
    """A help text that was written for a wide terminal, folded to a narrow one.

    A paragraph is filled anew. What stands in two columns is folded within the second one. An
    example stays a command that a shell takes.

    Args:
        text: of a ``--help``; unchanged where every line of it fits.
        width: columns of a line.
    """
    if all(columns(line) <= width for line in text.splitlines()):
        return text
    entries: list[str] = []
    for line in text.splitlines():
        if entries and _goes_on(entries[-1], line):
            entries[-1] = f"{entries[-1].removesuffix(_BROKEN)} {line.strip()}"
        else:
            entries.append(line)
    return "\n".join(folded for line in entries for folded in _fold(line, width)) + "\n"


_BROKEN = " \\"  # how a command ends a line that is not its last
_PROGRAMS = ("counterpoint ", "torchrun ")
_WORD = r"""(?:'[^']*'|"[^"]*"|[^\s'"])+"""
_ARGUMENT = re.compile(rf"--\S+(?: (?!-){_WORD})?|{_WORD}")
_FIRST_COLUMN = re.compile(r" *(usage: |\S.*?\s{2,})(?=\S)")


def _goes_on(before: str, line: str) -> bool:
    """Whether a line belongs to the entry that the line before it is of."""
    if before.endswith(_BROKEN):
        return True
    if not line.strip() or not before.strip() or before.endswith(":"):
        return False
    return _start(line) == _second_column(before) and not line.lstrip().startswith(_PROGRAMS)


def _start(line: str) -> int:
    return len(line) - len(line.lstrip())


def _second_column(line: str) -> int:
    first = _FIRST_COLUMN.match(line)
    return first.end() if first else _start(line)


def _fold(line: str, width: int) -> Iterator[str]:
    start, second = _start(line), _second_column(line)
    shallow = 0 < start <= 4
    if shallow and line.lstrip().startswith(_PROGRAMS) and " [" not in line:
        yield from _command_lines(_ARGUMENT.findall(line), width)
        return
    hanging = second if second > start else start + 4 * shallow
    first, rest = (" " * min(column, width // 4) for column in (start, hanging))
    yield from wrap(line.lstrip(), width, first, rest)


def wrapped_command(words: Sequence[str], width: int) -> Iterator[str]:
    """A command in lines that a shell takes for one, two columns in.

    Args:
        words: of the command, not quoted.
        width: columns of a line; a word wider than that has a line of its own.
    """
    yield from _command_lines(_parts(words), width)


def _command_lines(parts: Iterable[str], width: int) -> Iterator[str]:
    line = " "
    for part in parts:
        if line.strip() and columns(line) + columns(part) + 3 > width:
            yield f"{line} \\"
            line = "   "
        line += f" {part}"
    yield line


def _parts(words: Sequence[str]) -> Iterator[str]:
    """The words of a command, quoted; an option and its value are one."""
    option = ""
    for word in words:
        if option:
            yield option if word.startswith("--") else f"{option} {shlex.quote(word)}"
            taken, option = not word.startswith("--"), ""
            if taken:
                continue
        if word.startswith("--") and "=" not in word:
            option = word
        else:
            yield shlex.quote(word)
    if option:
        yield option


def cut_text(word: str, width: int) -> tuple[str, str]:
    """As much of a text as takes no more than ``width`` columns, at least a character; the rest."""
    end = 1
    while end < len(word) and columns(word[: end + 1]) <= width:
        end += 1
    return word[:end], word[end:]
