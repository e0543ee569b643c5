"""What a chat keeps: every answer in one file, and what was preferred, as pairs, in another.

1. Answers are candidates, in the format of ``counterpoint sample``, in ``NAME.said.jsonl``; pairs
   are rows that ``train`` reads, in ``NAME.jsonl``. So neither file has a row that its readers
   would have to leave out.
2. Both only grow, by whole lines that are on the disk before the next word is said. A line that a
   kill has torn is taken off when the files are opened again; a whole pair without its end is none.
3. Rows are numbered on from those that are there. One process writes at a time.

Not here: the conversation (``cli.talk``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from counterpoint.errors import CounterpointError, DataError, SetupError
from counterpoint.evaluation.candidate_file import CandidateFile, open_candidates
from counterpoint.log import logger
from counterpoint.strict import strict_json

OF_A_CHAT = {"of": "counterpoint chat"}
"""Settings of the file of answers: those of sampling may change from chat to chat."""


class TalkFiles:
    """The two files of a chat, open for more; see ``open_talk``.

    Args:
        said: the file of answers.
        pairs: open, at its end.
    """

    def __init__(self, said: CandidateFile, pairs: BinaryIO) -> None:
        self.said, self._pairs = said, pairs
        self.answers = self.pairs = 0
        self.next_row = max((row for _, row, _ in said.written), default=-1) + 1

    def admit(self, model: str, weights: str) -> None:
        """Say which weights answer by a name.

        Args:
            model: its name.
            weights: digest of all of them.

        Raises:
            SetupError: CP534 where the file has answers of other weights by that name.
        """
        try:
            self.said.admit(model, {"weights": weights})
        except SetupError as error:
            if error.code != "CP534":
                raise
            raise SetupError(
                "CP534",
                f"{self.said.path} holds answers of other weights that were called {model}, too. "
                "Name another file with --out.",
            ) from error

    def keep(self, answer: Mapping[str, Any]) -> None:
        """An answer, on the disk when this returns.

        Args:
            answer: a candidate's row.
        """
        self.said.append([answer])
        self.answers += 1

    def prefer(self, pair: Mapping[str, Any]) -> None:
        """A pair, on the disk when this returns.

        Args:
            pair: with ``prompt``, ``chosen`` and ``rejected``.
        """
        self._pairs.write(f"{strict_json(pair, ensure_ascii=False)}\n".encode())
        self._pairs.flush()
        os.fsync(self._pairs.fileno())
        self.pairs += 1


@contextmanager
def open_talk(path: Path) -> Iterator[TalkFiles]:
    """Begin the files of a chat, or add to them.

    Args:
        path: of the pairs, ``NAME.jsonl``; folders that are missing are made.

    Raises:
        SetupError: CP506 for a file that no chat has written, CP534 for a file of answers that was
            sampled otherwise, CP535 for one that another process writes to.
        DataError: CP210 for a line among the answers that is none.
    """
    answers = said_path(path)
    if path.is_file() and path.stat().st_size and not answers.is_file():
        raise SetupError(
            "CP506",
            f"{path} is there already, and {answers.name} is not beside it: no chat has written "
            "it. Choose another name; files of pairs can be trained on together.",
        )
    with ExitStack() as open_files:
        try:
            said = open_files.enter_context(open_candidates(answers, OF_A_CHAT))
        except CounterpointError as error:
            raise _as_of_a_chat(answers, error) from error
        pairs = open_files.enter_context(path.open("a+b"))
        _take_off_torn(path, pairs)
        yield TalkFiles(said, pairs)


def said_path(path: Path) -> Path:
    """Where the answers of a chat lie.

    Args:
        path: of its pairs.
    """
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.said.jsonl")


def _as_of_a_chat(path: Path, error: CounterpointError) -> CounterpointError:
    """An error of the file of answers, with what can be done in a chat."""
    if error.code == "CP210":
        line = error.message.split(":")[0]
        return DataError(
            "CP210", f"{line}: is no answer of a chat. Repair or remove the line, or change --out."
        )
    if error.code in ("CP506", "CP534"):
        return SetupError(
            error.code, f"{path} is there already, and no chat has written it. Change --out."
        )
    return error


def _take_off_torn(path: Path, file: BinaryIO) -> None:
    file.seek(0)
    lines = list(file)
    torn = [line for line in lines if not line.endswith(b"\n")]
    if torn and _is_pair(torn[-1]):  # an editor left the last line without its end
        file.write(b"\n")
        file.flush()
    elif torn:
        whole = sum(map(len, lines)) - len(torn[-1])
        logger().warning("%s: its last line was torn, and is taken off", path)
        file.truncate(whole)
        file.seek(0, os.SEEK_END)


def _is_pair(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"chosen", "rejected"} <= row.keys()
