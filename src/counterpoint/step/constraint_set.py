"""The constraints of a run: their bounds, their multipliers, and what a step adds to them.

    initial policy ──calibration──▶ bounds
    micro-batches ──numerators──▶ [backward, sync, clip, step] ──one reduction──▶ multipliers

Multipliers are plain floats: outside the optimizer, its weight decay and clipping, and outside DDP.
They hold still for a whole step on all ranks, and move once for each step that reached the weights,
by that step's violation: the ratio of sums over all its pairs, however they were cut.

Not here: what a constraint measures (``losses.constrained``), how a multiplier moves
(``losses.multiplier``), and the passes over data (``trainer``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from counterpoint import ranks
from counterpoint.config import CPOConfig
from counterpoint.constraints import Constraint
from counterpoint.errors import ConfigError, DataError, SetupError, TrainingError
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.losses.constrained import (
    Measured,
    Seen,
    belongs,
    denominators,
    measured,
    price,
)
from counterpoint.losses.multiplier import MultiplierRule, MultiplierState, rule_of
from counterpoint.losses.objective import Objective, positive
from counterpoint.monitor.checksum import checksum
from counterpoint.records import LossTerms, PairBatch, PairLogps, exact_dtype
from counterpoint.runlog import Alarm, constraint_metric, logger

PATIENCE = 0.05
"""Share of a run's steps, at the cap and above the bound, after which a bound is infeasible."""

LEAST_PATIENCE = 10
"""The fewest such steps: a few in a row may come by chance."""


@dataclass(slots=True)
class Window:
    """What a constraint's log line is made of: the applied steps since the last one.

    Args:
        numerator: of the value, summed.
        denominator: likewise.
        steps: that counted.
        feasible: of them, those at or below the bound.
        at_cap: of them, those whose multiplier was at its cap.
    """

    numerator: float = 0.0
    denominator: float = 0.0
    steps: int = 0
    feasible: int = 0
    at_cap: int = 0


class Multiplied:
    """One constraint of a run, with its multiplier.

    Args:
        asked: the constraint.
        start: multiplier of the first step.
    """

    def __init__(self, asked: Constraint, start: float) -> None:
        """Nothing is known of its horizon yet."""
        self.asked, self.start = asked, float(min(start, asked.cap))
        self.bound = asked.bound
        self.initial: float | None = None
        self.window = Window()
        self.infeasible_for = 0
        self.reported = False
        self.plan(1)
        self.state: MultiplierState = self.rule.start(self.start)
        self.weight = self.state.value
        """What multiplies the constraint in the running step."""

    def plan(self, steps: int) -> None:
        """Scale the rule to a run of so many steps."""
        asked = self.asked
        self.patience = max(LEAST_PATIENCE, math.ceil(PATIENCE * steps))
        self.rule: MultiplierRule = rule_of(
            asked.update,
            rate=float(asked.rate),
            proportional=float(asked.proportional),
            derivative=float(asked.derivative),
            nu=float(asked.nu),
            smoothing=float(asked.smoothing),
            cap=float(asked.cap),
            steps=steps,
        )

    def calibrate(self, value: float) -> None:
        """Take what the initial policy's value is, which a relative bound is a share of."""
        self.initial = value
        if self.asked.slack is not None:
            self.bound = value * (1 + self.asked.slack)

    def violation(self, numerator: float, denominator: float) -> float | None:
        """How far the value is above the bound; None where nothing was counted."""
        if self.bound is None or not denominator > 0:
            return None
        return numerator / denominator - self.bound

    def close(self, numerator: float, denominator: float) -> bool:
        """One applied step.

        Returns:
            Whether the bound has just turned out to be infeasible.
        """
        violation = self.violation(numerator, denominator)
        if violation is None or not math.isfinite(violation):
            return False
        at_cap = self.weight >= self.asked.cap
        window = self.window
        window.numerator += numerator
        window.denominator += denominator
        window.steps += 1
        window.feasible += violation <= 0
        window.at_cap += at_cap
        self.state = self.rule.step(self.state, violation)
        self.infeasible_for = self.infeasible_for + 1 if at_cap and violation > 0 else 0
        if self.infeasible_for < self.patience or self.reported:
            return False
        self.reported = True
        return True

    def metrics(self) -> dict[str, float]:
        """Of the steps since the last call; then starts anew."""
        window, self.window = self.window, Window()
        found = {"multiplier": self.state.value}
        if self.bound is not None:
            found["bound"] = self.bound
        if window.steps:
            value = window.numerator / window.denominator
            found |= {
                "value": value,
                "violation": value - found["bound"],
                "feasible": window.feasible / window.steps,
                "at_cap": window.at_cap / window.steps,
            }
        if self.state.smoothed is not None:
            found["smoothed"] = self.state.smoothed
        return {constraint_metric(self.asked.name, key): x for key, x in found.items()}

    def facts(self) -> dict[str, Any]:
        """For ``run.json``."""
        asked = self.asked
        return {
            "name": asked.name,
            "kind": asked.kind,
            "bound": self.bound,
            "slack": asked.slack,
            "initial": self.initial,
            "update": asked.update,
            "rate": asked.rate,
            "cap": asked.cap,
            "start": self.start,
        }

    def kept(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "bound": self.bound,
            "initial": self.initial,
            "multiplier": asdict(self.state),
            "window": asdict(self.window),
            "infeasible_for": self.infeasible_for,
            "reported": self.reported,
        }

    def take(self, kept: Mapping[str, Any]) -> None:
        """Go on with it."""
        self.bound, self.initial = kept["bound"], kept["initial"]
        self.state = MultiplierState(**kept["multiplier"])
        self.window = Window(**kept["window"])
        self.infeasible_for, self.reported = kept["infeasible_for"], kept["reported"]


class Constraints(TrainerCallback):
    """All constraints of a run; as a callback it hears when a step has reached the weights.

    Args:
        asked: at least one.
        objective: of the run.
        cpo_alpha: where the multiplier of bc starts.
        normalized: divide the loss by 1 + the sum of the multipliers.
        sound: takes an alarm.
        was_skipped: whether the optimizer left out its last step.
    """

    def __init__(
        self,
        asked: Sequence[Constraint],
        objective: Objective,
        *,
        cpo_alpha: float,
        normalized: bool,
        sound: Callable[[Alarm], None],
        was_skipped: Callable[[], bool],
    ) -> None:
        """Before the first step."""
        self.objective, self.normalized = objective, normalized
        self._sound, self._was_skipped = sound, was_skipped
        self.all = [Multiplied(one, one.first_multiplier(cpo_alpha)) for one in asked]
        self.calibration: dict[str, Any] | None = None
        self.references: dict[str, Tensor] = {}
        """Set -> what the initial policy gave the chosen completion of each row, nats a token."""
        self.policy: InitialPolicy | None = None
        """What the run began with, where a constraint must run it again at every step."""
        self._policy_digest: str | None = None
        self._first_texts: list[int] = []
        self._numerators: Tensor | None = None
        self._totals: Tensor | None = None

    @property
    def needs_references(self) -> bool:
        """Whether the initial policy's log-probabilities of all rows must be known."""
        return any(one.asked.row.needs_references for one in self.all)

    @property
    def needs_policy(self) -> bool:
        """Whether the initial policy itself must be kept."""
        return any(one.asked.row.needs_policy for one in self.all)

    @property
    def measures_first(self) -> bool:
        """Whether a multiplier must know the step's values before its first backward."""
        return any(one.rule.measures_first for one in self.all)

    # ---- a step ----

    def denominators(self, batch: PairBatch) -> Float[Tensor, " constraints"]:
        """What a batch adds to the denominators of its step."""
        sums = [
            denominators(one.asked, self.objective, batch).sum()
            if belongs(one.asked, batch)
            else batch.weight.new_zeros(())
            for one in self.all
        ]
        return torch.stack(sums).to(exact_dtype(batch.weight.device))

    def numerators(
        self, logps: PairLogps, terms: LossTerms, batch: PairBatch, rows: str | None = "train"
    ) -> tuple[Float[Tensor, " constraints"], list[Float[Tensor, ""]]]:
        """Numerators of a batch.

        Args:
            logps: what the model says of the pairs.
            terms: what the objective makes of it.
            batch: the pairs.
            rows: the set they are of; None where the initial policy has not seen it.

        Returns:
            Those of the bounded values, detached, and those that are minimised.
        """
        seen = Seen(self.objective, logps, terms, batch, self._initial(batch, rows))
        found = [
            measured(one.asked, seen)
            if belongs(one.asked, batch)
            else Measured(*[torch.zeros_like(batch.weight)] * 2)
            for one in self.all
        ]
        sums = torch.stack([each.numerator.sum() for each in found])
        exact = exact_dtype(batch.weight.device)
        return sums.to(exact), [each.surrogate.sum() for each in found]

    def held_out_sums(
        self, logps: PairLogps, terms: LossTerms, batch: PairBatch, rows: str | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Numerator and denominator of each value that can be measured on a set.

        Args:
            logps: what the model says of some of its pairs.
            terms: what the objective makes of it.
            batch: those pairs.
            rows: the name of the set, as in ``references``.
        """
        numerators, counts = self.numerators(logps, terms, batch, rows)[0], self.denominators(batch)
        return {
            constraint_metric(one.asked.name, "value"): (numerator, count)
            for one, numerator, count in zip(self.all, numerators, counts, strict=True)
            if belongs(one.asked, batch)
            and (not one.asked.row.needs_references or rows in self.references)
            and (not one.asked.row.needs_policy or logps.drift is not None)
        }

    def _initial(self, batch: PairBatch, rows: str | None) -> Tensor | None:
        if rows is None or rows not in self.references:
            return None
        table = self.references[rows]
        if table.device != batch.row_ids.device:
            self.references[rows] = table = table.to(batch.row_ids.device)
        return table[batch.row_ids.clamp(min=0)]  # a filler has no row, and no weight

    def bears_on(self, batch: PairBatch) -> bool:
        """Whether a batch of a step has a part in its gradient."""
        return not batch.of or any(one.weight for one in self.all if belongs(one.asked, batch))

    def begin_step(
        self, totals: Float[Tensor, " constraints"], first: Float[Tensor, " constraints"] | None
    ) -> None:
        """A step begins: its multipliers hold still from here on.

        Args:
            totals: denominators of the step, over micro-batches and ranks.
            first: numerators at the step's weights, where ``measures_first``.
        """
        self._numerators, self._totals = None, totals
        known: list[float | None] = [None] * len(self.all)
        if first is not None:
            pairs = zip(self.all, first.tolist(), totals.tolist(), strict=True)
            known = [one.violation(numerator, total) for one, numerator, total in pairs]
        for one, violation in zip(self.all, known, strict=True):
            one.weight = one.rule.weight(one.state, violation)

    def share(
        self,
        loss: Float[Tensor, ""],
        logps: PairLogps,
        terms: LossTerms,
        batch: PairBatch,
        totals: Float[Tensor, " constraints"],
    ) -> Float[Tensor, ""]:
        """The share of the step's constrained loss that these pairs carry.

        Args:
            loss: their share of the objective; 0 for pairs of a constraint's own set.
            logps: what the model says of them.
            terms: what the objective makes of it.
            batch: the pairs.
            totals: denominators of the step.
        """
        numerators, surrogates = self.numerators(logps, terms, batch)
        before = self._numerators
        self._numerators = numerators if before is None else before + numerators
        for one, surrogate, total in zip(self.all, surrogates, totals, strict=True):
            # not 0 x value: an infinite value times 0 is NaN
            if one.weight and belongs(one.asked, batch):
                loss = loss + one.weight * surrogate / positive(total)
        if not self.normalized:
            return loss
        # a price on length is part of the objective's margins, and no term beside it
        beside = [one.weight for one in self.all if not one.asked.row.outside_normalization]
        return loss / (1 + sum(beside))

    def objective_of_step(self) -> Objective:
        """The running step's objective, with its multiplier of bc as the weight of the NLL.

        That is the running step as a replay knows it; other constraints read the same
        log-probabilities and are not finite where these are not.
        """
        weight = sum(one.weight for one in self.all if one.asked.row.nll_weight)
        return replace(self.objective, cpo_alpha=self.objective.cpo_alpha + weight)

    def margin(self, batch: PairBatch) -> Float[Tensor, " pairs"]:
        """The margins of a step's pairs, with what bounds on length take off them."""
        margin = batch.margin
        for one in self.all:
            if not one.weight or one.bound is None:
                continue
            off = price(one.asked, one.weight, one.bound, batch)
            margin = margin if off is None else margin - off
        return margin

    def discard(self) -> None:
        """The step is begun again, or left out: forget its numerators."""
        self._numerators = None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the multipliers, if the step was applied; every rank takes part."""
        if self._numerators is None or self._totals is None:
            return
        numerators, totals = self._numerators, self._totals
        self.discard()
        if self._was_skipped():
            return
        for one, numerator, total in zip(
            self.all, self._over_ranks(numerators), totals.tolist(), strict=True
        ):
            if one.close(numerator, total):
                self._sound(_infeasible(one, state.global_step + 1))

    def _over_ranks(self, numerators: Float[Tensor, " constraints"]) -> list[float]:
        """Sums over ranks, after making sure that all have the same multipliers."""
        if ranks.alone():
            return [float(number) for number in numerators.tolist()]
        own = numerators.new_tensor([one.state.value for one in self.all])
        extremes = ranks.most(torch.stack([own, -own]))
        sums, highest, lowest = torch.stack([ranks.add_up(numerators), *extremes]).tolist()
        for one, high, low in zip(self.all, highest, lowest, strict=True):
            if high != -low:
                raise TrainingError(
                    "CP403",
                    f"the multiplier of {one.asked.name} is {high!r} on one rank and {-low!r} on "
                    "another. Ranks must run the same version on the same kind of device; go on "
                    "from the last checkpoint.",
                )
        return [float(number) for number in sums]

    # ---- the run ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scale the rules to the run's length, in steps or, of length, in evaluations."""
        for one in self.all:
            of_texts = one.asked.row.of_texts
            one.plan(_evaluations(args, state) if of_texts else state.max_steps)
        self.remember(kwargs["model"])

    def restart(self, *, anew: bool = True) -> None:
        """A training begins: multipliers are where they start.

        Args:
            anew: it does not go on from a checkpoint, and so begins with the model as it is.
        """
        self.all = [Multiplied(one.asked, one.start) for one in self.all]
        self.calibration, self.references, self._first_texts = None, {}, []
        if anew:
            self.policy = None

    def remember(self, model: nn.Module) -> None:
        """Keep the model as the initial policy, if it is needed and not kept yet.

        Args:
            model: unwrapped, before any step and before a checkpoint is loaded into it.
        """
        if not self.needs_policy or (self.policy is not None and self.policy.model is model):
            return
        self.policy, self._policy_digest = InitialPolicy(model), _digest(model)

    def calibrate(self, sums: Tensor, *, pairs: int, digest: str) -> None:
        """Take the values of the initial policy.

        Args:
            sums: numerators, then denominators, ``[2, constraints]``.
            pairs: that they are of.
            digest: of those pairs.

        Raises:
            DataError: CP209 where the slice has nothing that a relative bound could be measured on.
        """
        for one, numerator, total in zip(self.all, *sums.tolist(), strict=True):
            if total > 0:
                one.calibrate(numerator / total)
            elif one.asked.slack is not None and not one.asked.row.of_texts:
                raise DataError(
                    "CP209",
                    f"the bound of {one.asked.name} is a share of the initial policy's value, but "
                    f"the {pairs} pairs of the calibration slice have no weight.",
                )
        self.calibration = {"pairs": pairs, "digest": digest}

    def written(self, tokens: Sequence[int], step: int, most: int) -> dict[str, float]:
        """Take what the model wrote to the prompts of a set, and move the multipliers of length.

        Before the first step it is the initial policy that wrote, and nothing moves.

        Args:
            tokens: length of each text; of one that found no end, what there is of it.
            step: optimizer steps done.
            most: tokens at which texts are cut.

        Returns:
            Value and violation, by the names of metrics.

        Raises:
            ConfigError: CP104 for a relative bound that no text of at most ``most`` could pass.
        """
        values = {}
        for one in (one for one in self.all if one.asked.row.of_texts):
            if step == 0:
                self._first_texts += tokens
                one.calibrate(sum(self._first_texts) / len(self._first_texts))
                _check_length(one, most)
            elif one.close(float(sum(tokens)), float(len(tokens))):
                self._sound(_infeasible(one, step))
            values[constraint_metric(one.asked.name, "value")] = sum(tokens) / len(tokens)
        return values | self.violations(values)

    def metrics(self) -> dict[str, float]:
        """Of the steps since the last log line."""
        return {name: value for one in self.all for name, value in one.metrics().items()}

    def violations(self, values: Mapping[str, float]) -> dict[str, float]:
        """How far held-out values are above the bounds, by the names of metrics.

        Args:
            values: of ``held_out_sums``, divided.
        """
        found: dict[str, float] = {}
        for one in self.all:
            value = values.get(constraint_metric(one.asked.name, "value"))
            if value is not None and one.bound is not None:
                found[constraint_metric(one.asked.name, "violation")] = value - one.bound
        return found

    def facts(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {
            "constraints": [one.facts() for one in self.all],
            "calibration": self.calibration,
        }

    def kept(self) -> dict[str, Any]:
        """For a checkpoint: a tree, by name and in order."""
        return {
            "calibration": self.calibration,
            "constraints": [{"name": one.asked.name, **one.kept()} for one in self.all],
            "references": {name: table.cpu() for name, table in self.references.items()},
            "initial policy": self._policy_digest,
        }

    def take(self, kept: Mapping[str, Any], *, anyway: bool = False) -> None:
        """Go on with it; constraints of other names (``resume_anyway``) start anew.

        Args:
            kept: of the run that is gone on with.
            anyway: take another initial policy than it had.

        Raises:
            SetupError: CP513 for another initial policy.
        """
        self._check_policy(kept.get("initial policy"), anyway)
        self.calibration, self.references = kept["calibration"], dict(kept["references"])
        by_name = {each["name"]: each for each in kept["constraints"]}
        for one in self.all:
            if one.asked.name in by_name:
                one.take(by_name[one.asked.name])

    def _check_policy(self, then: str | None, anyway: bool) -> None:
        if self.policy is None or then in (None, self._policy_digest):
            return
        text = (
            f"the run began with other weights (digest {then}) than the model that it is to go on "
            f"with ({self._policy_digest}), and kl_drift measures how far it is from them."
        )
        if not anyway:
            raise SetupError(
                "CP513",
                f"{text} Make the trainer with the model that the run began with, not with a "
                "checkpoint of it: the checkpoint's weights are loaded after. Or set "
                "resume_anyway=True to measure from this model.",
            )
        logger().warning("resume_anyway: %s", text)

    def formula(self) -> str:
        """The constraints as lines under the objective's formula."""
        return "\n".join(_line(one) for one in self.all)


def _digest(model: nn.Module) -> str:
    """Of a model's weights, frozen ones too; the same on every kind of device."""
    found = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.named_parameters()):
        found.update(
            f"{name} {tuple(weight.shape)} {weight.dtype} {int(checksum(weight))}\n".encode()
        )
    return found.hexdigest()


def _evaluations(args: CPOConfig, state: TrainerState) -> int:
    """How many sets a run evaluates after its first step; each moves a multiplier of length."""
    every = state.eval_steps if args.eval_strategy == "steps" else 0
    times = state.max_steps // every if every else math.ceil(state.num_train_epochs)
    return max(1, int(times))


def _check_length(one: Multiplied, most: int) -> None:
    if one.bound is not None and not 0 < one.bound < most:
        raise ConfigError(
            "CP104",
            f"constraint {one.asked.name}: its bound of {one.bound:.4g} tokens should be above 0 "
            f"and below eval_sample_tokens={most}, at which texts are cut.",
        )


def _line(one: Multiplied) -> str:
    asked = one.asked
    if one.bound is not None:
        bound = f"{one.bound:.4g}"
    else:
        bound = f"{1 + (asked.slack or 0.0):g} x that of the initial policy"
    return f"subject to {asked.name} <= {bound} ({asked.update}, multiplier from {one.start:g})"


def _infeasible(one: Multiplied, step: int) -> Alarm:
    since = max(1, step - one.patience + 1)
    return Alarm(
        "CW441",
        step,
        since,
        f"the multiplier of {one.asked.name} has been at its cap of {one.asked.cap:g} for "
        f"{one.patience} steps, and the value is {one.state.smoothed or 0.0:.3g} above the bound "
        f"of {one.bound:.4g}: no policy within reach holds it.",
    )
