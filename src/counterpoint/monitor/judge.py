"""What is wrong with how the parameters move: looks in, alarms out, each code once a run.

One fault gets one alarm, the one that names its cause:

1. CW415, a frozen tensor changed, has nothing to do with the rest.
2. CW414, the weights are stuck by their precision; else
3. CW411, nothing has moved at all; else
4. CW412 names adapted modules whose adapter is still what it was, and
   CW413 other tensors that never had a gradient.

What is healthy and looks like one of them:

- a warm-up that begins at 0 and a schedule that ends there: for what is said of movement, steps
  below half the full learning rate do not count, until ``PATIENCE`` steps have moved nothing;
- LoRA's A, which has no gradient until B has moved: a fault needs ``STEPS`` steps;
- rows of an embedding that no text has used, and weights of experts that got no token: a tensor
  is silent only as a whole, and one of several experts only if all of them are;
- a step that float16's loss scaler or ``nonfinite="skip"`` has left out: it does not count.

Not here: taking looks (``watch``), what a code means (``doctor.table``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from counterpoint.monitor.groups import GROUPS, adapted_module, expert_family, group_of
from counterpoint.monitor.look import Look, stuck_share
from counterpoint.runlog import Alarm

NOTHING_MOVES, SAME_ADAPTER, NO_GRADIENT, STUCK, FROZEN_CHANGED = (
    "CW411",
    "CW412",
    "CW413",
    "CW414",
    "CW415",
)
STEPS = 10
"""Counted steps that a fault must last, where one step alone does not prove it."""
PATIENCE = 100
"""Steps after which "nothing has moved" needs no full learning rate any more."""
MOST_STUCK = 0.9
"""Share of the weights with a gradient from which they count as stuck; at a learning rate of 1e-6
plain bfloat16 weights are at 0.98."""
SHOWN = 3
"""Names in a message."""

Unchanged = Callable[[Collection[str]], set[str]]
"""Names of tensors -> those whose every byte is that of the start."""


@dataclass(slots=True)
class Judge:
    """Goes through the looks of a run.

    Args:
        raised: codes that were raised.
        stuck_looks: last looks in a row at which the weights were stuck.
        stuck_since: step of the first of these.
    """

    raised: list[str] = field(default_factory=list)
    stuck_looks: int = 0
    stuck_since: int = 0

    def judge(self, look: Look, unchanged: Unchanged) -> list[Alarm]:
        """The alarms that a look gives rise to.

        Args:
            look: the newest.
            unchanged: asked, before an alarm, whether a sample without movement speaks for the
                whole.
        """
        found = [self._frozen_changed(look), self._stuck(look)]
        if STUCK not in self.raised and found[1] is None:
            if not any(one.moved for one in look.tensors.values()):
                found.append(self._nothing_moves(look, unchanged))
            else:
                same = self._same_adapters(look, unchanged)
                found += [_same_adapter(look, same), _no_gradient(look, same)]
        fresh = [alarm for alarm in found if alarm and alarm.code not in self.raised]
        self.raised += [alarm.code for alarm in fresh]
        return fresh

    def state_dict(self) -> dict[str, Any]:
        """For JSON; ``Judge(**state)`` resumes."""
        return {
            "raised": list(self.raised),
            "stuck_looks": self.stuck_looks,
            "stuck_since": self.stuck_since,
        }

    def _frozen_changed(self, look: Look) -> Alarm | None:
        if not look.changed:
            return None
        return Alarm(
            FROZEN_CHANGED,
            step=look.step,
            since=look.unchanged_at + 1,
            seen=f"{_count(look.changed, 'frozen tensor')} changed between step "
            f"{look.unchanged_at} and step {look.step}: {_names(look.changed)}.",
        )

    def _stuck(self, look: Look) -> Alarm | None:
        share = stuck_share(look.tensors.values()) if look.at_full_rate else None
        if share is None:  # a step that says nothing
            return None
        if share < MOST_STUCK:
            self.stuck_looks = 0
            return None
        self.stuck_looks += 1
        if self.stuck_looks == 1:
            self.stuck_since = look.step
        if self.stuck_looks < 2 and look.full < STEPS:
            return None
        return Alarm(
            STUCK,
            step=look.step,
            since=self.stuck_since,
            seen=f"{share:.1%} of the weights with a gradient did not move in step {look.step}, at "
            f"a learning rate of {look.learning_rate:g}: their updates are below half a unit in "
            f"the last place and round away ({_by_group(look)}).",
            fix="stochastic_rounding: true" if _all_bfloat16(look) else "",
        )

    def _nothing_moves(self, look: Look, unchanged: Unchanged) -> Alarm | None:
        long_enough = look.full >= STEPS or look.applied >= PATIENCE
        if not (long_enough or (look.final and look.full)) or NOTHING_MOVES in self.raised:
            return None
        if unchanged(look.tensors) != set(look.tensors):
            return None
        cause = f"the learning rate is {look.learning_rate:g}"
        if len(look.unoptimized) == len(look.tensors):
            cause = "the optimizer holds none of them"
        return Alarm(
            NOTHING_MOVES,
            step=look.step,
            since=look.since + 1,
            seen=f"none of the {len(look.tensors):,} tensors that should train has moved in "
            f"{look.applied:,} steps, each is byte for byte what it was; {cause}.",
            fix="learning_rate: 1e-6" if look.learning_rate == 0 else "",
        )

    def _same_adapters(self, look: Look, unchanged: Unchanged) -> Mapping[str, list[str]]:
        """Adapted modules none of whose adapter's tensors have changed, with these."""
        if look.applied < STEPS:
            return {}
        modules: dict[str, list[str]] = {}
        for name in look.tensors:
            module = adapted_module(name)
            if module is not None:
                modules.setdefault(module, []).append(name)
        still = {
            module: names
            for module, names in modules.items()
            if not any(look.tensors[name].moved for name in names)
        }
        alive = _families(module for module in modules if module not in still)
        still = {m: names for m, names in still.items() if expert_family(m) not in alive}
        if not still:
            return {}
        same = unchanged([name for names in still.values() for name in names])
        return {module: names for module, names in still.items() if same.issuperset(names)}


