"""What to change when an alarm sounds: one line of configuration, from the run's own values.

Published practice gives the direction (a weight on the chosen's likelihood, a lower rate, a
clipped gradient); the size is a factor of two, after which one looks again.

Not here: what else may be wrong (docs/diagnoses.md).
"""

from __future__ import annotations

from dataclasses import dataclass

_PUBLISHED_ALPHA = {"simpo": 0.05, "repo": 0.05}
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
    loss_type: str = "sigmoid"
    cpo_alpha: float = 1.0
    learning_rate: float = 1e-6
    max_grad_norm: float = 1.0
    constrained: bool = False
    steps: int = 0


def hold_the_chosen(facts: Facts) -> str:
    """Give the likelihood of the chosen completion more weight, where the loss takes one."""
    if facts.loss_type == "alphapo":  # which sets cpo_alpha to 0
        return halve_the_rate(facts)
    alpha = 2 * facts.cpo_alpha or _PUBLISHED_ALPHA.get(facts.loss_type, 1.0)
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
