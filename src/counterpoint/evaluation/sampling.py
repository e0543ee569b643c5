"""Candidates: several texts to each prompt, each drawn with a chance of its own.

1. A candidate's chance is a function of seed, model, prompt and its number, and of nothing else:
   not of the batch it is written in, nor of what was written before. So a sampling that was
   killed, or dealt out otherwise, draws the same.
2. The next token is the winner of a race: each token's weight over an exponential number of its
   own. Its distribution is that of the probabilities (Gumbel's trick), and logits that differ by
   a rounding give another winner as seldom as the probabilities differ, which would not hold for
   a place in their running sum.
3. What a temperature, top-k and top-p leave is what transformers' own warpers leave.

Batches are cut from all draws, whatever is written already: a batch that is done again has the same
rows, and so, on one machine, the same logits to the bit. In other batches they differ by rounding.

Not here: which prompts, and files (``cli.sample``, ``candidate_file``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from counterpoint.console.phases import phase
from counterpoint.errors import SetupError
from counterpoint.evaluation.chance import chance_by
from counterpoint.evaluation.generation import BatchWriter, Decoding, Prompt, as_completion
from counterpoint.evaluation.room import longest_source, room_behind
from counterpoint.evaluation.texts import Completion
from counterpoint.evaluation.untouched import untouched
from counterpoint.invocation import installing


@dataclass(frozen=True, slots=True)
class Draw:
    """A text that is to be drawn.

    Args:
        row: number of its prompt, from 0.
        candidate: number of the text among those of its prompt, from 0.
        prompt: what it answers.
        chance: of ``candidate_chance``.
    """

    row: int
    candidate: int
    prompt: Prompt
    chance: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How texts are drawn.

    Args:
        most_tokens: of a text, at least 1.
        temperature: at least 0; 0: the likeliest token after token.
        top_p: share of probability, in (0, 1], of the likeliest tokens to draw from.
        top_k: most tokens to draw from; 0: all.
        batch: texts written at once, at least 1.
        stops: tokens that end a text beside those that model and tokenizer name.
        longest: tokens of the longest prompt of all; a text's room goes by it, so that it does not
            depend on which prompts are written to.
    """

    most_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch: int = 16
    stops: tuple[int, ...] = ()
    longest: int = 0


def candidate_chance(seed: int, model: str, prompt: Prompt, occurrence: int, candidate: int) -> int:
    """The seed of one candidate, in [0, 2^63).

    Args:
        seed: of the sampling.
        model: its name; two models draw with unlike chances.
        prompt: its tokens count.
        occurrence: how many equal prompts stand before it.
        candidate: its number among those of the prompt.
    """
    return chance_by(seed, model, prompt.ids, prompt.start, occurrence, candidate)


def continuous_batching() -> ModuleType:
    """The module that writes by continuous batching.

    Raises:
        SetupError: CP502 where transformers has none that texts can be drawn by.
    """
    try:
        return import_module("counterpoint.evaluation.continuous")
    except ImportError as error:
        raise SetupError(
            "CP502",
            f"engine=continuous needs transformers 5.23 or later: "
            f"{installing('transformers>=5.23')}",
        ) from error


def draw_candidates(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    draws: Sequence[Draw],
    how: Sampling,
    is_written: Callable[[Draw], bool],
    take: Callable[[Sequence[tuple[Draw, Completion]]], None],
) -> None:
    """Write texts, a batch at a time.

    Args:
        model: as for ``generation.complete``.
        tokenizer: with EOS and pad token.
        draws: all of the sampling, in an order that is the same each time.
        how: they are drawn.
        is_written: whether there is that text already; asked before anything is written.
        take: given each batch as it is done, less what was there already.

    Raises:
        DataError: CP204 for a prompt that fills the model's positions.
    """
    longest = max((len(one.prompt.start or one.prompt.ids) for one in draws), default=0)
    source = longest_source(one.prompt for one in draws)
    limit = room_behind(max(longest, how.longest), model, how.most_tokens, source=source)
    decoding = Decoding(limit, batch=how.batch)
    writer = BatchWriter(model, tokenizer, decoding, limit, False, how.stops)
    kind = "sampled" if how.temperature else decoding.kind
    missing = [not is_written(one) for one in draws]
    if not any(missing):
        return
    with (
        untouched(model),
        phase("drawing candidates", sum(missing), "candidates") as now,
    ):
        for places in writer.batches([one.prompt for one in draws]):
            if not any(missing[place] for place in places):
                continue
            rows = [draws[place] for place in places]
            chooses = chosen_by_chance(how, [one.chance for one in rows])
            new = writer.write([one.prompt for one in rows], _nothing, chooses)
            done = [
                (one, as_completion(tokenizer, one.prompt, ids, kind, writer.ends))
                for one, ids, place in zip(rows, new, places, strict=True)
                if missing[place]
            ]
            take(done)
            now.advance(len(done))


def chosen_by_chance(how: Sampling, chances: Sequence[int]) -> LogitsProcessorList | None:
    """What leaves the drawn token of each row; None where the likeliest is taken.

    Args:
        how: texts are drawn.
        chances: of the rows, from ``candidate_chance``.
    """
    if not how.temperature:
        return None
    chooses = warpers(how)
    chooses.append(_Race(chances))
    return chooses


def _nothing() -> None:
    """Tokens are not counted: texts are."""


def warpers(how: Sampling) -> LogitsProcessorList:
    """What temperature, top-k and top-p leave of the logits.

    Args:
        how: texts are drawn, with a temperature above 0.
    """
    found = LogitsProcessorList([_Wide(), TemperatureLogitsWarper(how.temperature)])
    if how.top_k:
        found.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        found.append(TopPLogitsWarper(how.top_p))
    return found


class _Wide(LogitsProcessor):
    """Logits of 16 bits in 32, so that what follows rounds nothing."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


class _Race(LogitsProcessor):
    """Leaves one token of each row, drawn by the row's own chance.

    Args:
        chances: of the rows, in order.
    """

    def __init__(self, chances: Sequence[int]) -> None:
        self._chances = chances
        self._generators: list[torch.Generator] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._generators:
            self._generators = [
                torch.Generator(scores.device).manual_seed(one) for one in self._chances
            ]
        return only_the_winners(scores, self._generators)


def only_the_winners(scores: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Logits that leave one token of each row, drawn by the row's own chance.

    Args:
        scores: logits of the next tokens, [rows, vocab], of 32 bits or more.
        generators: of the rows, on the device of the logits; each gives a number a token.
    """
    times = torch.stack(
        [scores.new_empty(scores.shape[1]).exponential_(generator=g) for g in generators]
    )
    # a time of zero, which no token should win by alone
    times.clamp_(min=torch.finfo(times.dtype).tiny)
    first = (scores - times.log()).argmax(dim=1, keepdim=True)
    return torch.full_like(scores, -torch.inf).scatter(1, first, 0.0)
