"""The kinds of constraints, and a constraint as it is asked for.

    minimise the preference loss, subject to value <= bound for each constraint

A kind is a row of ``KINDS``, which has all that the package knows of it. ``Constraint`` says what
is bounded, by how much, and how its multiplier moves; ``CPOConfig(constraints=[...])`` takes these,
or mappings with the same keys (YAML, JSON).

Not here: what is measured (``losses.constrained``), how multipliers move (``losses.multiplier``),
and bounds that are relative to the initial policy, which is measured first (``trainer``).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from counterpoint.errors import ConfigError
from counterpoint.tables import add_row

UPDATES: Mapping[str, str] = MappingProxyType(
    {
        "dual_ascent": "DualAscent",
        "pid": "PID",
        "nu_pi": "NuPI",
        "augmented_lagrangian": "AugmentedLagrangian",
    }
)
"""How a multiplier may move -> the rule of that name in ``losses.multiplier``."""


@dataclass(frozen=True, slots=True)
class ConstraintKind:
    """One row of the table of kinds: all that anything in the package asks of a kind.

    Args:
        name: as ``Constraint.kind`` names it.
        measures: what its value and its bound are, with their unit.
        math: how it is measured, a ``losses.constrained.ConstraintMath``; of the kinds that come
            with the package its name there, so that reading the table imports no torch.
        paper: arXiv number of where it was proposed; "": nowhere.
        bound: bound where neither bound nor slack is given; None: it must be told.
        slack: slack there.
        relative: its value is above 0 at the start, so that a share of it is a bound.
        own_options: options of ``Constraint`` that this kind reads and others do not.
        refused_updates: rule of ``UPDATES`` that cannot move its multiplier -> why.
        nll_weight: its multiplier takes the place of ``cpo_alpha`` as the weight of the NLL, and
            starts there.
        needs_references: it compares each row with what the initial policy gave it.
        needs_policy: it runs the initial policy again at every step.
        own_set: it is measured on pairs of its own, which come with the steps.
        of_texts: it is measured on what the model writes at evaluations, and moves there alone;
            its multiplier takes a price off the pairs' margins.
        outside_normalization: ``constraint_normalization`` leaves its multiplier out.
    """

    name: str
    measures: str
    math: Any
    paper: str = ""
    bound: float | None = None
    slack: float | None = None
    relative: bool = False
    own_options: tuple[str, ...] = ()
    refused_updates: Mapping[str, str] = field(default_factory=dict)
    nll_weight: bool = False
    needs_references: bool = False
    needs_policy: bool = False
    own_set: bool = False
    of_texts: bool = False
    outside_normalization: bool = False

    def start(self, cpo_alpha: float) -> float:
        """The multiplier of the first step where none is asked for.

        Args:
            cpo_alpha: of the run.
        """
        return cpo_alpha if self.nll_weight else 0.0


_ROWS: dict[str, ConstraintKind] = {
    row.name: row
    for row in (
        ConstraintKind(
            "bc",
            "nats a token of the chosen completions (Eq. 4 of arXiv:2401.08417)",
            math="NLL",
            paper="2401.08417",
            slack=0.0,
            relative=True,
            nll_weight=True,
        ),
        ConstraintKind(
            "displacement",
            "nats a token that chosen completions have lost since the start",
            math="LOST",
            bound=0.05,
            needs_references=True,
        ),
        ConstraintKind(
            "absolute_preference",
            "nats by which margins fall short of one",
            math="SHORT_OF_MARGIN",
            paper="2605.20834",
            own_options=("margin",),
        ),
        ConstraintKind(
            "safety",
            "share of a second set's pairs that are the wrong way round",
            math="WRONG_WAY_ROUND",
            relative=True,
            own_options=("data", "pairs"),
            own_set=True,
        ),
        ConstraintKind(
            "kl_drift",
            "nats a token from the initial policy, on the data's prefixes",
            math="DRIFT",
            needs_policy=True,
        ),
        ConstraintKind(
            "length",
            "tokens that the model writes to a prompt",
            math="LENGTH",
            paper="2403.19159",
            relative=True,
            refused_updates={
                "augmented_lagrangian": "reads the violation of each step, but a length is "
                "measured at evaluations alone"
            },
            of_texts=True,
            outside_normalization=True,
        ),
        ConstraintKind(
            "custom",
            "what your own function measures",
            math="OWN_FUNCTIONS",
            relative=True,
            own_options=("numerator", "denominator"),
        ),
    )
}
KINDS: Mapping[str, ConstraintKind] = MappingProxyType(_ROWS)
"""Kind of constraint -> its row."""


def register_constraint_kind(row: ConstraintKind) -> ConstraintKind:
    """Add a kind of constraint to the table; options, doctor, report and training then know it.

    Args:
        row: with a name that no row has.

    Returns:
        The same.

    Raises:
        ValueError: for a name that is taken.
    """
    return add_row(_ROWS, row, "a constraint of kind")


PairNumbers = Callable[..., Any]
"""Tensors of a micro-batch's pairs in, one number a pair out."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of a run, value <= bound.

    Args:
        kind: a key of ``KINDS``.
        name: how logs and checkpoints call it; "": its kind. Names of a run differ.
        bound: most that the value may be, in the unit of its kind.
        slack: in place of ``bound``: it is 1 + slack times the value that the initial policy has on
            the calibration slice; above -1.
        margin: of absolute_preference, in nats of log-probability as the loss reads it.
        data: of safety, a data set's name or file; rows may be given to the trainer instead.
        pairs: of safety, pairs of its set that come with each step; None: as many as a step has.
        start: multiplier of the first step, >= 0; None: ``cpo_alpha`` for bc, else 0.
        update: one of ``UPDATES``.
        rate: by how much the multiplier moves if the value is 1 above the bound for a whole run,
            >= 0; 0: it stays where it starts.
        proportional: weight of the violation at hand beside its integral over the run, in runs,
            >= 0; of pid, nu_pi and augmented_lagrangian (there it is the penalty over ``rate``).
        derivative: of pid: weight of the violation's rise, in squares of runs, >= 0.
        nu: of nu_pi: how much of the last average is kept, in [0, 1).
        smoothing: how much of the last step's average is kept in the smoothed violation, [0, 1).
        cap: largest multiplier, > 0.
        numerator: of custom: ``numerator(logps, batch)``, a number a pair, with gradient; logps is
            a ``PairLogps`` and batch a ``PairBatch``.
        denominator: of custom: ``denominator(batch)``, a number a pair, at least 0; None: 1 a pair.
            The value of a step is the sum of numerators over the sum of denominators, both weighted
            by the pairs' weights.

    Raises:
        ConfigError: CP102 for a word that is not among its choices, CP103 for a number out of its
            range, CP104 for what contradicts itself, CP107 for what is missing.
    """

    kind: str
    name: str = ""
    bound: float | None = None
    slack: float | None = None
    margin: float = 0.0
    data: str | None = None
    pairs: int | None = None
    start: float | None = None
    update: str = "dual_ascent"
    rate: float = 100.0
    proportional: float = 0.05
    derivative: float = 0.0
    nu: float = 0.0
    smoothing: float = 0.9
    cap: float = 100.0
    numerator: PairNumbers | None = None
    denominator: PairNumbers | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, choices in (("kind", tuple(KINDS)), ("update", tuple(UPDATES))):
            if getattr(self, name) not in choices:
                self._refuse("CP102", f"is not one of {', '.join(choices)}", name)
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        if not isinstance(self.name, str) or "/" in self.name:
            self._refuse("CP103", "should be a text without a slash", "name")
        if self.bound is None and self.slack is None:
            object.__setattr__(self, "bound", self.row.bound)
            object.__setattr__(self, "slack", self.row.slack)
        self._check_ranges()
        self._check_bound()
        self._check_kind()

    @property
    def row(self) -> ConstraintKind:
        """The facts of its kind."""
        return KINDS[self.kind]

    def first_multiplier(self, cpo_alpha: float) -> float:
        """The multiplier of the first step.

        Args:
            cpo_alpha: of the run.
        """
        return self.row.start(cpo_alpha) if self.start is None else self.start

    def as_dict(self) -> dict[str, Any]:
        """What was asked for beyond the defaults, as JSON-ready values; functions by their name."""
        found = {option.name: getattr(self, option.name) for option in fields(self)}
        named = {
            key: getattr(value, "__qualname__", repr(value)) if callable(value) else value
            for key, value in found.items()
        }
        defaults = {option.name: option.default for option in fields(self)}
        return {k: v for k, v in named.items() if k in ("kind", "name") or v != defaults[k]}

    def _check_ranges(self) -> None:
        for name, (holds, expected) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_UNSET:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and holds(value)):
                self._refuse("CP103", f"should be {expected}", name)

    def _check_bound(self) -> None:
        if self.bound is not None and self.slack is not None:
            raise ConfigError(
                "CP104",
                f"constraint {self.name}: bound={self.bound} and slack={self.slack} are two ways "
                "to give one bound; leave one of them out.",
            )
        if self.bound is None and self.slack is None:
            also = " or a slack" if self.row.relative else ""
            raise ConfigError(
                "CP107",
                f"constraint {self.name} has no bound. Give a bound{also}; its unit is "
                f"{self.row.measures}.",
            )
        if self.slack is not None and not self.row.relative:
            raise ConfigError(
                "CP104",
                f"constraint {self.name}: slack={self.slack} asks for a share of the initial "
                f"policy's value, which is not above 0 for {self.kind}; give a bound.",
            )

    def _check_kind(self) -> None:
        for name, kinds in _owners().items():
            if self.kind not in kinds and getattr(self, name) not in (None, 0.0):
                raise ConfigError(
                    "CP104",
                    f"constraint {self.name}: {name} would do nothing, for it belongs to "
                    f"{', '.join(kinds)}.",
                )
        if self.update in self.row.refused_updates:
            raise ConfigError(
                "CP104",
                f"constraint {self.name}: {self.update} {self.row.refused_updates[self.update]}; "
                "choose another update.",
            )
        if "numerator" in self.row.own_options and not callable(self.numerator):
            raise ConfigError(
                "CP107",
                f"constraint {self.name} needs a numerator, a function of (logps, batch) that "
                "gives a number a pair. A file of options cannot hold one: pass "
                "counterpoint.Constraint(...) in CPOConfig(constraints=[...]).",
            )
        if self.denominator is not None and not callable(self.denominator):
            self._refuse("CP103", "should be a function of a batch", "denominator")

    def _refuse(self, code: str, expected: str, name: str) -> None:
        where = f"constraint {self.name}: " if self.name else "constraints: "
        raise ConfigError(code, f"{where}{name}={getattr(self, name)!r} {expected}.")


def _owners() -> dict[str, list[str]]:
    """Option of a constraint that not all kinds read -> the kinds that do."""
    names = dict.fromkeys(name for row in KINDS.values() for name in row.own_options)
    return {n: [k for k, row in KINDS.items() if n in row.own_options] for n in names}


_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = MappingProxyType(
    {
        "bound": (lambda x: True, "a finite number"),
        "slack": (lambda x: x > -1, "a finite number above -1"),
        "margin": (lambda x: True, "a finite number"),
        "pairs": (lambda x: x >= 1 and x == int(x), "a whole number, at least 1"),
        "start": (lambda x: x >= 0, "a finite number, at least 0"),
        "rate": (lambda x: x >= 0, "a finite number, at least 0"),
        "proportional": (lambda x: x >= 0, "a finite number, at least 0"),
        "derivative": (lambda x: x >= 0, "a finite number, at least 0"),
        "nu": (lambda x: 0 <= x < 1, "in [0, 1)"),
        "smoothing": (lambda x: 0 <= x < 1, "in [0, 1)"),
        "cap": (lambda x: x > 0, "a finite number above 0"),
    }
)
_MAY_BE_UNSET = ("bound", "slack", "pairs", "start")


def read_constraints(given: Any) -> list[Constraint]:
    """Constraints from what an option holds.

    Args:
        given: None, or a list of ``Constraint`` or of mappings with its keys.

    Raises:
        ConfigError: CP101 for a key that does not exist, CP103 for another type, CP104 for two of
            one name, and as ``Constraint``.
    """
    if given is None:
        return []
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ConfigError("CP103", f"constraints={given!r} should be a list.")
    found = [_read(one) for one in given]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                "CP104", f"two constraints are called {name}; give each a name of its own."
            )
    return found


def _read(given: Any) -> Constraint:
    if isinstance(given, Constraint):
        return replace(given)
    if not isinstance(given, Mapping):
        raise ConfigError(
            "CP103", f"constraints: {given!r} should be a mapping such as {{'kind': 'bc'}}."
        )
    known = [option.name for option in fields(Constraint)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f" Did you mean {near[0]}?" if near else f" There are {', '.join(known)}."
            raise ConfigError("CP101", f"a constraint has no {key!r}.{hint}")
    if "kind" not in given:
        raise ConfigError("CP107", f"a constraint needs a kind: one of {', '.join(KINDS)}.")
    return Constraint(**given)
