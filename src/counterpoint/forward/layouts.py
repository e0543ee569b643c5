"""Layouts: how the pairs of a micro-batch become rows, and what a model is given of them.

All that anyone needs to know of a layout is a method of its row in ``LAYOUTS``: what pairs cost
in it, how they are laid, what the model is called with and in which context, what forbids it,
and what besides values and gradients has to be seen before it is trusted (``agreement``). Nobody
asks for a layout's name to decide what to do; a new one is registered and chosen by its name.

Not here: which pairs make a batch (``data.sampler``), the proof (``agreement``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.forward.kernel_proof import prove_kernel
from counterpoint.forward.one_prompt import asks, by_prompt, times_read, whose
from counterpoint.forward.rows import (
    EmbeddingRows,
    Rows,
    asked_once,
    check_ids,
    longest_row,
    padded_rows,
    shared_row,
)
from counterpoint.forward.seeing import seeing
from counterpoint.forward.sharable import noise_on, unseen, why_not_shared
from counterpoint.forward.shared_attention import (
    KEYWORD,
    SharedRow,
    shared_attention,
    watched_calls,
)
from counterpoint.forward.shown import look_at, patches_in
from counterpoint.forward.sights import sight_of
from counterpoint.records import PairBatch, TokenPair, exact_dtype
from counterpoint.tables import add_row

AUTO = "auto"
"""The option that leaves the choice to us."""

SIDES = ("chosen", "rejected", "gold")
"""The completions of a pair in their order; the last is there in some runs alone."""


class Layout(ABC):
    """A way to lay pairs into rows. It keeps nothing: one object serves all models and runs."""

    name: ClassVar[str]
    """As the option ``layout`` says it."""

    gain: ClassVar[str] = ""
    """What is won by it, and at what cost, for a plan's remedies; empty where nothing is."""

    encoded: ClassVar[bool] = False
    """Whether it is for models whose prompts go through an encoder of their own."""

    looks_again: ClassVar[bool] = False
    """Whether a picture of a pair goes through the tower for each completion, and not once."""

    @abstractmethod
    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """Input tokens that a batch of these pairs has, padding included.

        Args:
            pairs: at least one.
        """

    def patches(self, pairs: Sequence[TokenPair]) -> int:
        """Patches that the tower reads for a batch of these pairs.

        Args:
            pairs: at least one.
        """
        looks = len(pairs[0].completions) if self.looks_again else 1
        return looks * patches_in(pairs)

    def skips_padding(self, device: str) -> bool:
        """Whether less than the padded rows is computed there, and other memory is held."""
        return False

    def common(self, pair: TokenPair) -> Hashable:
        """What pairs of one batch must have alike for some work to be done once; None: nothing is.

        Args:
            pair: any.
        """
        return None

    @abstractmethod
    def tokens_alone(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same of each pair as a batch of its own, from lengths.

        Args:
            lengths: of prompt, chosen, rejected and perhaps gold, ``[pairs, 3 or 4]``.
        """

    @abstractmethod
    def rows(self, pairs: Sequence[TokenPair], pad_id: int) -> Rows:
        """The pairs as rows of ids.

        Args:
            pairs: at least one.
            pad_id: any id that the embedding has.
        """

    @abstractmethod
    def times_counted(self, batch: PairBatch) -> Float[Tensor, "rows tokens"]:
        """How often each input token counts: once a completion that sees it, 0 in fillers."""

    @abstractmethod
    def part_at(self, batch: PairBatch, row: int, position: int) -> tuple[int, str, int]:
        """Which pair a place of the input is of, which part of it, and where in that.

        Returns:
            Number of the pair in its batch; "prompt", a completion of ``SIDES`` or "padding"; a
            place.
        """

    def collate(
        self,
        pairs: Sequence[TokenPair],
        *,
        pad_id: int = 0,
        vocab_size: EmbeddingRows | int | None = None,
    ) -> PairBatch:
        """Lay pairs into a batch, on the CPU.

        Args:
            pairs: at least one, all of one set.
            pad_id: any id that the embedding has.
            vocab_size: rows of the model's embedding; None leaves ids unchecked.

        Raises:
            ModelError: CP303 for a token id that the embedding does not have.
        """
        if vocab_size is not None:
            check_ids(pairs, vocab_size)
        rows, said = self.rows(pairs, pad_id), [pair.reference for pair in pairs]
        return PairBatch(
            layout=self.name,
            pairs=tuple(pairs),
            cost=self.tokens(pairs),
            input_ids=torch.from_numpy(rows.ids),
            attention_mask=torch.from_numpy(rows.mask),
            inputs={name: torch.from_numpy(values) for name, values in rows.inputs.items()},
            target_source=torch.from_numpy(np.concatenate(rows.sources)),
            target_ids=torch.from_numpy(np.concatenate(rows.targets)),
            target_counts=torch.tensor([len(ids) for ids in rows.targets]),
            **asked_once(rows),
            weight=torch.tensor([pair.weight for pair in pairs], dtype=torch.float64),
            margin=torch.tensor([pair.margin for pair in pairs], dtype=torch.float64),
            row_ids=torch.tensor([pair.row for pair in pairs]),
            segments=rows.segments,
            of=pairs[0].of,
            reference=None if None in said else torch.tensor(said, dtype=torch.float64),
        )

    def inputs(self, batch: PairBatch) -> dict[str, Any]:
        """What the model is called with."""
        return {"input_ids": batch.input_ids, **batch.inputs}

    def running(self, model: nn.Module) -> AbstractContextManager[None]:
        """What has to be open around forward and backward."""
        return nullcontext()

    def why_not(self, model: nn.Module, *, dropout_stays: bool = True) -> str | None:
        """What is known to forbid it, in words; None if nothing is.

        Args:
            model: unwrapped from distributed training; PEFT-wrapped or plain.
            dropout_stays: False for a model whose dropout will be turned off before it trains.
        """
        has_encoder = bool(getattr(model.config, "is_encoder_decoder", False))
        if has_encoder == self.encoded:
            return None
        return f"this model has {'an' if has_encoder else 'no'} encoder"

    def is_timed(self, device: str) -> bool:
        """Whether ``AUTO`` asks the clock there before it prefers it to the reference."""
        return False

    def to_prove(self, few: Sequence[TokenPair], pairs: Sequence[TokenPair]) -> list[TokenPair]:
        """Pairs on which it is proved: some of the run's, and what else must be among them.

        Args:
            few: the first of them, at least one.
            pairs: of the run, from which those were taken.
        """
        return list(few)

    def watched(self) -> AbstractContextManager[Set[Any]]:
        """While open, what else the proof has to see is put into the set."""
        return nullcontext(set())

    def unseen(self, model: nn.Module, seen: Set[Any]) -> str | None:
        """What should have been seen and was not, so that nothing is proved; None if all was."""
        return None

    def prove_kernels(self, seen: Set[Any], batch: PairBatch, dtype: torch.dtype) -> None:
        """Prove the kernels that it will run through in the run's own dtype."""
        return


class Padded(Layout):
    """A row for each completion, with its own prompt: the truth that others are compared with.

    Rows are padded at their end, where no token looks from before. So they need no mask, and
    without one attention takes its fastest kernel and nothing is read back from the device.
    """

    name = "padded"

    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """The longest row for each completion, and patches of pictures as often as it looks."""
        rows = sum(len(pair.completions) for pair in pairs)
        return rows * max(longest_row(pair) for pair in pairs) + self.patches(pairs)

    def tokens_alone(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows as long as the longest one."""
        prompt, *completions = lengths.T
        total: npt.NDArray[np.int64] = len(completions) * (prompt + np.max(completions, 0))
        return total

    def rows(self, pairs: Sequence[TokenPair], pad_id: int) -> Rows:
        """Chosen rows, then rejected rows, then gold ones."""
        return padded_rows(pairs, pad_id)

    def times_counted(self, batch: PairBatch) -> Float[Tensor, "rows tokens"]:
        """Once where a token is real."""
        weight = batch.attention_mask.to(exact_dtype(batch.input_ids.device))
        return weight * batch.counted.repeat(batch.completions)[:, None]

    def part_at(self, batch: PairBatch, row: int, position: int) -> tuple[int, str, int]:
        """From the row's number."""
        number, left = row % len(batch), position
        for part in ("prompt", SIDES[row // len(batch)]):
            length = len(getattr(batch.pairs[number], part))
            if left < length:
                return number, part, left
            left -= length
        return number, "padding", left

    def inputs(self, batch: PairBatch) -> dict[str, Any]:
        """With the pictures of the rows, if they show any."""
        return {**super().inputs(batch), **look_at(batch.pairs, ())}

    def running(self, model: nn.Module) -> AbstractContextManager[None]:
        """With a model that understands what is said of pictures."""
        return seeing(model)

    def why_not(self, model: nn.Module, *, dropout_stays: bool = True) -> str | None:
        """What keeps a model that sees from looking once."""
        reason = super().why_not(model, dropout_stays=dropout_stays)
        if reason is not None or sight_of(model.config) is None:
            return reason
        return noise_on("a picture", model, dropout_stays=dropout_stays)


class PicturesTwice(Padded):
    """Padded rows, each with the pixels of its own pictures: the truth for models that see."""

    name = "pictures-twice"
    looks_again = True

    def inputs(self, batch: PairBatch) -> dict[str, Any]:
        """With pixels for every row."""
        return {**super().inputs(batch), **look_at(batch.pairs, (), repeated=True)}

    def why_not(self, model: nn.Module, *, dropout_stays: bool = True) -> str | None:
        """Nothing, for a model that sees."""
        return "this model sees no pictures" if sight_of(model.config) is None else None


class Shared(Layout):
    """All pairs in one row, each prompt once; attention keeps completions apart."""

    name = "shared"
    gain = "nothing: the same step, prompts once"

    def tokens(self, pairs: Sequence[TokenPair]) -> int:
        """Every token once, and the patches of pictures."""
        together = by_prompt(pairs)
        texts = sum(one.segment(pairs, 0).tokens for one in together)
        return texts + patches_in([one.asking(pairs) for one in together])

    def common(self, pair: TokenPair) -> Hashable:
        """Its prompt and its pictures."""
        return asks(pair)

    def tokens_alone(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Every token once."""
        total: npt.NDArray[np.int64] = lengths.sum(1)
        return total

    def rows(self, pairs: Sequence[TokenPair], pad_id: int) -> Rows:
        """One row, without padding."""
        return shared_row(pairs)

    def times_counted(self, batch: PairBatch) -> Float[Tensor, "rows tokens"]:
        """In a prompt as often as there are completions, of all pairs that have it."""
        device = batch.input_ids.device
        return times_read(batch)[None].to(device, exact_dtype(device))

    def part_at(self, batch: PairBatch, row: int, position: int) -> tuple[int, str, int]:
        """Of the first pair that has it."""
        number, side, place = whose(batch, position)
        return number, "prompt" if side is None else SIDES[side], place

    def inputs(self, batch: PairBatch) -> dict[str, Any]:
        """With the segments for our attention."""
        asked = tuple(one.asking(batch.pairs) for one in by_prompt(batch.pairs))
        return {
            **super().inputs(batch),
            # one of four dimensions is taken as it is, none is built, and our attention needs none
            "attention_mask": batch.attention_mask[:, None, None],
            KEYWORD: SharedRow.of(batch.segments, batch.input_ids.device),
            **look_at(asked, batch.segments),
        }

    @contextmanager
    def running(self, model: nn.Module) -> Iterator[None]:
        """With our attention in the place of the model's."""
        with shared_attention(model), seeing(model):
            yield

    def why_not(self, model: nn.Module, *, dropout_stays: bool = True) -> str | None:
        """What keeps a model from sharing its prompts."""
        reason = super().why_not(model, dropout_stays=dropout_stays)
        return reason or why_not_shared(model, dropout_stays=dropout_stays)

    def is_timed(self, device: str) -> bool:
        """On CPUs it has always been faster; elsewhere that depends on kernels and lengths."""
        return device != "cpu"

    def to_prove(self, few: Sequence[TokenPair], pairs: Sequence[TokenPair]) -> list[TokenPair]:
        """Where prompts are alike, with one that has the prompt of the first and its chosen one."""
        asked = [ids for ids in map(asks, pairs) if ids is not None]
        if len(set(asked)) == len(asked):
            return list(few)
        first, *others = few
        # no longer than what the first one has: positions may end behind it
        other = few[-1].rejected[: max(map(len, first.completions))]
        return [first, replace(first, rejected=other, rejected_given=()), *others]

    def watched(self) -> AbstractContextManager[Set[Any]]:
        """The kinds of calls that reach our attention."""
        return watched_calls()

    def unseen(self, model: nn.Module, seen: Set[Any]) -> str | None:
        """The proof's pairs may be shorter than a window; it must have been seen all the same."""
        return unseen(model, seen)

    def prove_kernels(self, seen: Set[Any], batch: PairBatch, dtype: torch.dtype) -> None:
        """The kernel for all pairs at once, for each kind of call."""
        for call in seen:
            prove_kernel(call, batch.segments, dtype, batch.input_ids.device)


PADDED, SHARED, PICTURES_TWICE = Padded(), Shared(), PicturesTwice()

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (SHARED, PADDED, PICTURES_TWICE)}
"""Every layout by its name."""

REFERENCE: Layout = PADDED
"""What other layouts are compared with, and what a run falls back to."""


def first_tokens(layout: Layout, pair: TokenPair, tokens: int) -> PairBatch:
    """A batch of a few tokens and no padding, on the CPU, to prove a head on.

    Args:
        layout: in which it is laid.
        pair: any; its chosen completion stands on both sides.
        tokens: most of its prompt, and most of its completion.
    """
    completion = pair.chosen[:tokens]
    # without pictures: the head is asked the same of a prompt in which ids stand for none
    prompt = pair.prompt[:tokens]
    few = TokenPair(prompt, completion, completion, pair.row, start=pair.start, of=pair.of)
    return layout.collate([few])


def register_layout(layout: Layout) -> Layout:
    """Add a layout of your own, to be chosen by its name: ``CPOConfig(layout=name)``.

    A run proves it against padded rows on its first pairs, in value and gradient, as any other.

    Args:
        layout: whose name no other has.

    Returns:
        The same.

    Raises:
        ValueError: for a name that is taken.
    """
    return add_row(LAYOUTS, layout, "a layout", reserved=(AUTO,))
