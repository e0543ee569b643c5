"""Cutting a pair: never over the budget, never to nothing, every cut counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.config import TRUNCATIONS
from counterpoint.data.truncate import Truncation, truncate

BOS = 0
IDS = st.integers(1, 9)


@st.composite
def cases(draw: st.DrawFn) -> dict:
    keep_first = draw(st.booleans())
    prompt = [BOS] * keep_first + draw(st.lists(IDS, max_size=12))
    max_length = draw(st.integers(2, 16))
    own = st.integers(1, max_length - 1)
    return {
        "prompt": prompt,
        "chosen": draw(st.lists(IDS, min_size=1, max_size=12)),
        "rejected": draw(st.lists(IDS, min_size=1, max_size=12)),
        "max_length": max_length,
        "max_completion_length": draw(st.none() | own),
        "policy": draw(st.sampled_from(TRUNCATIONS)),
        "keep_first": keep_first,
    }


def over(case: dict) -> bool:
    longest = max(len(case["chosen"]), len(case["rejected"]))
    limit = case["max_completion_length"]
    return len(case["prompt"]) + longest > case["max_length"] or bool(limit and longest > limit)


def cut(case: dict) -> Truncation:
    return truncate(case["prompt"], case["chosen"], case["rejected"], **options(case))


def options(case: dict) -> dict:
    return {k: v for k, v in case.items() if k not in ("prompt", "chosen", "rejected")}


@given(cases())
def test_what_fits_is_left_alone(case: dict) -> None:
    if not over(case):
        assert cut(case) == Truncation(case["prompt"], case["chosen"], case["rejected"])


@given(cases())
def test_a_pair_never_exceeds_the_budget(case: dict) -> None:
    pair = cut(case)
    if pair.fits:
        for side in (pair.chosen, pair.rejected):
            assert len(pair.prompt) + len(side) <= case["max_length"]
            assert len(side) <= (case["max_completion_length"] or case["max_length"])


@given(cases())
def test_nothing_is_cut_to_nothing(case: dict) -> None:
    pair = cut(case)
    assert pair.chosen
    assert pair.rejected
    assert bool(pair.prompt) == bool(case["prompt"])


@given(cases())
def test_cutting_again_changes_nothing(case: dict) -> None:
    pair = cut(case)
    if pair.fits:
        again = truncate(pair.prompt, pair.chosen, pair.rejected, **options(case))
        assert again == Truncation(pair.prompt, pair.chosen, pair.rejected)


@given(cases())
def test_the_counts_are_what_is_missing(case: dict) -> None:
    pair = cut(case)
    for part in ("prompt", "chosen", "rejected"):
        assert len(getattr(pair, part)) + getattr(pair, f"cut_{part}") == len(case[part])


@given(cases())
def test_completions_keep_their_beginning_and_bos_its_place(case: dict) -> None:
    pair = cut(case)
    assert list(pair.chosen) == case["chosen"][: len(pair.chosen)]
    assert list(pair.rejected) == case["rejected"][: len(pair.rejected)]
    if case["keep_first"]:
        assert pair.prompt[0] == BOS


@given(cases())
def test_each_policy_cuts_its_own_part_first(case: dict) -> None:
    pair, policy, prompt = cut(case), case["policy"], case["prompt"]
    left = list(pair.prompt)
    if policy in ("completion_end", "drop"):
        assert left == prompt
    if policy == "prompt_end":
        assert left == prompt[: len(left)]
    if policy == "prompt_start":
        tail = left[1:] if case["keep_first"] else left
        assert tail == prompt[len(prompt) - len(tail) :]
    if policy.startswith("prompt") and case["max_completion_length"] is None and pair.cut_chosen:
        assert len(left) <= min(1 + case["keep_first"], len(prompt)), "the prompt was not used up"


@given(cases())
def test_only_drop_and_a_prompt_without_room_give_up(case: dict) -> None:
    gives_up = not cut(case).fits
    if case["policy"] == "drop":
        assert gives_up == over(case)
    elif case["policy"] == "completion_end":
        assert gives_up == (len(case["prompt"]) >= case["max_length"])
    else:
        assert not gives_up


def test_completion_end_cuts_each_completion_by_itself() -> None:
    pair = truncate([1, 2, 3], [4, 5], [6, 7, 8, 9], max_length=5)
    assert pair == Truncation([1, 2, 3], [4, 5], [6, 7], cut_rejected=2)


def test_prompt_start_makes_room_for_the_longer_completion() -> None:
    pair = truncate([0, 1, 2, 3], [4], [6, 7], max_length=4, policy="prompt_start", keep_first=True)
    assert pair == Truncation([0, 3], [4], [6, 7], cut_prompt=2)


@pytest.mark.parametrize("policy", TRUNCATIONS)
def test_a_limit_on_completions_alone_leaves_the_prompt(policy: str) -> None:
    pair = truncate([1, 2, 3], [4, 5, 6], [7], max_length=9, max_completion_length=2, policy=policy)
    if policy == "drop":
        assert pair == Truncation([1, 2, 3], [4, 5, 6], [7], fits=False)
    else:
        assert pair == Truncation([1, 2, 3], [4, 5], [7], cut_chosen=1)
