"""What a server that speaks OpenAI's protocol has answered: a text, or why there is none.

Not here: asking it (``endpoint``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from counterpoint.masking import masked
from counterpoint.visible import visible

CUT_SHORT = frozenset(("abort", "error"))
"""Reasons to finish by which a server says that it gave up on a text."""

MOST_SAID = 200
"""Characters of a server's complaint that are passed on."""


class ReplyKind(StrEnum):
    """What came of a question."""

    TEXT = "text"
    EMPTY = "empty"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it.

    Args:
        kind: a text; one without a visible character; a refusal, in which the server's filter
            counts; or a failure for good.
        text: that was written; of a refusal, what there is of it.
        finish: why the text ended, in the server's word: "stop", "length", ...
        tokens: of the text, as the server counts them; None where it does not.
        reason: of a refusal or a failure.
        status: of the last answer; None where there was none.
        tries: how often it was asked, at least 1.
        model: that the server says has answered.
    """

    kind: ReplyKind
    text: str = ""
    finish: str | None = None
    tokens: int | None = None
    reason: str = ""
    status: int | None = None
    tries: int = 1
    model: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the text ended by itself, not at a limit."""
        return self.finish not in (None, "length")


@dataclass(frozen=True, slots=True)
class TryAgain:
    """A try that another one may better.

    Args:
        reason: what went wrong.
        status: of the answer, if there was one.
        after: seconds until the next try, as the server says.
        unheard: whether nobody took the connection.
    """

    reason: str
    status: int | None = None
    after: float | None = None
    unheard: bool = False


def reply_of(content: bytes, is_text: bool) -> Reply | TryAgain:
    """The completion that an answer holds.

    Args:
        content: JSON, or what came in its place.
        is_text: whether a text was to be continued, not a conversation.
    """
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        said = choice if is_text else choice["message"]
        finish = choice.get("finish_reason")
        text, refusal = said["text"] if is_text else said.get("content"), said.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        what = complaint_of(content) or "nothing"
        return TryAgain(f"an answer that is no completion: {what}", 200)
    finish = finish if isinstance(finish, str) else None
    if finish in CUT_SHORT:
        return TryAgain(f"the server gave up on the text: {finish}", 200)
    text = _whole_characters(text) if isinstance(text, str) else ""
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    kind, reason = ReplyKind.TEXT if text.strip() else ReplyKind.EMPTY, ""
    if refusal or finish == "content_filter":
        kind, reason = ReplyKind.REFUSED, passed_on(str(refusal or finish))
    return Reply(
        kind,
        text,
        finish,
        tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None,
        reason,
        200,
        model=answer["model"] if isinstance(answer.get("model"), str) else None,
    )


def _whole_characters(text: str) -> str:
    """Without halves of characters, which JSON can say and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def complaint_of(content: bytes) -> str:
    """What a server complains of: the message of its JSON, or the beginning of anything else.

    Args:
        content: of an answer.
    """
    text = content[: 2**16].decode("utf-8", "replace")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return passed_on(text)
    for name in ("error", "message", "detail"):
        if isinstance(found, Mapping) and found.get(name):
            found = found[name]
    return passed_on(found if isinstance(found, str) else text)


def passed_on(text: str) -> str:
    """A stranger's text as it may be passed on: on one line, without secrets, and not long."""
    text = visible(masked(" ".join(text.split())))
    return text if len(text) <= MOST_SAID else f"{text[: MOST_SAID - 3]}..."


def seconds_of(text: str | None) -> float | None:
    """How long to wait, at least 0.

    Args:
        text: of a header Retry-After: seconds, or a date; None is returned where it says neither.
    """
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            then = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else max(0.0, seconds)
