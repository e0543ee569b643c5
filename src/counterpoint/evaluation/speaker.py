"""A model that answers: one text, given out while it is written, and stopped when that is asked.

The text is that of ``draw_candidates`` for the same prompt, number and chance, of a batch of one.

Not here: the conversation (``cli.talk``), what is safe to give out (``spelling``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from counterpoint.console.person import Stop
from counterpoint.data.encoder import Encoder
from counterpoint.data.vocabularies import text_of
from counterpoint.errors import DataError
from counterpoint.evaluation.generation import BatchWriter, Decoding, Prompt, as_completion
from counterpoint.evaluation.room import longest_source, room_behind
from counterpoint.evaluation.sampling import Sampling, candidate_chance, chosen_by_chance
from counterpoint.evaluation.spelling import Spelling
from counterpoint.evaluation.texts import Completion
from counterpoint.evaluation.untouched import untouched


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model with what it takes to talk with it.

    Args:
        name: as the user wrote it.
        model: as for ``generation.complete``.
        tokenizer: with EOS and pad token.
        encoder: of the model's prompts.
        how: it draws; of its texts one is written at a time.
        seed: of the draws.
        autocast: what the model computes in.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder[Any]
    how: Sampling
    seed: int
    autocast: Callable[[], AbstractContextManager[Any]]

    def room(self, prompt: Prompt) -> int:
        """Tokens that an answer may have.

        Args:
            prompt: the conversation so far.

        Raises:
            DataError: CP235 where the conversation fills the model's positions.
        """
        length, source = len(prompt.start or prompt.ids), longest_source([prompt])
        try:
            return room_behind(length, self.model, self.how.most_tokens, source=source)
        except DataError as error:
            if error.code != "CP204":
                raise
            positions = self.model.config.get_text_config().max_position_embeddings
            raise DataError(
                "CP235",
                f"the conversation takes {source or length:,} tokens with that message, and "
                f"{self.name} has {positions:,} positions, so that nothing can be answered. The "
                "message was left out; shorten it, take a turn back with /undo, or begin anew with "
                "/reset.",
            ) from error

    def answer(
        self,
        prompt: Prompt,
        occurrence: int,
        candidate: int,
        hears: Callable[[str], None],
        stop: Stop,
    ) -> Completion:
        """Write one answer.

        Args:
            prompt: the conversation so far.
            occurrence: how often that prompt was answered before.
            candidate: number of the answer among those to this prompt, from 0.
            hears: given each piece of the text as it is done; all of them are the text.
            stop: asked after each token whether the answer is to end there.

        Returns:
            The answer; of one that was stopped, what there is of it.

        Raises:
            DataError: CP235, as ``room``.
        """
        limit = self.room(prompt)
        writer = BatchWriter(
            self.model, self.tokenizer, Decoding(limit, batch=1), limit, False, self.how.stops
        )
        chance = candidate_chance(self.seed, self.name, prompt, occurrence, candidate)
        spelling = Spelling(lambda ids: text_of(self.tokenizer, ids))
        written: list[int] = []

        def take(token: int) -> bool:
            written.append(token)
            if token not in writer.ends:
                hears(spelling.more(written))
            return stop.pressed > 0

        with stop.breakable(), self.autocast(), untouched(self.model):
            chooses = chosen_by_chance(self.how, [chance])
            writer.write([prompt], _nothing_counted, chooses, _Each(take))
        kind = "sampled" if self.how.temperature else "greedy"
        found = as_completion(self.tokenizer, prompt, written, kind, writer.ends)
        hears(spelling.rest(found.ids))
        return found


def _nothing_counted() -> None:
    """Tokens are taken one by one."""


class _Each(StoppingCriteria):
    """Hands on each token of the only row, and ends it when told so."""

    def __init__(self, take: Callable[[int], bool]) -> None:
        self._take = take

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        ends = self._take(int(input_ids[0, -1]))
        return torch.full((len(input_ids),), ends, dtype=torch.bool, device=input_ids.device)
