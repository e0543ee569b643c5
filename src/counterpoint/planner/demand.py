"""Memory of a micro-batch as a function of its tokens: straight lines through two rehearsals.

Where pairs show pictures, patches are a second variable, and a third rehearsal has the same
pictures beside more text.

Each stage of a micro-batch (the trunk's forward, the head, each part of the backward) has a line
of its own, since each is at its worst for another number of tokens: with few tokens the end of
the backward, when all gradients are there; with many its beginning, when all activations still
are. The peak is the highest line.

Not here: rehearsing (``rehearsal``), what to make of it (``plan``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from counterpoint.planner.holdings import Holdings
from counterpoint.planner.rehearsal import PARTS, Parts, Rehearsal


@dataclass(frozen=True, slots=True)
class Demand:
    """What a micro-batch needs, for any number of tokens.

    Args:
        holdings: what is there whatever the micro-batch holds.
        small: a rehearsal with few tokens.
        large: one with more, and as many times as many patches.
        extra: bytes that the head takes on a device, beyond what it takes on a CPU.
        wordy: one with as many patches as ``large`` and more tokens; None where there are none.
    """

    holdings: Holdings
    small: Rehearsal
    large: Rehearsal
    extra: int = 0
    wordy: Rehearsal | None = None

    def parts(self, tokens: int, patches: int = 0) -> Parts:
        """What is held at the worst moment, weights and optimizer not counted.

        Args:
            tokens: input tokens of the micro-batch, padding included.
            patches: of its pictures.
        """
        stage = max(self._stages(), key=lambda stage: self._total(stage, tokens, patches))
        total = self._total(stage, tokens, patches)
        parts = _shared_out(total, self._along(stage, tokens, patches))
        parts = replace(parts, head=parts.head + self.extra)
        update = Parts(gradients=self.holdings.gradients)  # while the optimizer works
        return max(parts, update, key=lambda one: one.total)

    def peak(self, tokens: int, patches: int = 0) -> int:
        """Bytes at the worst moment of a step, weights and optimizer included."""
        return self.holdings.lasting + self.parts(tokens, patches).total

    def host(self, tokens: int, patches: int = 0) -> int:
        """Bytes that wait on the host: of activations, and of what a rank holds of the model."""
        held = [one.host for one in self._rehearsals]
        return max(0, round(self._at(held, tokens, patches))) + self.holdings.host

    def budget(self, memory: int, shares: Sequence[float] = (0.0,)) -> int:
        """Most tokens and patches of a micro-batch whose peak fits; 0 where not even one's does.

        Args:
            memory: bytes for all of it, weights included.
            shares: that patches may have in them; the peak is largest at one of the ends.
        """

        def peak(cost: int) -> int:
            return max(self.peak(cost - (n := round(share * cost)), n) for share in shares)

        # the peak grows with the tokens; doubling finds a number that is too much
        low, high = 0, 1
        while peak(high) <= memory:
            low, high = high, 2 * high
            if high > MOST_TOKENS:
                return MOST_TOKENS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if peak(middle) <= memory else (low, middle)
        return low

    @property
    def _rehearsals(self) -> tuple[Rehearsal, ...]:
        return (self.small, self.large) + ((self.wordy,) if self.wordy else ())

    def _stages(self) -> Iterator[tuple[Parts, ...]]:
        return zip(*(one.stages for one in self._rehearsals), strict=True)

    def _total(self, stage: tuple[Parts, ...], tokens: int, patches: int) -> int:
        """What a stage holds; never less than with fewer tokens."""
        return max(0, round(self._at([parts.total for parts in stage], tokens, patches)))

    def _along(self, stage: tuple[Parts, ...], tokens: int, patches: int) -> dict[str, float]:
        """What each part of a stage holds; one may fall for another."""
        each = {name: [getattr(parts, name) for parts in stage] for name in PARTS}
        return {
            name: max(0.0, self._at(held, tokens, patches, least=float("-inf")))
            for name, held in each.items()
        }

    def _at(self, held: Sequence[int], tokens: int, patches: int, *, least: float = 0.0) -> float:
        """What is held for some tokens and patches, where the rehearsals held so much.

        Args:
            held: in each rehearsal.
            tokens: of the micro-batch.
            patches: of its pictures.
            least: that each of them adds.
        """
        small, large, wordy = self.small, self.large, self.wordy
        low, high, *more = held
        further = large.tokens - small.tokens
        if wordy is None:
            a_token, a_patch = max(least, (high - low) / further), 0.0
        else:
            a_token = max(least, (more[0] - high) / (wordy.tokens - large.tokens))
            rest = high - low - a_token * further
            a_patch = max(least, rest / (large.patches - small.patches))
        return high + a_token * (tokens - large.tokens) + a_patch * (patches - large.patches)


def _shared_out(total: int, raw: dict[str, float]) -> Parts:
    """Parts that add up to a total; gradients and what is gathered are what they are."""
    gradients = min(total, round(raw.pop("gradients")))
    gathered = min(total - gradients, round(raw.pop("gathered")))
    rest = sum(raw.values())
    factor = (total - gradients - gathered) / rest if rest else 0
    shared = {name: round(size * factor) for name, size in raw.items()}
    return Parts(gradients, **shared, gathered=gathered)


MOST_TOKENS = 2**30
"""A budget that no step reaches."""
