"""Layouts of encoder-decoders: sources for the encoder, a row a completion for the decoder.

A decoder's row is what it is given to begin with and then a completion, ``start | completion``:
the token before predicts the next one, and the last token is not among the row's ids, for nothing
follows it. What ``start`` holds carries no loss. Rows are padded at their end, where no token looks
from before, so that they need no mask; sources need one where they are padded, because an encoder
looks both ways.

Both layouts give the same numbers. ``encoder-once`` runs each source once and hands what the
encoder says to all completions of it, those of other pairs in the batch too: hooks on model and
encoder, so that the model's own forward, its wrappers and its engine see one call. Which source a
pair has is a keyword of that call. ``encoder-twice`` is the truth that it is compared with.

Not here: what a decoder begins with (``data.translation``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.errors import ModelError
from counterpoint.forward.layouts import SIDES, Layout, register_layout
from counterpoint.forward.rows import Ids, Rows, said
from counterpoint.forward.sharable import LEARNS_A_PROMPT, learns_a_prompt, noise_on
from counterpoint.forward.unpadded import PLACES, Places, unpadded
from counterpoint.records import PairBatch, TokenPair, exact_dtype

ENCODER, DECODER = "encoder", "decoder"
"""Parts of a model whose layers read rows of different kinds."""

SOURCES = "counterpoint_sources"
"""The keyword with which a model is told whose source each row of the decoder looks at."""


class _Heard(NamedTuple):
    """Whose source each row of the decoder looks at.

    Args:
        numbers: of each pair's source; None: each pair has its own.
        completions: of each pair: so many times the rows look at the same.
    """

    numbers: tuple[int, ...] | None = None
    completions: int = 2


class EncoderTwice(Layout):
    """Each completion with a source of its own."""

    name = "encoder-twice"
    encoded = True

    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """The longest source and the longest row for each completion."""
        return len(said(pairs)) * (_widest_source(pairs) + _widest_row(pairs))

    def tokens_alone(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A source and a row for each completion, as long as the longest; one token begins it."""
        source, *completions = lengths.T
        total: npt.NDArray[np.int64] = len(completions) * (source + np.max(completions, 0))
        return total

    def rows(self, pairs: Sequence[TokenPair], pad_id: int) -> Rows:
        """Chosen rows, then the others; the sources in the same order."""
        return _decoder_rows(pairs, pad_id, range(len(said(pairs))))

    def times_counted(self, batch: PairBatch) -> Float[Tensor, "rows tokens"]:
        """Once where a token of the decoder is real."""
        weight = batch.attention_mask.to(exact_dtype(batch.input_ids.device))
        return weight * batch.counted.repeat(batch.completions)[:, None]

    def part_at(self, batch: PairBatch, row: int, position: int) -> tuple[int, str, int]:
        """From the row's number: an input of the decoder is "start" or the side's own token."""
        number, side = row % len(batch), SIDES[row // len(batch)]
        pair = batch.pairs[number]
        if position < len(pair.start):
            return number, "start", position
        place = position - len(pair.start)
        # the last token of a completion is no input
        real = place < len(getattr(pair, side)) - 1
        return number, side if real else "padding", place

    def inputs(self, batch: PairBatch) -> dict[str, Any]:
        """Sources under their names, and the rows as the decoder's."""
        return {**batch.inputs, "decoder_input_ids": batch.input_ids}


class EncoderOnce(EncoderTwice):
    """Each source once, for the completions of all pairs that have it."""

    name = "encoder-once"
    gain = "nothing: the same step, sources once"

    def skips_padding(self, device: str) -> bool:
        """In linear layers on a CPU."""
        return device == "cpu"

    def common(self, pair: TokenPair) -> Hashable:
        """Its source."""
        return tuple(pair.prompt)

    def sources(self, pairs: Sequence[TokenPair]) -> list[int]:
        """The number of each pair's source, in the order in which sources are met."""
        met: dict[Hashable, int] = {}
        return [met.setdefault(self.common(pair), len(met)) for pair in pairs]

    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """The longest source a source, and the longest row for each completion."""
        several = max(self.sources(pairs)) + 1
        return several * _widest_source(pairs) + len(said(pairs)) * _widest_row(pairs)

    def tokens_alone(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """One source, and a row for each completion, as long as the longest."""
        source, *completions = lengths.T
        total: npt.NDArray[np.int64] = source + len(completions) * np.max(completions, 0)
        return total

    def rows(self, pairs: Sequence[TokenPair], pad_id: int) -> Rows:
        """Chosen rows, then the others; each source once."""
        return _decoder_rows(pairs, pad_id, len(pairs[0].completions) * self.sources(pairs))

    def inputs(self, batch: PairBatch) -> dict[str, Any]:
        """With the source of each pair, and the places of real tokens if padding is skipped."""
        sources = self.sources(batch.pairs)
        found = super().inputs(batch)
        numbers = tuple(sources) if max(sources) + 1 < len(sources) else None
        if numbers is not None or batch.completions > 2:
            found[SOURCES] = _Heard(numbers, batch.completions)
        if self.skips_padding(batch.input_ids.device.type) and (places := _places(batch, sources)):
            found[PLACES] = places
        return found

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """With what the encoder says of each source handed to all rows that look at it."""
        inner: Any = model
        parts = {ENCODER: inner.get_encoder(), DECODER: inner.get_decoder()}
        with _said_to_all(model), unpadded(model, parts):
            yield

    def to_prove(self, few: Sequence[TokenPair], pairs: Sequence[TokenPair]) -> list[TokenPair]:
        """With a pair that has the first one's source."""
        first, last = few[0], few[-1]
        return [*few, replace(last, prompt=first.prompt, start=first.start)]

    def why_not(self, model: nn.Module, *, dropout_stays: bool = True) -> str | None:
        """What keeps a model from running its encoder once."""
        reason = super().why_not(model, dropout_stays=dropout_stays)
        if reason is not None:
            return reason
        if learns_a_prompt(model):
            return LEARNS_A_PROMPT
        return noise_on("a source", model, dropout_stays=dropout_stays)


def _places(batch: PairBatch, numbers: Sequence[int]) -> dict[str, tuple[Places, ...]]:
    """Where the real tokens of encoder and decoder are; empty where no padding is worth skipping.

    A decoder's layers read its rows, and what was said of the sources: known by their widths, so
    that sources as wide as the rows are left as they are. From lengths alone: a plan has no tensors
    whose values could be asked for.
    """
    pairs = batch.pairs
    real = _real([len(pairs[first].prompt) for first in _first_rows(numbers)])
    rows = _real([len(p.start) + len(p.completions[side]) - 1 for p, side in said(pairs)])
    decoded: list[Places | None] = []
    if real.shape[1] != rows.shape[1]:
        shows = batch.completions * [*numbers]
        decoded = [Places.of(rows), Places.of(real, shows=shows)]
    found = {ENCODER: [Places.of(real)], DECODER: decoded}
    places = {part: tuple(one for one in ones if one) for part, ones in found.items()}
    return places if any(places.values()) else {}


def _real(lengths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which tokens of padded rows are not padding."""
    return np.arange(max(lengths)) < np.asarray(lengths)[:, None]


def _first_rows(numbers: Sequence[int]) -> list[int]:
    """The first pair that has each source."""
    return [numbers.index(number) for number in range(max(numbers) + 1)]


def _widest_source(pairs: Sequence[TokenPair]) -> int:
    return max(len(pair.prompt) for pair in pairs)


def _widest_row(pairs: Sequence[TokenPair]) -> int:
    return max(_row_length(pair) for pair in pairs)


def _row_length(pair: TokenPair) -> int:
    return len(pair.start) + max(map(len, pair.completions)) - 1


def _decoder_rows(pairs: Sequence[TokenPair], pad_id: int, numbers: Sequence[int]) -> Rows:
    """Rows of the decoder, and of the encoder those that they look at.

    Args:
        pairs: of the batch.
        pad_id: as for ``Layout.rows``.
        numbers: the encoder's row for each of the decoder's.
    """
    _check_starts(pairs)
    sequences = [(pair.start, pair.completions[side]) for pair, side in said(pairs)]
    ids, mask = _padded([[*start, *one[:-1]] for start, one in sequences], pad_id)
    width, sources, targets = ids.shape[1], [], []
    for row, (start, one) in enumerate(sequences):
        first = row * width + len(start) - 1
        sources.append(np.arange(first, first + len(one)))
        targets.append(np.asarray(one, np.int64))
    read_by = {number: row for row, number in enumerate(numbers)}
    prompts = [pairs[read_by[n] % len(pairs)].prompt for n in range(len(read_by))]
    read, real = _padded(prompts, pad_id)
    inputs = {"input_ids": read}
    if not real.all():  # without a mask attention may take its fastest kernel
        # each of the decoder's rows looks at its source, of which the encoder may see one copy
        inputs["attention_mask"] = real[list(numbers)].astype(np.int64)
    return Rows(ids, mask, sources, targets, inputs=inputs)


def _check_starts(pairs: Sequence[TokenPair]) -> None:
    lacking = next((pair for pair in pairs if not pair.start), None)
    if lacking is not None:
        raise ModelError(
            "CP317",
            f"row {lacking.row} has nothing that the decoder could begin with: it was prepared for "
            "a model without an encoder.",
        )


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
    ids = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = values
        mask[row, : len(values)] = True
    return ids, mask


@contextmanager
def _said_to_all(model: nn.Module) -> Iterator[None]:
    """While open, the encoder masks as many sources as it is given, and its output is repeated.

    Rows are put together and not picked by an index: the gradient of that adds up in an order
    that no device promises.
    """
    inner: Any = model
    encoder: nn.Module = inner.get_encoder()
    now = [_Heard()]

    def told(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, Any]:
        named = dict(named)
        now[0] = named.pop(SOURCES, _Heard())
        return args, named

    def own_sources(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, Any]:
        mask, ids, numbers = named.get("attention_mask"), _first_ids(args, named), now[0].numbers
        if isinstance(mask, Tensor) and ids is not None:
            own = mask[: len(ids)]
            if numbers is not None:
                own = torch.stack([mask[row] for row in _first_rows(numbers)])
            named = {**named, "attention_mask": own}
        return args, named

    def to_all(module: nn.Module, args: Any, output: Any) -> Any:
        states, (numbers, completions) = output["last_hidden_state"], now[0]
        if numbers is not None:
            each = states.split(1)
            states = torch.cat([each[n] for n in numbers])
        output["last_hidden_state"] = torch.cat([states] * completions)
        return output

    handles = [
        model.register_forward_pre_hook(told, with_kwargs=True),
        encoder.register_forward_pre_hook(own_sources, with_kwargs=True),
        encoder.register_forward_hook(to_all),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_ids(args: Any, named: dict[str, Any]) -> Tensor | None:
    ids = named.get("input_ids", args[0] if args else None)
    return ids if isinstance(ids, Tensor) else None


ENCODER_ONCE, ENCODER_TWICE = EncoderOnce(), EncoderTwice()

for _layout in (ENCODER_ONCE, ENCODER_TWICE):
    register_layout(_layout)
