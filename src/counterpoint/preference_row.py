"""A preference as text: what every shape of a data set becomes before it is tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from counterpoint.picture import Picture

Message = dict[str, Any]
Text = str | list[Message]
"""A string, or a conversation as a list of ``{"role", "content"}`` messages."""

PARTS = ("prompt", "chosen", "rejected")
"""What every account of a data set has a number for."""

COMPLETIONS = ("chosen", "rejected")
"""The parts that may carry loss."""

GOLD = "gold"
"""What a third completion is called, which some losses read."""

GOLD_COLUMNS = (GOLD, "reference")
"""Where a row may have it; the second is TRL's name for it."""

INVALID_ROWS = ("raise", "drop")
"""What may be done with a row that cannot be used."""


ALL_TURNS, ASSISTANT_TURNS, LAST_TURN = TRAIN_TURNS = ("all", "assistant", "last")
"""Which turns of a completion of several may carry loss."""


class ListedPlace(NamedTuple):
    """Where a rejected completion stood that was one of several of a row.

    Args:
        row: number of the row in the set as it is given, from 0.
        place: in the row's list, from 0.
        of: completions in that list, at least 1; 0 where the list cannot be used.
    """

    row: int
    place: int
    of: int

    @property
    def share(self) -> float:
        """Its part of the row's weight, in (0, 1]."""
        return 1 / max(1, self.of)

    def in_words(self) -> str:
        """As a message says it."""
        where = f"rejected[{self.place}] of row {self.row}" if self.of else f"row {self.row}"
        return f"It is {where} in the set as it is given."


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """One preference, after every data-set shape has become the same shape.

    Args:
        prompt: what both completions answer; text, or messages not ending with the assistant
            (or ending with an assistant turn that the completions continue).
        chosen: the preferred completion, of the same kind as the prompt.
        rejected: the other completion.
        row: the row's number in its data set, from 0; the name used in every message.
        tools: tool schemas for the chat template, if any.
        template_kwargs: further arguments for the chat template.
        weight: factor of this pair in the loss, at least 0; of a list its share, so that the row
            as it is given counts once.
        margin: what chosen must win by, in nats of scaled reward, on top of the loss's own.
        absent: columns that its set has and in which this row has nothing, so that something
            was taken in their place: weight 1, margin 0, as prompt what the sides share.
        source_lang: what the row says of its prompt's language; a code, for models that are told
            it. None: nothing.
        target_lang: the same of its completions.
        pictures: of the prompt. Each has its place there: the n-th part ``{"type": "image"}`` of
            its turns is the n-th picture. A prompt with pictures is always messages.
        listed: where its rejected completion stood, if the row as it is given lists several.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    row: int
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] | None = None
    weight: float = 1.0
    margin: float = 0.0
    absent: tuple[str, ...] = ()
    source_lang: Any = None
    target_lang: Any = None
    pictures: tuple[Picture, ...] = ()
    listed: ListedPlace | None = None
