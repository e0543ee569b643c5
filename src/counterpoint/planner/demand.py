"""Memory of a micro-batch as a function of its tokens: straight lines through two rehearsals.

Each stage of a micro-batch (the trunk's forward, the head, each part of the backward) has a line
of its own, since each is at its worst for another number of tokens: with few tokens the end of
the backward, when all gradients are there; with many its beginning, when all activations still
are. The peak is the highest line.

Not here: rehearsing (``rehearsal``), what to make of it (``plan``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from counterpoint.planner.holdings import Holdings
from counterpoint.planner.rehearsal import PARTS, Parts, Rehearsal


@dataclass(frozen=True, slots=True)
class Demand:
    """What a micro-batch needs, for any number of tokens.

    Args:
        holdings: what is there whatever the micro-batch holds.
        small: a rehearsal with few tokens.
        large: one with more.
        extra: bytes that the head takes on a device, beyond what it takes on a CPU.
    """

    holdings: Holdings
    small: Rehearsal
    large: Rehearsal
    extra: int = 0

    def parts(self, tokens: int) -> Parts:
        """What is held at the worst moment, weights and optimizer not counted.

        Args:
            tokens: input tokens of the micro-batch, padding included.
        """
        stage = max(self._stages(), key=lambda pair: self._total(pair, tokens))
        parts = _shared_out(self._total(stage, tokens), self._along(stage, tokens))
        parts = replace(parts, head=parts.head + self.extra)
        update = Parts(gradients=self.holdings.gradients)  # while the optimizer works
        return max(parts, update, key=lambda one: one.total)

    def peak(self, tokens: int) -> int:
        """Bytes at the worst moment of a step, weights and optimizer included."""
        return self.holdings.lasting + self.parts(tokens).total

    def host(self, tokens: int) -> int:
        """Bytes that wait on the host: of activations, and of what a rank holds of the model."""
        low, high = self.small.host, self.large.host
        slope = max(0.0, (high - low) / (self.large.tokens - self.small.tokens))
        kept = max(0, round(high + slope * (tokens - self.large.tokens)))
        return kept + self.holdings.host

    def budget(self, memory: int) -> int:
        """Most tokens of a micro-batch whose peak fits; 0 where not even one token's does.

        Args:
            memory: bytes for all of it, weights included.
        """
        # the peak grows with the tokens; doubling finds a number that is too much
        low, high = 0, 1
        while self.peak(high) <= memory:
            low, high = high, 2 * high
            if high > MOST_TOKENS:
                return MOST_TOKENS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(middle) <= memory else (low, middle)
        return low

    def _stages(self) -> Iterator[tuple[Parts, Parts]]:
        return zip(self.small.stages, self.large.stages, strict=True)

    def _total(self, stage: tuple[Parts, Parts], tokens: int) -> int:
        """What a stage holds; never less than with fewer tokens."""
        low, high = (parts.total for parts in stage)
        slope = max(0.0, (high - low) / (self.large.tokens - self.small.tokens))
        return max(0, round(high + slope * (tokens - self.large.tokens)))

    def _along(self, stage: tuple[Parts, Parts], tokens: int) -> dict[str, float]:
        """What each part of a stage holds; one may fall for another."""
        far = (tokens - self.small.tokens) / (self.large.tokens - self.small.tokens)
        pairs = {name: [getattr(parts, name) for parts in stage] for name in PARTS}
        return {name: max(0.0, low + far * (high - low)) for name, (low, high) in pairs.items()}


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
