"""Cutting a pair: never over the budget, never to nothing, every cut counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.config import TRUNCATIONS
from counterpoint.data.truncate import LEAST_SHARE, Frame, Truncation, truncate

BOS = 0
IDS = st.integers(1, 9)


@st.composite
def cases(draw: st.DrawFn) -> dict:
    keep_first = draw(st.booleans())
    prompt = [BOS] * keep_first + draw(st.lists(IDS, max_size=12))
    max_length = draw(st.integers(2, 40))
    own = st.integers(1, max_length - 1)
    return {
        "prompt": prompt,
        "chosen": draw(st.lists(IDS, min_size=1, max_size=48)),
        "rejected": draw(st.lists(IDS, min_size=1, max_size=12)),
        "max_length": max_length,
        "max_completion_length": draw(st.none() | own),
        "policy": draw(st.sampled_from(TRUNCATIONS)),
        "keep_first": keep_first,
        "frame": draw(st.none() | frames(len(prompt), int(keep_first))),
    }


@st.composite
def frames(draw: st.DrawFn, size: int, first: int) -> dict:
    """Head, words of one role with anything in between, tail; as long as the prompt together."""
    places = sorted(draw(st.lists(st.integers(first, size), unique=True)) if size > first else [])
    turns = tuple(zip(places[::2], places[1::2], strict=False))
    if not turns:
        return {"head": first}
    tail = draw(st.integers(0, size - turns[-1][1]))
    system = sorted(draw(st.tuples(*[st.integers(first, turns[0][0])] * 2)))
    return {"head": turns[0][0], "tail": tail, "turns": turns, "system": tuple(system)}


def over(case: dict) -> bool:
    longest = max(len(case["chosen"]), len(case["rejected"]))
    limit = case["max_completion_length"]
    return len(case["prompt"]) + longest > case["max_length"] or bool(limit and longest > limit)


def cut(case: dict) -> Truncation:
    return truncate(case["prompt"], case["chosen"], case["rejected"], **options(case))


def options(case: dict) -> dict:
    others = {k: v for k, v in case.items() if k not in ("prompt", "chosen", "rejected", "frame")}
    return {**others, "frame": case["frame"] and frame_in(case)}


def frame_in(case: dict) -> Frame:
    return Frame(**(case["frame"] or {"head": int(case["keep_first"])}))


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
def test_each_policy_cuts_its_own_part(case: dict) -> None:
    left, prompt, policy = list(cut(case).prompt), case["prompt"], case["policy"]
    frame = frame_in(case)
    if policy in ("completion_end", "drop"):
        assert left == prompt
    elif len(left) < len(prompt):
        start = policy == "prompt_start"
        heads = (
            {frame.head, frame.system[0], int(case["keep_first"])}
            if start
            else range(len(left) + 1)
        )
        tails = range(len(left) + 1) if start else {frame.tail, 0}
        assert any(
            left == [*prompt[:head], *prompt[len(prompt) - tail :]]
            for head in heads
            for tail in tails
            if head + tail == len(left)
        ), "something else than one stretch of the words was cut"


@given(cases())
def test_a_plain_prompt_keeps_what_the_completions_leave_and_at_least_a_quarter(case: dict) -> None:
    if not case["policy"].startswith("prompt") or not over(case):
        return
    pair = cut({**case, "frame": None})
    longest = max(len(case["chosen"]), len(case["rejected"]))
    room = case["max_length"] - min(longest, case["max_completion_length"] or longest)
    least = max(1 + case["keep_first"], case["max_length"] // LEAST_SHARE)
    most = min(len(case["prompt"]), case["max_length"] - 1)
    assert len(pair.prompt) == min(most, max(room, least))


@given(cases())
def test_what_is_left_begins_and_ends_in_words_of_the_role_that_speaks_first(case: dict) -> None:
    frame, pair = frame_in(case), cut(case)
    if not frame.turns or not pair.cut_prompt:
        return
    left = len(pair.prompt)
    whole_frame = max(2 * frame.head, 2 * frame.tail, frame.head + frame.tail + 1)
    if whole_frame > left:
        return  # the frame may have been too long for what was left
    start = case["policy"] == "prompt_start"
    place = len(case["prompt"]) - left + frame.head if start else left - frame.tail
    inside = [turn for turn in frame.turns if turn[0] <= place <= turn[1]]
    beyond = all(end <= place for _, end in frame.turns)
    assert inside or (start and beyond)


@given(cases())
def test_only_drop_and_a_prompt_without_room_give_up(case: dict) -> None:
    gives_up = not cut(case).fits
    if case["policy"] == "drop":
        assert gives_up == over(case)
    elif case["policy"] == "completion_end":
        assert gives_up == (len(case["prompt"]) >= case["max_length"])
    else:
        assert not gives_up


# Spans that must not be cut


@st.composite
def cases_with_spans(draw: st.DrawFn) -> dict:
    """A prompt of different tokens, and stretches of it that are whole or gone."""
    case = draw(cases())
    size, first = len(case["prompt"]), int(case["keep_first"])
    places = sorted(draw(st.lists(st.integers(first, size), unique=True)) if size > first else [])
    frame = case["frame"] or {"head": first}
    spans = tuple(zip(places[::2], places[1::2], strict=False))
    return {**case, "prompt": [*range(size)], "frame": {**frame, "whole": spans}}


def without_spans(case: dict) -> Truncation:
    return cut({**case, "frame": {**case["frame"], "whole": ()}})


@given(cases_with_spans())
def test_a_span_is_kept_whole_or_goes_whole(case: dict) -> None:
    left = set(cut(case).prompt)
    for start, end in case["frame"]["whole"]:
        assert left & {*range(start, end)} in (set(), {*range(start, end)})


@given(cases_with_spans())
def test_beside_the_rest_of_spans_the_same_is_cut_as_without_them(case: dict) -> None:
    left, plain = cut(case), without_spans(case)
    inside = {place for start, end in case["frame"]["whole"] for place in range(start, end)}
    if left.fits:
        assert {*left.prompt} <= {*plain.prompt}
        assert {*plain.prompt} - {*left.prompt} <= inside
        for side in ("chosen", "rejected"):
            assert len(getattr(left, side)) >= len(getattr(plain, side))
            assert len(left.prompt) + len(getattr(left, side)) <= case["max_length"]


@given(cases_with_spans())
def test_spans_make_it_give_up_only_where_nothing_of_the_prompt_would_be_left(case: dict) -> None:
    left, plain = cut(case), without_spans(case)
    assert left.prompt or not case["prompt"]
    if plain.fits and not left.fits:
        assert left == Truncation(case["prompt"], case["chosen"], case["rejected"], fits=False)
        spans = case["frame"]["whole"]
        kept = {*plain.prompt} - {0} if case["keep_first"] else {*plain.prompt}
        torn = [span for span in spans if {*range(*span)} - {*plain.prompt}]
        assert kept <= {place for span in torn for place in range(*span)}


@pytest.mark.parametrize(
    ("policy", "whole", "left"),
    [
        ("prompt_start", [(2, 5)], [0, 5, 6, 7, 8, 9]),
        ("prompt_end", [(2, 5)], [0, 1, 2, 3, 4, 5]),
        ("prompt_end", [(2, 5), (5, 8)], [0, 1, 2, 3, 4]),
        ("prompt_start", [(1, 2), (7, 10)], [0, 5, 6, 7, 8, 9]),
        ("prompt_start", [(2, 8)], [0, 8, 9]),
        ("prompt_start", [(1, 10)], None),
    ],
)
def test_what_a_cut_would_tear_goes_with_it(
    policy: str, whole: list[tuple[int, int]], left: list[int] | None
) -> None:
    prompt, frame = [*range(10)], Frame(head=1, whole=whole)
    pair = truncate(prompt, [1], [2, 3], max_length=8, policy=policy, keep_first=True, frame=frame)
    if left is None:
        assert pair == Truncation(prompt, [1], [2, 3], fits=False)
    else:
        assert pair == Truncation(left, [1], [2, 3], cut_prompt=10 - len(left))


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


# A chat: 0 1 2 is the head, 8 9 the tail, 3 opens an answer and 4 another question

CHAT = [0, 1, 2, 10, 11, 12, 3, 20, 21, 4, 30, 31, 32, 33, 8, 9]
FRAME = Frame(head=3, tail=2, turns=((3, 6), (10, 14)))


@pytest.mark.parametrize(
    ("policy", "max_length", "left"),
    [
        # within the first question, within the last, and in an answer: on to the next question
        ("prompt_start", 19, [0, 1, 2, 11, 12, 3, 20, 21, 4, 30, 31, 32, 33, 8, 9]),
        ("prompt_start", 12, [0, 1, 2, 31, 32, 33, 8, 9]),
        ("prompt_start", 15, [0, 1, 2, 30, 31, 32, 33, 8, 9]),
        # a frame that takes more than half of what is left gives way to the words
        ("prompt_start", 9, [31, 32, 33, 8, 9]),
        ("prompt_end", 19, [0, 1, 2, 10, 11, 12, 3, 20, 21, 4, 30, 31, 32, 8, 9]),
        ("prompt_end", 15, [0, 1, 2, 10, 11, 12, 8, 9]),
        ("prompt_end", 11, [0, 1, 2, 10, 11, 8, 9]),
    ],
)
def test_a_chat_keeps_its_frame_and_begins_or_ends_in_a_question(
    policy: str, max_length: int, left: list[int]
) -> None:
    made = truncate(CHAT, [5] * 4, [6], max_length=max_length, policy=policy, frame=FRAME)
    assert made.prompt == left
    assert (made.chosen, made.cut_chosen) == ([5] * 4, 0)


def test_a_system_turn_of_more_than_half_is_cut_as_words_are() -> None:
    prompt = [0, 1, 40, 41, 42, 43, 44, 2, 10, 11, 8, 9]
    frame = Frame(head=8, tail=2, turns=((8, 10),), system=(2, 7))
    made = truncate(prompt, [5] * 4, [6], max_length=12, policy="prompt_start", frame=frame)
    assert made.prompt == [0, 1, 44, 2, 10, 11, 8, 9]
    made = truncate(prompt, [5] * 4, [6], max_length=9, policy="prompt_start", frame=frame)
    assert made.prompt == [2, 10, 11, 8, 9]


@pytest.mark.parametrize("policy", ["prompt_start", "prompt_end"])
def test_a_long_answer_leaves_the_prompt_a_quarter(policy: str) -> None:
    made = truncate(CHAT, [5] * 99, [6] * 20, max_length=32, policy=policy, frame=FRAME)
    assert (len(made.prompt), len(made.chosen), len(made.rejected)) == (8, 24, 20)
    assert made.prompt[:3] == [0, 1, 2]
    assert made.prompt[-2:] == [8, 9]
