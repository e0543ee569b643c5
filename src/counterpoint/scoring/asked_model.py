"""A model behind an endpoint that is asked by a rubric, and what it has said, a line each.

1. An answer is known again by all that it may depend on: rubric, model, settings and what is shown.
2. It is written as it comes, also where it holds no verdict, and nothing is asked twice.
3. A question that failed for good leaves no line, so that the next time it is asked again.

Not here: what is asked, and what answers mean (``of_judge``, ``of_grade``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from counterpoint.console.phases import phase
from counterpoint.endpoint import Question
from counterpoint.errors import ConfigError, first_line
from counterpoint.evaluation.candidate_file import whole_lines
from counterpoint.preference_row import Text
from counterpoint.replies import Reply, ReplyKind
from counterpoint.scoring.scorer_options import AskedOptions
from counterpoint.strict import strict_json

Place = TypeVar("Place")


class Asks(Protocol):
    """What answers questions, as ``Endpoint`` does."""

    def ask_all(self, questions: Iterator[Question], take: Any) -> Any:
        """As ``Endpoint.ask_all``."""


@dataclass(frozen=True, slots=True)
class RubricVerdict:
    """What an answer says.

    Args:
        value: in the unit of who asked; None where it says nothing that counts.
        why: there is no value, in words; "" where there is one.
    """

    value: float | None
    why: str = ""


class AskedModel:
    """A model with a rubric.

    Args:
        rubric: file of the rubric.
        options: which model is asked, and how.
        endpoint: what answers; None: the one that the options name.

    Raises:
        ConfigError: CP106 for a rubric that cannot be read, CP107 without endpoint or model.
    """

    def __init__(self, rubric: str, options: AskedOptions, endpoint: Asks | None = None) -> None:
        self.name, self.options = rubric, options
        try:
            self.rubric = Path(rubric).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                "CP106", f"the rubric {rubric} cannot be read: {first_line(error)}"
            ) from error
        if not self.rubric:
            raise ConfigError("CP106", f"the rubric {rubric} is empty; say what is better.")
        self._endpoint = endpoint or options.served()

    def facts(self) -> Mapping[str, Any]:
        """The rubric's text, which is what its file is known by."""
        return {"rubric": digest_asked(self.rubric)}

    def key(self, *shown: Any) -> str:
        """By which an answer is known again.

        Args:
            shown: whatever is put to the rubric, JSON-ready.
        """
        asked = [self.rubric, self.options.model, *self._settings().values()]
        return digest_asked(strict_json([*asked, *shown]))

    def answers(
        self,
        journal: Path,
        wanted: Mapping[str, Place],
        shown: Callable[[Place], tuple[int, str]],
        read: Callable[[Reply], RubricVerdict],
    ) -> tuple[dict[str, RubricVerdict], int]:
        """What was said to questions, which are asked where the file does not have it.

        Args:
            journal: the file.
            wanted: each question's place by its key.
            shown: a place -> the number of its candidate, and the text that is asked.
            read: an answer -> what it says.

        Returns:
            Verdicts by key, others that the file has among them; and how many questions failed.

        Raises:
            SetupError: CP529 and CP502, as ``Endpoint.ask_all``; what was said until then stays.
        """
        failed = 0
        with ExitStack() as stack:
            file = stack.enter_context(journal.open("a+b"))
            said = dict(whole_lines(journal, file, _kept, "verdict"))
            asked = [(key, place) for key, place in wanted.items() if key not in said]
            if not asked:
                return said, 0
            numbers: dict[int, int] = {}  # of the candidates of questions that are open

            def questions() -> Iterator[Question]:
                for number, (_, place) in enumerate(asked):
                    numbers[number], text = shown(place)
                    yield Question([{"role": "user", "content": text}], self._settings())

            now = stack.enter_context(phase("asking the judge", len(asked), "verdicts"))

            def take(number: int, reply: Reply) -> None:
                nonlocal failed
                now.advance()
                entry = numbers.pop(number)
                if reply.kind is ReplyKind.FAILED:
                    failed += 1
                    return
                key, one = asked[number][0], read(reply)
                line = {"key": key, "verdict": one.value, "said": reply.text, "entry": entry}
                line |= {"why": one.why} if one.why else {}
                file.write(f"{strict_json(line)}\n".encode())
                file.flush()
                os.fsync(file.fileno())
                said[key] = one

            self._endpoint.ask_all(questions(), take)
        return said, failed

    def _settings(self) -> dict[str, float]:
        return {
            "temperature": self.options.temperature,
            "max_tokens": self.options.max_tokens,
        }


def digest_asked(text: str) -> str:
    """A text's digest, by which it is known again."""
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=12).hexdigest()


def shown_prompt(prompt: Text) -> str:
    """A prompt as one text, each message with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{one['role']}: {one.get('content')}" for one in prompt)


def _kept(line: Mapping[str, Any]) -> tuple[str, RubricVerdict]:
    value = line["verdict"]
    return str(line["key"]), RubricVerdict(
        None if value is None else float(value), str(line.get("why", ""))
    )
