"""Which looks give rise to which alarm, and which do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from counterpoint.monitor.judge import PATIENCE, STEPS, Judge
from counterpoint.monitor.look import Look, TensorLook

HEALTHY = TensorLook(
    weights=100,
    dtype="float32",
    moved=1.0,
    moved_last=1.0,
    change=0.1,
    size=2.0,
    wanting=1.0,
    stuck=0.0,
    grad_norm=0.5,
)
STILL = replace(HEALTHY, moved=0.0, moved_last=0.0, change=0.0)
LORA = "layers.{}.q_proj.lora_{}.default.weight"


def look(**changes: Any) -> Look:
    """A healthy look after ten steps."""
    facts: dict[str, Any] = {
        "step": 10,
        "since": 0,
        "last": 5,
        "applied": 10,
        "full": 10,
        "learning_rate": 1e-3,
        "at_full_rate": True,
        "final": False,
        "tensors": {"embed.weight": HEALTHY, "lm_head.weight": HEALTHY},
        "silent": (),
        "unoptimized": (),
        "frozen": {"mlp": 50},
        "changed": (),
        "unchanged_at": 5,
    }
    return Look(**{**facts, **changes})


def judged(*looks: Look, changed: set[str] | None = None) -> list[Any]:
    """Alarms of a run; ``changed`` are tensors that moved where the sample does not see it."""
    judge = Judge()
    return [
        alarm
        for one in looks
        for alarm in judge.judge(one, lambda names: set(names) - (changed or set()))
    ]


def codes(*looks: Look, **more: Any) -> list[str]:
    return [alarm.code for alarm in judged(*looks, **more)]


ALL_STILL = {"embed.weight": STILL, "lm_head.weight": STILL}


def test_a_healthy_run_is_silent():
    assert codes(*[look(step=step) for step in (1, 2, 5, 10, 100)]) == []


# Nothing moves


def test_nothing_moving_is_told_once_with_its_cause():
    (alarm,) = judged(*[look(tensors=ALL_STILL, learning_rate=0.0) for _ in range(3)])
    assert (alarm.code, alarm.step, alarm.since) == ("CW411", 10, 1)
    assert "none of the 2 tensors" in alarm.seen
    assert "10 steps" in alarm.seen
    assert alarm.seen.endswith("the learning rate is 0.")
    assert alarm.fix == "learning_rate: 1e-6"
    (alarm,) = judged(look(tensors=ALL_STILL, unoptimized=tuple(ALL_STILL)))
    assert alarm.seen.endswith("the optimizer holds none of them.")
    assert alarm.fix == ""


def test_a_movement_that_the_sample_does_not_see_is_one():
    assert codes(look(tensors=ALL_STILL), changed={"embed.weight"}) == []


def test_a_warm_up_is_waited_for_but_not_for_ever():
    waiting = look(tensors=ALL_STILL, full=STEPS - 1, applied=PATIENCE - 1)
    assert codes(waiting) == []
    assert codes(replace(waiting, full=STEPS)) == ["CW411"]
    assert codes(replace(waiting, applied=PATIENCE)) == ["CW411"]
    # the end of a run cannot be waited for, unless it never left its warm-up
    assert codes(replace(waiting, full=1, final=True)) == ["CW411"]
    assert codes(replace(waiting, full=0, final=True)) == []


# Stuck


def stuck(share: float, **changes: Any) -> Look:
    one = replace(HEALTHY, dtype="bfloat16", stuck=share)
    return look(tensors={"embed.weight": one, "lm_head.weight": one}, **changes)


def test_weights_that_round_away_at_two_looks_are_stuck_since_the_first():
    looks = [stuck(0.95, step=1, full=1), stuck(0.95, step=2, full=2)]
    assert codes(looks[0]) == []
    (alarm,) = judged(*looks)
    assert (alarm.code, alarm.step, alarm.since) == ("CW414", 2, 1)
    assert "95.0% of the weights" in alarm.seen
    assert "embeddings 95%, head 95%" in alarm.seen
    assert alarm.fix == "stochastic_rounding: true"


def test_one_look_after_many_steps_is_enough():
    assert codes(stuck(0.95, full=STEPS)) == ["CW414"]


@pytest.mark.parametrize(
    "looks",
    [
        [stuck(0.85) for _ in range(4)],
        [stuck(0.95, full=1), stuck(0.0, full=2), stuck(0.95, full=3)],
        [stuck(1.0, at_full_rate=False) for _ in range(4)],
    ],
    ids=["most, but not nearly all", "not in a row", "in a warm-up or at the end of a decay"],
)
def test_weights_are_not_stuck(looks):
    assert codes(*looks) == []


def test_what_is_stuck_is_not_also_said_not_to_move_or_to_be_an_old_adapter():
    one = replace(STILL, dtype="bfloat16", stuck=1.0)
    looks = [look(tensors={LORA.format(0, "A"): one, "embed.weight": one}) for _ in range(3)]
    assert codes(*looks) == ["CW414"]


def test_rows_that_no_text_has_used_do_not_hide_that_the_others_are_stuck():
    sparse = replace(HEALTHY, wanting=0.01, stuck=1.0)
    found = judged(look(tensors={"embed.weight": sparse}), look(tensors={"embed.weight": sparse}))
    assert [alarm.code for alarm in found] == ["CW414"]
    assert found[0].fix == ""  # float32 is not helped by rounding at random


# Adapters


def adapters(**of: TensorLook) -> dict[str, TensorLook]:
    """Of modules 0 and 1 the tensors A and B, healthy unless given, as ``A0=STILL``."""
    names = [f"{part}{module}" for module in (0, 1) for part in "AB"]
    return {LORA.format(name[1], name[0]): of.get(name, HEALTHY) for name in names}


def test_an_adapter_that_is_what_it_was_is_named_by_its_module():
    silent = (LORA.format(0, "A"), LORA.format(0, "B"))
    (alarm,) = judged(look(tensors=adapters(A0=STILL, B0=STILL), silent=silent))
    assert alarm.code == "CW412"
    assert "the adapters of 1 module are byte for byte" in alarm.seen
    assert alarm.seen.endswith("no gradient ever reached them: layers.0.q_proj.")
    (alarm,) = judged(look(tensors=adapters(A0=STILL, B0=STILL)))
    assert "though they had gradients" in alarm.seen
    (alarm,) = judged(look(tensors=adapters(A0=STILL, B0=STILL), unoptimized=silent))
    assert "since the optimizer does not hold them" in alarm.seen


def test_half_an_adapter_that_moves_is_an_adapter_that_moves():
    assert codes(look(tensors=adapters(A0=STILL, A1=STILL))) == []
    found = look(tensors=adapters(A0=STILL, B0=STILL))
    assert codes(found, changed={LORA.format(0, "B")}) == []


def test_the_first_steps_of_an_adapter_prove_nothing():
    early = look(tensors=adapters(A0=STILL, B0=STILL), applied=STEPS - 1)
    assert codes(early) == []


# Without a gradient


def test_a_tensor_without_a_gradient_is_named():
    (alarm,) = judged(look(silent=("lm_head.weight",)))
    assert (alarm.code, alarm.since) == ("CW413", 1)
    assert "1 of the 2 tensors" in alarm.seen
    assert "50.0% of their weights" in alarm.seen
    assert alarm.seen.endswith(": lm_head.weight.")


def test_few_steps_without_a_gradient_prove_nothing():
    assert codes(look(silent=("lm_head.weight",), applied=STEPS - 1)) == []


def test_many_names_are_counted():
    tensors = {f"layers.{n}.mlp.weight": HEALTHY for n in range(9)}
    (alarm,) = judged(look(tensors=tensors, silent=tuple(tensors)[:7]))
    assert alarm.seen.endswith("layers.2.mlp.weight and 4 more.")


def test_an_expert_that_got_no_token_is_healthy_and_experts_without_any_are_not():
    names = [f"layers.0.mlp.experts.{n}.up_proj.weight" for n in range(4)]
    tensors = {**dict.fromkeys(names, HEALTHY), "embed.weight": HEALTHY}
    assert codes(look(tensors=tensors, silent=tuple(names[1:]))) == []
    assert codes(look(tensors=tensors, silent=tuple(names))) == ["CW413"]


def test_an_adapter_of_an_expert_that_got_no_token_is_healthy():
    names = [f"layers.0.experts.{n}.up_proj.lora_{x}.weight" for n in range(3) for x in "AB"]
    tensors = {name: HEALTHY if "experts.0" in name else STILL for name in names}
    silent = tuple(name for name in names if "experts.0" not in name)
    assert codes(look(tensors=tensors, silent=silent)) == []
    none = dict.fromkeys(names, STILL)
    found = codes(look(tensors={**none, "embed.weight": HEALTHY}, silent=tuple(names)))
    assert found == ["CW412"]


# Frozen


def test_a_frozen_tensor_that_changed_is_told_with_the_steps_between_which_it_did():
    (alarm,) = judged(look(changed=("norm.weight",)), look(changed=("norm.weight",), step=20))
    assert (alarm.code, alarm.step, alarm.since) == ("CW415", 10, 6)
    assert alarm.seen == "1 frozen tensor changed between step 5 and step 10: norm.weight."


def test_it_is_told_beside_what_else_is_wrong():
    assert codes(look(changed=("norm.weight",), tensors=ALL_STILL)) == ["CW415", "CW411"]


def test_a_judge_goes_on_where_another_one_stopped():
    first = Judge()
    first.judge(stuck(0.95, step=1, full=1), set)
    again = Judge(**first.state_dict())
    (alarm,) = again.judge(stuck(0.95, step=2, full=2), set)
    assert alarm.since == 1
    assert Judge(**again.state_dict()).judge(stuck(0.95, step=5), set) == []
