"""What belongs to an experiment: the length of a run only where something follows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import SchedulerType, get_scheduler

from counterpoint import CPOConfig
from counterpoint.checkpoint.experiment import (
    EVALUATIONS,
    METRIC,
    MULTIPLIER_STEPS,
    RATE_STEPS,
    WARM_UP,
    experiment,
)
from counterpoint.losses.objective import Objective
from counterpoint.schedules import schedule_of

ARGUMENTS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 4},
}
"""What a schedule does not do without."""


def options(**more: Any) -> CPOConfig:
    return CPOConfig(output_dir="o", use_cpu=True, **more)


def rates(kind: str, *, steps: int, warm_up: int, **more: Any) -> list[float]:
    """The learning rates of the first steps of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    given = {**ARGUMENTS.get(kind, {}), **more}
    schedule = get_scheduler(kind, optimizer, warm_up, steps, given)
    found = []
    for _ in range(20):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if kind in ("reduce_lr_on_plateau", "greedy"):
            schedule.step(1.0)
        else:
            schedule.step()
    return found


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
def test_the_table_says_what_each_schedule_of_transformers_follows(kind: str) -> None:
    given = {"lr_scheduler_kwargs": ARGUMENTS.get(kind), "eval_strategy": "epoch"}
    args = options(lr_scheduler_type=kind, **given)
    follows = schedule_of(args.lr_scheduler_type, args.lr_scheduler_kwargs)
    plain = rates(kind, steps=20, warm_up=2)
    assert (rates(kind, steps=16, warm_up=2) != plain) == follows.steps
    assert (rates(kind, steps=20, warm_up=3) != plain) == follows.warm_up


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
def test_a_stable_phase_of_a_given_length_does_not_follow_the_steps() -> None:
    kind, given = "warmup_stable_decay", {"num_stable_steps": 5, "num_decay_steps": 4}
    assert not schedule_of(kind, given).steps
    assert rates(kind, steps=20, warm_up=2, **given) == rates(kind, steps=16, warm_up=2, **given)


def facts(steps: int = 20, *, scheduled: bool = True, **more: Any) -> dict[str, Any]:
    objective = Objective(loss_type="sigmoid", beta=0.1)
    args = options(router_aux_loss_coef=0.0, **more)
    return dict(
        experiment(args, objective, {}, steps, identity={}, balancing=0.0, scheduled=scheduled)
    )


def test_a_share_of_the_steps_is_resolved_before_it_is_compared() -> None:
    assert facts(20, warmup_steps=0.1)[WARM_UP] == facts(30, warmup_steps=2)[WARM_UP] == 2
    assert WARM_UP not in facts(lr_scheduler_type="constant", warmup_steps=5)


def test_multipliers_follow_the_length_of_a_run_whatever_the_rate_does() -> None:
    plain = facts(lr_scheduler_type="constant")
    assert {RATE_STEPS, MULTIPLIER_STEPS} & set(plain) == set()
    held = facts(lr_scheduler_type="constant", constraints=[{"kind": "bc"}])
    assert held[MULTIPLIER_STEPS] == 20
    assert set(held) & {*EVALUATIONS, *METRIC} == set()


def test_a_multiplier_of_length_and_a_rate_that_watches_follow_the_evaluations() -> None:
    evaluated = {"eval_strategy": "steps", "eval_steps": 5}
    lengths = facts(
        lr_scheduler_type="constant",
        constraints=[{"kind": "length", "slack": 0.1}],
        generate_during_eval=True,
        **evaluated,
    )
    assert (lengths["eval_steps"], set(METRIC) & set(lengths)) == (5, set())
    watching = facts(lr_scheduler_type="reduce_lr_on_plateau", **evaluated)
    assert watching["eval_steps"] == 5
    assert watching["metric_for_best_model"] == "loss"
    assert {RATE_STEPS, WARM_UP} & set(watching) == set()


def test_of_a_schedule_that_is_passed_to_the_trainer_nothing_is_said() -> None:
    assert {RATE_STEPS, WARM_UP} & set(facts(scheduled=False)) == set()
