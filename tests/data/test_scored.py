"""Scored candidates become the pairs that the rules say, whatever the shape they come in."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations, zip_longest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint import ConfigError, DataError, PairRules, pairs_from_scored
from counterpoint.data import pair_rules
from counterpoint.data.formats import to_preference_row
from counterpoint.data.scored import folded
from counterpoint.data.scored_counts import FATES

Rows = list[dict[str, Any]]


def prompt_of(*candidates: tuple[str, float], prompt: str = "p", **columns: Any) -> dict[str, Any]:
    """A row with a list of candidates."""
    listed = [{"text": text, "score": score} for text, score in candidates]
    return {"prompt": prompt, "candidates": listed, **columns}


def marked(*candidates: tuple[str, float, Any]) -> dict[str, Any]:
    """The same with a human's mark on each."""
    listed = [{"text": t, "score": s, "best": mark} for t, s, mark in candidates]
    return {"prompt": "p", "candidates": listed}


def sides(rows: Rows, **rules: Any) -> list[tuple[Any, Any]]:
    """Chosen and rejected of every pair; none where there is no pair at all."""
    try:
        made = pairs_from_scored(rows, PairRules(**rules))
    except DataError as error:
        if error.code != "CP209":
            raise
        return []
    return [(pair["chosen"], pair["rejected"]) for pair in made.pairs]


ABC = prompt_of(("b", 5.0), ("a", 9.0), ("c", 1.0))

# Few texts, few scores: ties and equal texts are common.
texts = st.sampled_from(["a", "b", "c", " a", "ａ", "b  b"])  # noqa: RUF001 - a wide a
scores = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0, -3.0])
groups = st.lists(
    st.lists(st.tuples(texts, scores, st.booleans()), max_size=6), min_size=1, max_size=5
)
choices = st.fixed_dictionaries(
    {"select": st.sampled_from(pair_rules.SELECTS)},
    optional={
        "min_gap": st.sampled_from([0.0, 0.5, 2.0, 4.0]),
        "lower_is_better": st.booleans(),
        "average_same_text": st.booleans(),
    },
)


def nested(drawn: list[list[tuple[str, float, bool]]]) -> Rows:
    """Drawn candidates as rows with lists, each with a prompt of its own."""
    return [
        {**marked(*candidates), "prompt": f"prompt {number}"}
        for number, candidates in enumerate(drawn)
    ]


# What a pair is


@given(groups, choices)
def test_chosen_is_better_by_the_least_gap_and_another_text(
    drawn: list[list[tuple[str, float, bool]]], rules: dict[str, Any]
) -> None:
    sign = -1 if rules.get("lower_is_better") else 1
    try:
        made = pairs_from_scored(nested(drawn), PairRules(**rules))
    except DataError:
        return
    for pair in made.pairs:
        gap = sign * (pair["chosen_score"] - pair["rejected_score"])
        assert pair["score_gap"] == gap > 0
        assert gap >= rules.get("min_gap", 0.0)
        assert folded(pair["chosen"]) != folded(pair["rejected"])
        assert to_preference_row(pair, 0).prompt == pair["prompt"]


