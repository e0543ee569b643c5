"""The nouns that pass the doors between rooms, all frozen.

    TokenPair -> PairBatch -> PairLogps -> LossTerms (over StepTotals)

``PairLogps`` is the waist of the hourglass: every loss above it is a few lines, and every
layout, kernel and backend below it serves all losses.

Axis names in shapes: ``pairs``; ``rows`` and ``tokens`` of the model's input; ``targets``, the
tokens that carry loss, flat over the batch; ``segments``, the pieces laid into rows.
Log-probabilities are in nats throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterpoint.pair_facts import NO_FACTS, PairFacts
from counterpoint.pair_segments import PairSegments
from counterpoint.picture import Picture, SeenPicture

FILLER_ROW = -1
"""The row id of a pair that only keeps a rank busy: weight 0, counted nowhere."""


def exact_dtype(device: torch.device | str) -> torch.dtype:
    """The dtype in which sums over pairs and tokens are kept: float64 where a device has it."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One preference as token ids: a prompt, two completions of it, and perhaps a third.

    Neither is empty, and ``prompt + completion`` never exceeds the run's ``max_length``.

    Args:
        prompt: ids before the boundary, the one BOS included where the tokenizer has one; of an
            encoder-decoder, the source.
        chosen: ids after the boundary, ending with EOS unless they were cut.
        rejected: the same for the other completion.
        row: the row's number in its data set, or ``FILLER_ROW``.
        weight: factor of this pair in the loss, at least 0.
        margin: what chosen must win by, in nats of scaled reward, on top of the loss's own.
        of: the constraint whose set it is of; "": the run's own sets.
        start: ids with which a decoder that has an encoder beside it begins either completion; they
            are given, so that they carry no loss. Empty for a decoder alone.
        pictures: of the prompt, in the order of their places; seen: as the tower takes them.
        chosen_given: spans of ``chosen`` that are read and carry no loss, such as a tool's results:
            first place and the one past the last of each, flat. rejected_given: of ``rejected``.
        reference: summed log-probabilities of both under the run's reference, in nats, as its loss
            reads sums; None: it compares with none.
        gold: a third completion, whose negative log-likelihood the loss has in place of that of
            ``chosen`` (TPO); empty: there is none. Pairs of a batch all have one, or none has.
        gold_given: of ``gold``, as ``chosen_given``.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    row: int
    weight: float = 1.0
    margin: float = 0.0
    of: str = ""
    start: Sequence[int] = ()
    pictures: tuple[Picture, ...] = ()
    seen: Sequence[SeenPicture] = ()
    chosen_given: Sequence[int] = ()
    rejected_given: Sequence[int] = ()
    reference: tuple[float, float] | None = None
    gold: Sequence[int] = ()
    gold_given: Sequence[int] = ()

    @property
    def completions(self) -> tuple[Sequence[int], ...]:
        """Chosen, rejected and, if there is one, gold."""
        return (
            (self.chosen, self.rejected, self.gold) if self.gold else (self.chosen, self.rejected)
        )

    @property
    def givens(self) -> tuple[Sequence[int], ...]:
        """The spans without loss of each of ``completions``."""
        return (self.chosen_given, self.rejected_given, self.gold_given)[: len(self.completions)]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """A micro-batch of pairs as tensors, in whichever layout; the forward reads it alone.

    Sequences are the chosen completions of all pairs, then the rejected ones, then the gold ones if
    pairs have any: ``s`` is a completion of pair ``s % pairs``. Targets are sorted by sequence.

    Args:
        layout: name of the layout (``forward.layouts``).
        pairs: what was laid into it.
        cost: input tokens, padding included: what a token budget counts.
        input_ids: token ids of the rows whose hidden states predict targets.
        attention_mask: True where a token is real, False at padding.
        inputs: what else the model is called with, by keyword, such as positions.
        target_source: flat index into rows x tokens of the hidden state that predicts a target.
        target_ids: the token it should predict.
        target_counts: targets of each of the 2 x pairs sequences, or 3 x pairs.
        asked: where sequences have targets in common, one of each kind: numbers of targets whose
            scores the head computes. None: it computes all.
        answers: of each target, which of ``asked`` has its scores; None likewise.
        weight: factor of each pair in the loss, at least 0.
        margin: extra margin of each pair, in nats of scaled reward.
        row_ids: row numbers in the data set; ``FILLER_ROW`` counts nowhere.
        segments: where the pairs of each prompt lie in a row that holds several; else empty.
        of: the constraint whose set the pairs are of; "": the run's own sets.
        reference: ``TokenPair.reference`` of each pair; None where a pair has none.
    """

    layout: str
    pairs: tuple[TokenPair, ...]
    cost: int
    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Bool[Tensor, "rows tokens"]
    inputs: Mapping[str, Tensor]
    target_source: Int[Tensor, " targets"]
    target_ids: Int[Tensor, " targets"]
    target_counts: Int[Tensor, " sequences"]
    weight: Float[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"]
    row_ids: Int[Tensor, " pairs"]
    asked: Int[Tensor, " asked"] | None = None
    answers: Int[Tensor, " targets"] | None = None
    segments: tuple[PairSegments, ...] = ()
    of: str = ""
    reference: Float[Tensor, "pairs 2"] | None = None

    def __len__(self) -> int:
        """Number of pairs, fillers included."""
        return self.row_ids.shape[0]

    @property
    def counted(self) -> Bool[Tensor, " pairs"]:
        """True for the pairs that belong to the step, False for fillers."""
        return self.row_ids != FILLER_ROW

    @property
    def chosen_tokens(self) -> Int[Tensor, " pairs"]:
        """Target tokens of each chosen completion."""
        return self.target_counts[: len(self)]

    @property
    def completions(self) -> int:
        """How many each pair has: 2, or 3 with a gold one."""
        return len(self.target_counts) // len(self)

    @property
    def gold_tokens(self) -> Int[Tensor, " pairs"] | None:
        """Target tokens of each gold completion; None where pairs have none."""
        return self.target_counts[2 * len(self) :] if self.completions > 2 else None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        """The same batch on another device; what a model is called with keeps its dtype."""
        exact = exact_dtype(device)

        def move(tensor: Tensor) -> Tensor:
            dtype = exact if tensor.is_floating_point() else tensor.dtype
            return tensor.to(device, dtype=dtype, non_blocking=non_blocking)

        return self._map(move, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PairBatch:
        """The same batch in page-locked memory."""
        return self._map(Tensor.pin_memory, Tensor.pin_memory)

    def _map(
        self, own: Callable[[Tensor], Tensor], inputs: Callable[[Tensor], Tensor]
    ) -> PairBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {k: own(v) for k, v in values.items() if isinstance(v, Tensor)}
        changed["inputs"] = {name: inputs(tensor) for name, tensor in self.inputs.items()}
        return replace(self, **changed)


@dataclass(frozen=True, slots=True)
class PairLogps:
    """What the model says of each pair, and all that a loss may know.

    Sums are float64 where the device has it, so that adding them up costs nothing in exactness.

    Args:
        chosen: summed log-probability of the chosen completion's targets, in nats, at most 0.
        rejected: the same of the rejected completion.
        chosen_tokens: number of targets of the chosen completion, at least 1.
        rejected_tokens: the same of the rejected completion.
        drift: KL(initial policy || model) of the next token, in nats, summed over the targets of
            both completions; None where no constraint asks for it.
        facts: what else a loss asks for.
        reference: the run's reference's ``chosen`` and ``rejected``, side by side, if it has one.
        gold: the same as ``chosen`` of a third completion; None where pairs have none.
        gold_tokens: the same as ``chosen_tokens`` of it.
    """

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    chosen_tokens: Int[Tensor, " pairs"]
    rejected_tokens: Int[Tensor, " pairs"]
    drift: Float[Tensor, " pairs"] | None = None
    facts: PairFacts = NO_FACTS
    reference: Float[Tensor, "pairs 2"] | None = None
    gold: Float[Tensor, " pairs"] | None = None
    gold_tokens: Int[Tensor, " pairs"] | None = None


@dataclass(frozen=True, slots=True)
class LossTerms:
    """What an objective makes of ``PairLogps``: one number a pair, nothing averaged yet.

    Args:
        preference: preference loss of each pair.
        nll: negative log-likelihood of the chosen completion, or of the gold one where the loss
            reads it, summed over its tokens, in nats.
        nll_tokens: how many those are.
        chosen_rewards: scaled reward of the chosen completion, detached.
        rejected_rewards: the same of the rejected completion.
        chosen_logps: log-probability as the loss's reward reads it, sum or mean, detached.
        rejected_logps: the same of the rejected completion.
    """

    preference: Float[Tensor, " pairs"]
    nll: Float[Tensor, " pairs"]
    nll_tokens: Int[Tensor, " pairs"]
    chosen_rewards: Float[Tensor, " pairs"]
    rejected_rewards: Float[Tensor, " pairs"]
    chosen_logps: Float[Tensor, " pairs"]
    rejected_logps: Float[Tensor, " pairs"]


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Denominators of a step's loss, summed over its micro-batches and ranks.

    Args:
        weight: sum of the pairs' weights.
        nll: what the NLL term is divided by; weighted tokens of what it is of, or weighted pairs.
    """

    weight: Float[Tensor, ""]
    nll: Float[Tensor, ""]
