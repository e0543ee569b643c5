"""A metric over a run: where it began, where it is, and how much its lines differ by chance.

A log line is a mean over few pairs, so that two lines differ without anything having happened.
Levels are therefore medians of three lines, and the noise of a line is read off the differences
between neighbours, which a slow drift hardly changes.

Not here: which metrics those are, and what a change of them means (``of_curves``).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import NormalDist, median

LEVEL = 3
"""Lines of which a level is the median: the fewest that one stray line cannot move far."""

LEAST = 2 * LEVEL
"""Lines before anything is judged: the start and the present must not share one."""

WINDOW = 100
"""Lines that are remembered on either side: they tell the noise within an eighth."""

CHANCE = 0.01
"""Probability of a false alarm, about, of one check of one curve in a whole run.

It is spent unevenly: the look at line n may err with probability ``CHANCE`` / n². The sum over
all lines is 1.6 times ``CHANCE``, so that a long run is as safe as a short one, and a short one
is not held to the caution of a long one.
"""

_TO_DEVIATION = 1.4826
"""Median absolute deviation -> standard deviation, for Gaussian noise."""


def gaussian(look: int) -> float:
    """Standard deviations that Gaussian noise passes by chance too seldom to matter.

    Args:
        look: number of the look, from 1; see ``CHANCE``.

    Returns:
        3.7 at the tenth look, 4.8 at the hundredth, 5.6 at the thousandth.
    """
    return -NormalDist().inv_cdf(CHANCE / look**2)


def sure(lines: int, look: int) -> float:
    """The same where the deviation is itself only read off some lines, and known the less for it.

    That is Student's t (Wallace's approximation, which here errs upwards). A median of absolute
    deviations is worth a third as many degrees of freedom as it has lines; simulated tails of 6 to
    100 lines agree within a tenth.

    Args:
        lines: that the deviation was read off, at least 4.
        look: number of the look, from 1.

    Returns:
        For as many looks as lines: 20 at the tenth, 9.4 at the twentieth, 5.7 at the hundredth.
    """
    freedom = lines / 3
    shrunk = (freedom - 5 / 6) / (freedom - 2 / 3 + 0.1 / freedom) ** 2
    return math.sqrt(freedom * math.expm1(gaussian(look) ** 2 * shrunk))


def robust_spread(values: Sequence[float]) -> float:
    """Robust standard deviation: that of Gaussian values, and blind to a few strays.

    Args:
        values: at least one.
    """
    centre = median(values)
    return _TO_DEVIATION * median(abs(value - centre) for value in values)


def noise(values: Sequence[float]) -> float:
    """Robust standard deviation of a single value around a slow drift.

    Args:
        values: neighbours in time; of fewer than three nothing is known, and 0 comes back.
    """
    steps = [later - earlier for earlier, later in pairwise(values)]
    # a difference of two has twice the variance of one
    return robust_spread(steps) / math.sqrt(2) if len(steps) > 1 else 0.0


class Curve:
    """What is remembered of a metric: its first and last lines, and its highest level."""

    def __init__(self, points: Iterable[tuple[int, float]] = ()) -> None:
        self._first: list[float] = []
        self._last: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self.count = 0
        self.peak, self.peak_step = -math.inf, 0
        self.low_until = self.high_until = 0
        for step, value in points:
            self.add(step, value)

    def add(self, step: int, value: float) -> None:
        """Take a line.

        Args:
            step: optimizer step, above that of the line before.
            value: finite.
        """
        self.count += 1
        if len(self._first) < WINDOW:
            self._first.append(value)
        self._last.append((step, value))
        if self.count < LEVEL:
            return
        # the last steps at which the curve was not above, or not below, where it began
        if self.count == LEVEL or value <= self.start:
            self.low_until = step
        if self.count == LEVEL or value >= self.start:
            self.high_until = step
        if self.level > self.peak:
            self.peak, self.peak_step = self.level, step

    @property
    def known(self) -> bool:
        """Whether there are enough lines to judge."""
        return self.count >= LEAST

    @property
    def start(self) -> float:
        """The level of the first lines."""
        return median(self._first[:LEVEL])

    @property
    def level(self) -> float:
        """The level of the last lines."""
        return median(value for _, value in list(self._last)[-LEVEL:])

    @property
    def noise(self) -> float:
        """Standard deviation of a line by chance: the larger of that at the start and now."""
        return max(noise(self._first), noise(self.last))

    @property
    def last(self) -> tuple[float, ...]:
        """The last lines, at most ``WINDOW``."""
        return tuple(value for _, value in self._last)

    @property
    def chance(self) -> float:
        """By how much two levels of the curve can differ by chance."""
        # medians of three lines have 0.45 times the variance of one, so that the difference of
        # two has 0.95 times the deviation of a line
        return sure(len(self._last), self.count) * self.noise if self.known else math.inf

    @property
    def has_risen(self) -> bool:
        """Whether the curve is above its start, and not by chance."""
        return self.level - self.start > self.chance