@given(groups, choices)
def test_every_two_candidates_and_every_prompt_are_counted_once(
    drawn: list[list[tuple[str, float, bool]]], rules: dict[str, Any]
) -> None:
    rows = [*nested(drawn), ABC]
    made = pairs_from_scored(rows, PairRules(**{**rules, "min_gap": 0.0, "preferred": "best"}))
    counts = made.counts
    sizes = [len(row["candidates"]) for row in rows]
    assert (counts.rows, counts.prompts, counts.candidates) == (len(rows), len(rows), sum(sizes))
    assert set(counts.fates) <= set(FATES)
    if not rules.get("average_same_text"):
        assert counts.fates.total() == sum(size * (size - 1) // 2 for size in sizes)
    prompts = {pair["prompt"] for pair in made.pairs}
    assert len(prompts) + counts.without.total() == len(rows)
    assert counts.pairs == len(made.pairs)


@given(groups, choices)
def test_a_flat_table_with_its_prompts_mixed_gives_the_pairs_of_lists(
    drawn: list[list[tuple[str, float, bool]]], rules: dict[str, Any]
) -> None:
    rows = nested([candidates for candidates in drawn if candidates])
    columns = [[{"prompt": r["prompt"], **one} for one in r["candidates"]] for r in rows]
    # first of every prompt's first candidate, then of every prompt's second, ...
    mixed = [one for nth in zip_longest(*columns) for one in nth if one is not None]
    assert sides(mixed, **rules) == sides(rows, **rules)


@settings(max_examples=40)
@given(groups, st.integers(1, 3))
def test_a_prompt_gives_at_most_its_cap_and_the_widest_gaps_of_all(
    drawn: list[list[tuple[str, float, bool]]], cap: int
) -> None:
    rows = [*nested(drawn), ABC]
    every = pairs_from_scored(rows, PairRules(select="all")).pairs
    capped = pairs_from_scored(rows, PairRules(select="all", per_prompt=cap)).pairs
    for prompt in {pair["prompt"] for pair in every}:
        gaps = [pair["score_gap"] for pair in every if pair["prompt"] == prompt]
        kept = [pair["score_gap"] for pair in capped if pair["prompt"] == prompt]
        assert kept == sorted(gaps, reverse=True)[:cap]
    at_random = pairs_from_scored(rows, PairRules(select="best_random", per_prompt=cap)).pairs
    assert max(Counter(pair["prompt"] for pair in at_random).values()) <= cap


@given(groups)
def test_best_worst_gives_a_prompt_one_pair_or_none_and_it_spans_all_scores(
    drawn: list[list[tuple[str, float, bool]]],
) -> None:
    rows = [*nested(drawn), ABC]
    made = pairs_from_scored(rows).pairs
    assert len({pair["prompt"] for pair in made}) == len(made)
    by_prompt = {row["prompt"]: [c["score"] for c in row["candidates"]] for row in rows}
    for pair in made:
        of_prompt = by_prompt[pair["prompt"]]
        assert (pair["chosen_score"], pair["rejected_score"]) == (max(of_prompt), min(of_prompt))


def test_all_gives_every_two_the_widest_gap_first() -> None:
    assert sides([ABC], select="all") == [("a", "c"), ("a", "b"), ("b", "c")]


def test_a_penalty_turns_every_pair_round() -> None:
    turned = [(rejected, chosen) for chosen, rejected in sides([ABC], select="all")]
    assert sides([ABC], select="all", lower_is_better=True) == turned


def test_extremes_of_one_text_give_no_pair_unless_another_candidate_shares_the_score() -> None:
    assert sides([prompt_of(("a", 9.0), ("b", 5.0), ("a ", 1.0))]) == []
    assert sides([prompt_of(("a", 9.0), ("b", 9.0), ("a", 1.0))]) == [("b", "a")]


def test_best_random_draws_every_other_candidate_and_repeats_itself() -> None:
    rows = [prompt_of(("a", 9.0), ("b", 5.0), ("c", 1.0), prompt=f"p{n}") for n in range(40)]
    first = sides(rows, select="best_random", seed=3)
    assert set(first) == {("a", "b"), ("a", "c")}
    assert sides(rows, select="best_random", seed=3) == first
    assert sides(rows, select="best_random", seed=4) != first
    # what is drawn for a prompt does not depend on the prompts after it
    assert sides(rows[:10], select="best_random", seed=3) == first[:10]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_candidates_of_one_text_are_averaged_exactly(order: tuple[int, ...]) -> None:
    # 0.1 + 0.1 + 0.1 is not 0.3 in floating point; the mean of equal scores must stay tied
    same = [("a", 0.1), ("a ", 0.1), ("ａ", 0.1)]  # noqa: RUF001
    row = prompt_of(*(same[n] for n in order), ("b", 0.1), ("c", 0.0))
    made = pairs_from_scored([row], PairRules(select="all", average_same_text=True))
    assert [(p["chosen"].strip(), p["rejected"]) for p in made.pairs[1:]] == [("b", "c")]
    assert (made.counts.averaged, made.counts.fates["tied"]) == (2, 1)
    assert made.counts.repeated == made.counts.contradicted == 0


def test_pairs_that_contradict_each_other_are_counted() -> None:
    row = prompt_of(("a", 9.0), ("b", 5.0), ("b", 4.0), ("a", 1.0))
    counts = pairs_from_scored([row], PairRules(select="all")).counts
    assert (counts.pairs, counts.repeated, counts.contradicted) == (4, 2, 4)
    assert "average_same_text" in counts.summary()


# A human's mark


def test_what_a_human_marked_is_chosen_against_the_worst_of_the_others() -> None:
    row = marked(("a", 9.0, False), ("b", 5.0, True), ("c", 1.0, None), ("d", 3.0, 0))
    made = pairs_from_scored([row], PairRules(preferred="best"))
    assert [(p["chosen"], p["rejected"], p["human"]) for p in made.pairs] == [("b", "c", True)]


def test_a_mark_overrules_scores_and_the_least_gap() -> None:
    row = marked(("a", 9.0, False), ("b", 1.0, "yes"))
    rules = PairRules(preferred="best", min_gap=100.0, margin_scale=0.5)
    made = pairs_from_scored([row], rules)
    assert [(p["chosen"], p["score_gap"], p["margin"]) for p in made.pairs] == [("b", -8.0, 0.0)]
    assert (made.counts.human, made.counts.against_scores) == (1, 1)


def test_marked_candidates_are_no_pair_among_themselves() -> None:
    row = marked(("a", 9.0, True), ("b", 5.0, True), ("c", 1.0, False), ("d", 0.0, False))
    made = pairs_from_scored([row], PairRules(preferred="best", select="all"))
    found = {(p["chosen"], p["rejected"]) for p in made.pairs}
    assert found == {("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")}
    assert made.counts.fates["overruled"] == 2


def test_prompts_without_a_mark_go_by_their_scores() -> None:
    rows = [marked(("a", 9.0, True), ("b", 5.0, False)), marked(("a", 2.0, None), ("b", 5.0, ""))]
    assert sides(rows, preferred="best") == [("a", "b"), ("b", "a")]


# Shapes and columns


def test_lists_side_by_side_are_candidates() -> None:
    row = {"prompt": "p", "responses": ["a", "b"], "score": [1, 2], "best": [True, False]}
    assert sides([row]) == [("b", "a")]
    assert sides([row], preferred="best") == [("a", "b")]
    assert sides([{**row, "answers": row["responses"]}], candidates="answers") == [("b", "a")]


def test_candidates_of_a_group_are_one_prompt_even_where_prompts_repeat() -> None:
    rows = [
        {"id": number // 2, "prompt": "same", "text": f"t{number}", "score": float(number)}
        for number in range(4)
    ]
    assert sides(rows, group="id") == [("t1", "t0"), ("t3", "t2")]
    assert sides(rows) == [("t3", "t0")]


def test_the_template_writes_columns_and_the_prefix_stands_before_completions() -> None:
    row = {**ABC, "source": "Haus {x}", "n": 3}
    made = pairs_from_scored(
        [row], PairRules(prompt_template="{{{n}}} {source}:", completion_prefix=" ")
    )
    pair = made.pairs[0]
    assert (pair["prompt"], pair["chosen"]) == ("{3} Haus {x}:", " a")


def test_messages_stay_messages() -> None:
    asked = [{"role": "user", "content": "Hi"}]
    said = [[{"role": "assistant", "content": text}] for text in ("a", "b")]
    row = {"prompt": asked, "responses": said, "score": [1, 2]}
    pair = pairs_from_scored([row]).pairs[0]
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (asked, said[1], said[0])
    flat = [{"prompt": asked, "response": t, "score": s} for t, s in zip(said, (1, 2), strict=True)]
    assert sides(flat) == [(said[1], said[0])]


def test_a_pair_has_its_gap_and_a_margin_only_where_a_scale_is_given() -> None:
    row = prompt_of(("a", 4.0), ("b", 1.5), id=7)
    plain = pairs_from_scored([row]).pairs[0]
    assert list(plain) == [*pair_rules.OWN]
    assert to_preference_row(plain, 0).margin == 0.0
    scaled = pairs_from_scored([row], PairRules(margin_scale=0.2, keep=["id"])).pairs[0]
    assert (scaled["score_gap"], scaled["margin"], scaled["id"]) == (2.5, 0.5, 7)
    assert to_preference_row(scaled, 0).margin == 0.5


# What cannot be used

BAD_ROWS: dict[str, tuple[Rows, str, str]] = {
    "no prompt": ([{"candidates": []}], "CP201", "row 0 has no column prompt; it has candidates."),
    "null prompt": ([ABC, {**ABC, "prompt": None}], "CP202", "row 1, field prompt: is null"),
    "no list": ([ABC, {"prompt": "p"}], "CP201", "row 1, field candidates: is missing"),
    "not a list": ([ABC, {**ABC, "candidates": "x"}], "CP202", "field candidates: is of type str"),
    "null list": ([{**ABC, "candidates": None}], "CP202", "field candidates: is of type NoneType"),
    "not an object": (
        [{**ABC, "candidates": [*ABC["candidates"], 3]}],
        "CP202",
        "row 0, field candidates[3]: is of type int",
    ),
    "no score": (
        [{**ABC, "candidates": [{"text": "a", "mqm": 1}]}],
        "CP201",
        "field candidates[0].score: is missing; there are text, mqm. Name the right one with score",
    ),
    "no text": (
        [{**ABC, "candidates": [{"say": "a", "score": 1}]}],
        "CP201",
        "field candidates[0].text: is missing; there are say, score.",
    ),
    "null score": ([prompt_of(("a", None))], "CP215", "candidates[0].score: is None"),
    "nan": ([prompt_of(("a", float("nan")))], "CP215", "candidates[0].score: is nan"),
    "infinite": ([prompt_of(("a", float("inf")))], "CP215", "candidates[0].score: is inf"),
    "truth": ([prompt_of(("a", True))], "CP215", "candidates[0].score: is True"),
    "word": ([prompt_of(("a", "good"))], "CP215", "candidates[0].score: is 'good'"),
    "blank": ([prompt_of(("a", 1.0), (" \n", 2.0))], "CP203", "candidates[1].text: is blank"),
    "null text": ([prompt_of((None, 1.0))], "CP202", "candidates[0].text: is null"),
    "half a character": ([prompt_of(("\ud83d", 1.0))], "CP202", "'\\ud83d', half of a character"),
    "lists of two lengths": (
        [{"prompt": "p", "responses": ["a", "b"], "score": [1]}],
        "CP202",
        "field score: is 1 entries; expected a list of 2, as responses",
    ),
    "flat": (
        [{"prompt": "p", "text": "a", "score": 1}, {"prompt": "p", "text": "a", "score": "-"}],
        "CP215",
        "row 1, field score: is '-'",
    ),
}


@pytest.mark.parametrize(("rows", "code", "text"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_what_cannot_be_used_is_named_by_row_and_field(rows: Rows, code: str, text: str) -> None:
    with pytest.raises(DataError) as raised:
        pairs_from_scored(rows, name="the file")
    assert raised.value.code == code
    assert raised.value.message.startswith("the file, row ")
    assert text in raised.value.message
    assert raised.value.message.count("invalid_rows") == 1


@pytest.mark.parametrize(("rows", "code", "text"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_dropping_counts_it_and_uses_the_rest(rows: Rows, code: str, text: str) -> None:
    good = [
        {"prompt": "good", "text": t, "score": s} if "text" in rows[0] else ABC
        for t, s in (("a", 9.0), ("c", 1.0))
    ]
    lists = {"candidates": "responses"} if "responses" in rows[0] else {}
    if lists:
        good = [{"prompt": "good", "responses": ["a", "c"], "score": [9, 1]}]
    rules = PairRules(invalid_rows="drop", **lists)
    made = pairs_from_scored([*rows, *good], rules)
    assert made.counts.dropped == {code: 1}
    assert text in made.counts.examples[code]
    assert ("a", "c") in [(p["chosen"], p["rejected"]) for p in made.pairs]


def test_a_group_with_two_prompts_is_refused() -> None:
    rows = [{"id": 1, "prompt": p, "text": "a", "score": 1.0} for p in ("p", "q")]
    with pytest.raises(DataError, match=r"CP206 .*row 1, field id: is 1, as in an earlier row"):
        pairs_from_scored(rows, PairRules(group="id"))


@pytest.mark.parametrize("rows", [[], [prompt_of(("a", 1.0), ("b", 1.0))], [prompt_of()]])
def test_no_pair_at_all_is_an_error_that_says_why(rows: Rows) -> None:
    with pytest.raises(DataError, match=r"CP209 the data set gives no pair\. .*0 pairs"):
        pairs_from_scored(rows)


def test_a_row_that_is_no_mapping_is_an_error() -> None:
    with pytest.raises(DataError, match="CP202 the data set, row 1 is of type str"):
        pairs_from_scored(iter([ABC, "row"]))


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        ({"select": "best"}, "CP102"),
        ({"invalid_rows": "skip"}, "CP102"),
        ({"min_gap": -1.0}, "CP103"),
        ({"min_gap": float("nan")}, "CP103"),
        ({"margin_scale": 0.0}, "CP103"),
        ({"select": "all", "per_prompt": 0}, "CP103"),
        ({"select": "best_random", "seed": -1}, "CP103"),
        ({"seed": 1}, "CP104"),
        ({"per_prompt": 2}, "CP104"),
        ({"prompt": "q", "prompt_template": "{q}"}, "CP104"),
        ({"group": "id", "candidates": "c"}, "CP104"),
        ({"keep": ["chosen"]}, "CP104"),
        ({"keep": ["margin"], "margin_scale": 1.0}, "CP104"),
        ({"prompt_template": "no column"}, "CP103"),
        ({"prompt_template": "{"}, "CP103"),
        ({"prompt_template": "{}"}, "CP103"),
        ({"prompt_template": "{a.b}"}, "CP103"),
        ({"prompt_template": "{a[0]}"}, "CP103"),
        ({"prompt_template": "{a!r}"}, "CP103"),
        ({"prompt_template": "{a:>9}"}, "CP103"),
        ({"score": "mqm"}, "CP107"),
        ({"score": "Loss"}, "CP107"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError) as raised:
        PairRules(**rules)
    assert raised.value.code == code


def test_a_penalty_may_be_said_to_be_better_when_higher() -> None:
    row = {"prompt": "p", "responses": ["a", "b"], "rank": [1, 2]}
    assert sides([row], score="rank", lower_is_better=False) == [("b", "a")]


def test_malformed_rows_are_counted_and_never_a_crash() -> None:
    rng = random.Random(0)
    junk = [None, 3, " ", [], {}, [[]], {"text": "a"}, float("nan"), "\ud800", True, b"x"]
    rows: Rows = [ABC]
    for _ in range(3000):
        listed = [
            {"text": rng.choice(["a", "b", *junk]), "score": rng.choice([1.0, 2, "3", *junk])}
            for _ in range(rng.randrange(4))
        ]
        row = {"prompt": rng.choice(["p", *junk]), "candidates": rng.choice([listed, *junk])}
        rows.append({key: row[key] for key in row if rng.random() < 0.9})
    counts = pairs_from_scored(rows, PairRules(invalid_rows="drop", select="all")).counts
    assert counts.rows == 3001
    assert set(counts.dropped) == {"CP201", "CP202", "CP203", "CP215"}
