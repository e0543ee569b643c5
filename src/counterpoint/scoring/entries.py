"""Candidates as their files have them, a line each: read when they are wanted, in their order.

Of all lines only their places are held, so that a file may be larger than the memory.

Not here: what they are scored by (``scorer``), what is written (``scored_file``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from counterpoint.data.cells import read_text
from counterpoint.errors import DataError, first_line
from counterpoint.preference_row import Text

REFERENCE = "reference"
"""Column of what a good answer would be, where no other is named."""


@dataclass(frozen=True, slots=True)
class CandidateEntry:
    """A candidate.

    Args:
        number: among all that are scored, from 0.
        place: its file and line, as a message names it.
        row: its columns, as they are.
        prompt: text or messages.
        text: of the candidate.
        reference: what a good answer would be; None where there is none.
    """

    number: int
    place: str
    row: Mapping[str, Any]
    prompt: Text
    text: str
    reference: str | None


@dataclass
class CandidateEntries:
    """All candidates of some files.

    Args:
        reference: column of the reference.
        lines: file, offset, bytes and number of each usable line.
        digest: of these lines, in order.
        dropped: lines that cannot be used, by code.
        examples: the first message of each code.
    """

    reference: str
    paths: Sequence[Path] = ()
    lines: list[tuple[int, int, int, int]] = field(default_factory=list)
    digest: str = ""
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many can be scored."""
        return len(self.lines)

    def digest_of(self, first: int) -> str:
        """The digest of the first lines alone, to know a file that has grown.

        Args:
            first: how many.
        """
        found = hashlib.blake2b(digest_size=16)
        with ExitStack() as stack:
            files = self._open(stack)
            for place in self.lines[:first]:
                found.update(_bytes_at(files, place))
        return found.hexdigest()

    def read(self, start: int, stop: int) -> Iterator[CandidateEntry]:
        """Some candidates, by their numbers.

        Args:
            start: the first.
            stop: behind the last.
        """
        with ExitStack() as stack:
            files = self._open(stack)
            for number in range(start, min(stop, len(self.lines))):
                place = self.lines[number]
                where = f"{self.paths[place[0]]} line {place[3]}"
                yield _entry(_bytes_at(files, place), where, number, self.reference)

    def pick(self, numbers: Sequence[int]) -> list[CandidateEntry]:
        """Candidates by their numbers, in that order."""
        return [one for number in numbers for one in self.read(number, number + 1)]

    def _open(self, stack: ExitStack) -> list[BinaryIO]:
        return [stack.enter_context(path.open("rb")) for path in self.paths]


def read_entries(
    paths: Sequence[Path],
    *,
    reference: str = REFERENCE,
    max_rows: int | None = None,
    invalid_rows: str = "raise",
) -> CandidateEntries:
    """Look at every line once.

    Args:
        paths: files of JSON lines, as ``counterpoint sample`` writes them.
        reference: column of the reference.
        max_rows: most candidates: the first ones; None: all.
        invalid_rows: "raise" or "drop".

    Raises:
        DataError: CP201, CP202 and CP210 for a line that is no candidate; CP209 where there is
            none; CP211 for a file that is not there.
    """
    found, digest = CandidateEntries(reference, paths), hashlib.blake2b(digest_size=16)
    for which, path in enumerate(paths):
        try:
            with path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, 1):
                    if max_rows is not None and len(found) >= max_rows:
                        break
                    try:
                        _entry(line, f"{path} line {number}", len(found), reference)
                    except DataError as error:
                        if invalid_rows == "raise":
                            raise
                        found.dropped[error.code] += 1
                        found.examples.setdefault(error.code, str(error))
                    else:
                        found.lines.append((which, offset, len(line), number))
                        digest.update(line)
                    offset += len(line)
        except OSError as error:
            raise DataError("CP211", f"{path} cannot be read: {first_line(error)}") from error
    if not found.lines:
        raise DataError("CP209", f"{', '.join(map(str, paths))}: there is no candidate.")
    found.digest = digest.hexdigest()
    return found


def _bytes_at(files: Sequence[BinaryIO], place: tuple[int, int, int, int]) -> bytes:
    which, offset, size, _ = place
    files[which].seek(offset)
    return files[which].read(size)


def _entry(line: bytes, where: str, number: int, reference: str) -> CandidateEntry:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            "CP210", f"{where} is no JSON: {first_line(error)}. A candidate is an object a line."
        ) from error
    if not isinstance(row, dict):
        raise DataError("CP210", f"{where} is no JSON object; a candidate is an object a line.")
    for name in ("prompt", "text"):
        if name not in row:
            there = ", ".join(row) or "none"
            raise DataError("CP201", f"{where} has no column {name}; it has {there}.")
    text = row["text"]
    if not isinstance(text, str):
        raise DataError("CP202", f"{where}: text is of type {type(text).__name__}; expected text.")
    try:
        prompt = read_text(row["prompt"], number, "prompt")
    except DataError as error:
        raise DataError(error.code, f"{where}: {error.message}") from error
    return CandidateEntry(
        number, where, row, prompt, text, _reference(row.get(reference), where, reference)
    )


def _reference(value: Any, where: str, name: str) -> str | None:
    """A text; of a single message, what it says."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if value is None or isinstance(value, str):
        return value
    raise DataError(
        "CP202",
        f"{where}: {name} is of type {type(value).__name__}; expected text, one message, or none.",
    )
