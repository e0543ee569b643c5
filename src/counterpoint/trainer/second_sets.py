"""Preference sets that constraints bring: what comes with a step, and what is held out.

A ``safety`` constraint is measured on pairs that the run does not train on otherwise. They come
with every step, tagged with the constraint's name (``TokenPair.of``): cut, laid out and done again
like the step's own pairs, in micro-batches of their own.

Which pairs come with a step follows from the seed and the number of steps drawn before it alone, so
that a resumed run needs to know nothing more.

Not here: which keys those are (``data.passes``), what is measured on them (``losses.constrained``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from counterpoint.config import CPOConfig
from counterpoint.constraints import Constraint
from counterpoint.data.passes import Passes
from counterpoint.data.sources import load, pick_split
from counterpoint.errors import ConfigError, DataError
from counterpoint.records import TokenPair
from counterpoint.trainer.feed import Feed

HELD_OUT = "/eval"
"""What follows a constraint's name in the name of the set that it is evaluated on."""

MOST_EVALUATED = 1024
"""Most pairs of its own set that a constraint is evaluated on where it has no other; spread out."""


@dataclass(frozen=True, slots=True)
class SecondSet:
    """The pairs of one constraint.

    Args:
        name: of the constraint.
        pairs: prepared, that come with the steps.
        held_out: prepared, to be evaluated on; None: some of ``pairs``.
        most: pairs of it that come with a step, at most; None: as many as of the step's own.
    """

    name: str
    pairs: Any
    held_out: Any
    most: int | None


class SecondSets:
    """All sets of a run that are its constraints' own.

    Args:
        args: the run's options.
        feed: prepares them; counts them by the constraint's name.
        given: raw or prepared rows by the name of a constraint, or by that and ``HELD_OUT``; they
            take the place of the ``data`` that a constraint names.

    Raises:
        ConfigError: CP104 for rows that no constraint asks for, for a streamed set, and for a name
            that another set has; CP107 for a constraint without rows.
        DataError: CP2xx for rows that are not pairs, CP209 where none are left.
    """

    def __init__(self, args: CPOConfig, feed: Feed, given: Mapping[str, Any] | None) -> None:
        self.args, self._feed = args, feed
        asked = [one for one in args.constrained_by if one.row.own_set]
        _check_names(asked, given or {})
        self.all = [self._made(one, given or {}) for one in asked]
        self._passes: dict[tuple[str, int], Passes] = {}

    def _made(self, asked: Constraint, given: Mapping[str, Any]) -> SecondSet:
        name = asked.name
        rows = given.get(name)
        if rows is None:
            rows = rows_of(asked)
        pairs = self._prepared(rows, name)
        held_out = given.get(name + HELD_OUT)
        held_out = None if held_out is None else self._prepared(held_out, name + HELD_OUT)
        return SecondSet(name, pairs, held_out, asked.pairs)

    def _prepared(self, rows: Any, name: str) -> Any:
        if isinstance(rows, Mapping):
            rows = pick_split(rows)
        pairs = self._feed.pairs(rows, name, options=replace(self._feed.options, gold=False))
        if not hasattr(pairs, "__len__"):
            raise ConfigError(
                "CP104",
                f"the rows of constraint {name} are streamed, but a step of it is drawn from the "
                "whole set. Load the set whole.",
            )
        if not len(pairs):
            raise DataError("CP209", f"constraint {name} has no pairs left; expected at least one.")
        return pairs

    def of_step(self, number: int) -> list[TokenPair]:
        """This rank's pairs that come with a step; none where there are fewer than ranks.

        Args:
            number: steps that were drawn before.
        """
        rank, ranks = self.args.process_index, self.args.world_size
        return [
            pair
            for one in self.all
            for pair in self._read(one, one.pairs, self._of_step(one, number)[rank::ranks])
        ]

    def _of_step(self, one: SecondSet, number: int) -> list[int]:
        """Keys of all ranks; a run that resumes may take over another size of its steps."""
        most = one.most or self.args.step_pairs
        passes = self._passes.setdefault(
            (one.name, most),
            Passes(len(one.pairs), most=most, orders=self._feed.orders(one.pairs)),
        )
        return passes.of_step(number)

    def initial(self, count: int) -> list[TokenPair]:
        """What the initial policy is measured on: pairs of each set, spread evenly.

        Args:
            count: most pairs of a set.
        """
        return [pair for one in self.all for pair in self._spread(one, one.pairs, count)]

    def held_out(self) -> list[TokenPair]:
        """What constraints are evaluated on; the same on every rank and each time."""
        found: list[TokenPair] = []
        for one in self.all:
            if one.held_out is None:
                found += self._spread(one, one.pairs, MOST_EVALUATED)
            else:
                found += self._spread(one, one.held_out, len(one.held_out))
        return found

    def prepared(self) -> dict[str, Any]:
        """Every set by its name, those held out by ``HELD_OUT`` behind it."""
        own = {one.name: one.pairs for one in self.all}
        return own | {one.name + HELD_OUT: one.held_out for one in self.all if one.held_out}

    def _spread(self, one: SecondSet, pairs: Any, count: int) -> list[TokenPair]:
        return [replace(pair, of=one.name) for pair in self._feed.spread(pairs, count)]

    def _read(self, one: SecondSet, pairs: Any, keys: list[int]) -> list[TokenPair]:
        keyed = self._feed.references.keyed(pairs, self._feed.to_pair)
        found = keyed.__getitems__(keys) if keys else []
        return [replace(pair, of=one.name) for pair in found]


def rows_of(asked: Constraint) -> Any:
    """The raw rows that a constraint names.

    Args:
        asked: of a kind that has a set of its own.

    Raises:
        ConfigError: CP107 where it names none.
        DataError: CP2xx for what cannot be read.
    """
    if asked.data is None:
        raise ConfigError(
            "CP107",
            f"constraint {asked.name} needs preference rows of its own: name a file or data set as "
            f"its data, or pass CPOTrainer(constraint_datasets={{{asked.name!r}: rows}}).",
        )
    return pick_split(load(asked.data))


def _check_names(asked: list[Constraint], given: Mapping[str, Any]) -> None:
    names = [one.name for one in asked]
    for name in names:
        if name in ("train", "eval"):
            raise ConfigError(
                "CP104", f"constraint {name}: the run has a set of that name; choose another name."
            )
    known = [*names, *(name + HELD_OUT for name in names)]
    for name in given:
        if name not in known:
            there = f"those that take rows are {', '.join(known)}" if known else "none takes rows"
            raise ConfigError(
                "CP104",
                f"constraint_datasets has rows for {name!r}, which no constraint of the run asks "
                f"for: {there}.",
            )