def _same_adapter(look: Look, same: Mapping[str, list[str]]) -> Alarm | None:
    if not same:
        return None
    names = [name for inside in same.values() for name in inside]
    silent = len(set(names) & set(look.silent))
    outside = len(set(names) & set(look.unoptimized))
    why = "though they had gradients"
    if silent == len(names):
        why = "and no gradient ever reached them"
    elif outside == len(names):
        why = "since the optimizer does not hold them"
    return Alarm(
        SAME_ADAPTER,
        step=look.step,
        since=look.since + 1,
        seen=f"the adapters of {_count(same, 'module')} are byte for byte what they were "
        f"{look.applied:,} steps ago, {why}: {_names(same)}.",
    )


def _no_gradient(look: Look, same: Mapping[str, list[str]]) -> Alarm | None:
    if look.applied < STEPS:
        return None
    told = {name for names in same.values() for name in names}
    alive = _families(name for name in look.tensors if name not in look.silent)
    silent = [n for n in look.silent if n not in told and expert_family(n) not in alive]
    if not silent:
        return None
    weights = sum(look.tensors[name].weights for name in silent)
    share = weights / sum(one.weights for one in look.tensors.values())
    return Alarm(
        NO_GRADIENT,
        step=look.step,
        since=look.since + 1,
        seen=f"{len(silent):,} of the {len(look.tensors):,} tensors that should train, "
        f"{share:.1%} of their weights, had no gradient in {look.applied:,} steps: "
        f"{_names(silent)}.",
    )


def _families(names: Iterable[str]) -> set[str]:
    return {family for name in names if (family := expert_family(name))}


def _all_bfloat16(look: Look) -> bool:
    return {one.dtype for one in look.tensors.values()} == {"bfloat16"}


def _by_group(look: Look) -> str:
    found = []
    for group in GROUPS:
        inside = [one for name, one in look.tensors.items() if group_of(name) == group]
        if any(one.wanting for one in inside):
            found.append(f"{group} {stuck_share(inside) or 0:.0%}")
    return ", ".join(found)


def _count(things: Collection[str], what: str) -> str:
    return f"{len(things):,} {what}{'' if len(things) == 1 else 's'}"


def _names(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:SHOWN])
    more = len(names) - SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown
