"""What to change when an alarm is raised: one line of configuration, from the run's own values.

Published practice gives the direction (a weight on the chosen's likelihood, a lower rate, a
clipped gradient); the size is a factor of two, after which one looks again.

Not here: what else may be wrong (docs/diagnoses.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from counterpoint.objectives import DEFAULT_LOSS, LOSSES

_ADDED_NLL = 0.05
"""Weight of the NLL term where it is published as an addition (CPO-SimPO); elsewhere 1."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a run's options, what its alarms read.

    Args:
        step_pairs: pairs of an optimizer step, over all ranks; at least 1.
        warmup_steps: optimizer steps before the learning rate is reached.
        loss_type: as ``CPOConfig.loss_type``.
        cpo_alpha: weight of the NLL term, at least 0.
        learning_rate: its highest value.
        max_grad_norm: to which gradients are clipped; 0: not at all.
        constrained: whether the loss has multipliers, and moves with them.
        steps: optimizer steps of the run; 0 where that is not known.
    """

    step_pairs: int
    warmup_steps: int = 0
    loss_type: str = DEFAULT_LOSS
    cpo_alpha: float = 1.0
    learning_rate: float = 1e-6
    max_grad_norm: float = 1.0
    constrained: bool = False
    steps: int = 0


def hold_the_chosen(facts: Facts) -> str:
    """Give the likelihood of the chosen completion more weight, where the loss takes one."""
    loss = LOSSES.get(facts.loss_type)
    if loss is not None and not loss.reads("cpo_alpha"):
        return halve_the_rate(facts)
    first = _ADDED_NLL if loss is not None and loss.nll == 0 else 1.0
    alpha = 2 * facts.cpo_alpha or first
    return f"cpo_alpha: {alpha:g}"


def halve_the_rate(facts: Facts) -> str:
    """Learn more slowly."""
    return f"learning_rate: {facts.learning_rate / 2:.3g}"


def clip(facts: Facts, usual: float) -> str:
    """Clip gradients at twice their usual norm; where that is done already, learn more slowly.

    Args:
        facts: of the run.
        usual: norm of the gradient between spikes.
    """
    if 0 < facts.max_grad_norm <= 2 * usual:
        return halve_the_rate(facts)
    return f"max_grad_norm: {2 * usual:.2g}"
