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

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.constraints import Constraint
from counterpoint.errors import ConfigError, DataError, NonFiniteError, SetupError, TrainingError
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.log import logger
from counterpoint.losses.constrained import Measured, Seen, belongs, denominators, measured, price
from counterpoint.losses.objective import Objective, positive
from counterpoint.monitor.checksum import digest_of_weights
from counterpoint.records import LossTerms, PairBatch, PairLogps, exact_dtype
from counterpoint.runlog import Alarm, constraint_metric
from counterpoint.step.multiplied import Multiplied


class ConstraintSet:
    """All constraints of a run; a run without any has an empty set, and pays nothing for it.

    Args:
        asked: of the run, perhaps none.
        objective: of the run.
        cpo_alpha: where the multiplier of bc starts.
        normalized: divide the loss by 1 + the sum of the multipliers.
        raise_alarm: takes an alarm.
    """

    def __init__(
        self,
        asked: Sequence[Constraint],
        objective: Objective,
        *,
        cpo_alpha: float,
        normalized: bool,
        raise_alarm: Callable[[Alarm], None],
    ) -> None:
        self.objective, self.normalized = objective, normalized
        self._raise_alarm = raise_alarm
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
        return _together(sums, batch)

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
        sums = _together([each.numerator.sum() for each in found], batch)
        return sums, [each.surrogate.sum() for each in found]

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

    def initial_values(self, batches: Sequence[PairBatch]) -> dict[int, float]:
        """What the initial policy gave the rows of a step, by row number; empty if nobody asks."""
        found: dict[int, float] = {}
        for batch in (batch for batch in batches if not batch.of):
            initial = self._initial(batch, "train")
            if initial is not None:
                found |= zip(batch.row_ids.tolist(), initial.tolist(), strict=True)
        return found

    def bears_on(self, batch: PairBatch) -> bool:
        """Whether a batch of a step has a part in its gradient."""
        return not batch.of or any(one.weight for one in self.all if belongs(one.asked, batch))

    def begin_step(
        self,
        totals: Float[Tensor, " constraints"],
        first: Callable[[], Float[Tensor, " constraints"]],
    ) -> None:
        """A step begins: its multipliers hold still from here on.

        Args:
            totals: denominators of the step, over micro-batches and ranks.
            first: measures numerators at the step's weights; called if ``measures_first``.
        """
        self._numerators, self._totals = None, totals
        known: list[float | None] = [None] * len(self.all)
        if self.measures_first:
            pairs = zip(self.all, first().tolist(), totals.tolist(), strict=True)
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

    def close_step(self, step: int, *, skipped: bool) -> None:
        """Move the multipliers, if the step was applied; every rank takes part.

        Args:
            step: its number, from 1.
            skipped: the optimizer left it out, as a loss scaler does after an overflow.
        """
        if self._numerators is None or self._totals is None:
            return
        numerators, totals = self._numerators, self._totals
        self.discard()
        if skipped or not self.all:
            return
        for one, numerator, total in zip(
            self.all, self._over_ranks(numerators), totals.tolist(), strict=True
        ):
            if one.close(numerator, total):
                self._raise_alarm(one.infeasible(step))

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
                    "another. Ranks must run the same version on the same kind of device; resume "
                    "from the last checkpoint.",
                )
        return [float(number) for number in sums]

    # ---- the run ----

    def plan(self, steps: int, evaluations: int, model: nn.Module) -> None:
        """Scale the rules to the run's length, before its first step.

        Args:
            steps: of the run.
            evaluations: of the run, at which kinds that read what the model writes move.
            model: that trains, unwrapped.
        """
        for one in self.all:
            one.plan(evaluations if one.asked.row.of_texts else steps)
        self.remember(model)

    def restart(self, *, anew: bool = True) -> None:
        """A training begins: multipliers are where they start.

        Args:
            anew: it does not resume from a checkpoint, and so begins with the model as it is.
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
        self.policy, self._policy_digest = InitialPolicy(model), digest_of_weights(model)

    def calibrate(self, sums: Tensor, *, pairs: int, digest: str) -> None:
        """Take the values of the initial policy.

        Args:
            sums: numerators, then denominators, ``[2, constraints]``.
            pairs: that they are of.
            digest: of those pairs.

        Raises:
            DataError: CP209 where the slice has nothing that a relative bound could be measured on.
            NonFiniteError: CP401 where what it measures is not finite.
        """
        for one, numerator, total in zip(self.all, *sums.tolist(), strict=True):
            if not total <= 0:  # a sum that is NaN or infinite is no sum of nothing
                value = numerator / total
                if one.asked.slack is not None and not math.isfinite(value):
                    raise NonFiniteError(
                        "CP401",
                        f"the bound of {one.asked.name} is a share of the initial policy's value, "
                        f"which is {value} on the {pairs} pairs of the calibration slice. Give a "
                        "bound in place of slack, or look for the pairs whose weights, margins or "
                        "log-probabilities overflow.",
                    )
                one.calibrate(value)
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
                self._raise_alarm(one.infeasible(step))
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
        """For ``run.json``; nothing of a run without constraints."""
        if not self.all:
            return {}
        return {
            "constraints": [one.facts() for one in self.all],
            "calibration": self.calibration,
        }

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a tree, by name and in order."""
        return {
            "calibration": self.calibration,
            "constraints": [{"name": one.asked.name, **one.state_dict()} for one in self.all],
            "references": {name: table.cpu() for name, table in self.references.items()},
            "initial policy": self._policy_digest,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, anyway: bool = False) -> None:
        """Resume from a checkpoint's; constraints of other names (``resume_anyway``) start anew.

        Args:
            state: of the run that is resumed.
            anyway: take another initial policy than it had.

        Raises:
            SetupError: CP513 for another initial policy.
        """
        self._check_policy(state.get("initial policy"), anyway)
        self.calibration, self.references = state["calibration"], dict(state["references"])
        by_name = {each["name"]: each for each in state["constraints"]}
        for one in self.all:
            if one.asked.name in by_name:
                one.load_state_dict(by_name[one.asked.name])

    def _check_policy(self, then: str | None, anyway: bool) -> None:
        if self.policy is None or then in (None, self._policy_digest):
            return
        kind = next(one.asked.kind for one in self.all if one.asked.row.needs_policy)
        text = (
            f"the run began with other weights (digest {then}) than the model that it is to "
            f"resume with ({self._policy_digest}), and {kind} measures how far it is from them."
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
        return "\n".join(one.formula() for one in self.all)


def _check_length(one: Multiplied, most: int) -> None:
    if one.bound is not None and not 0 < one.bound < most:
        raise ConfigError(
            "CP104",
            f"constraint {one.asked.name}: its bound of {one.bound:.4g} tokens should be above 0 "
            f"and below eval_sample_tokens={most}, at which texts are cut.",
        )


def _together(sums: Sequence[Tensor], batch: PairBatch) -> Tensor:
    """One number a constraint as a tensor; an empty one where there is none."""
    exact = exact_dtype(batch.weight.device)
    return torch.stack(list(sums)).to(exact) if sums else batch.weight.new_zeros(0, dtype=exact)
