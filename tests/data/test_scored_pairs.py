"""Pairs of what ``counterpoint score`` wrote: references, human choices, lengths, and origins."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from counterpoint.data.human_marks import read_marks
from counterpoint.data.pair_rules import PairRules
from counterpoint.data.scored import ScoredPairs, folded, pairs_from_scored
from counterpoint.errors import ConfigError, DataError


def row(prompt: str, number: int, score: float | None, text: str = "", **more: Any) -> dict:
    return {
        "prompt": prompt,
        "text": text or f"{prompt}{number}",
        "model": "m",
        "row": ord(prompt) - ord("a"),
        "candidate": number,
        "scores": {"x": score},
        "score": score,
        "vetoed": [],
        **more,
    }


def places(made: ScoredPairs) -> list[tuple[Any, Any]]:
    return [
        (one["chosen_from"]["candidate"], one["rejected_from"]["candidate"]) for one in made.pairs
    ]


# Origins, vetoes


def test_a_pair_says_which_candidates_it_is_made_of() -> None:
    (pair,) = pairs_from_scored([row("a", n, n) for n in range(3)]).pairs
    assert pair["chosen_from"] == {"model": "m", "row": 0, "candidate": 2}
    assert pair["rejected_from"] == {"model": "m", "row": 0, "candidate": 0}
    plain = [{"prompt": "a", "text": f"{n}", "score": n} for n in range(2)]
    assert "chosen_from" not in pairs_from_scored(plain).pairs[0]


@pytest.mark.parametrize("grouped", [{}, {"group": "row"}])
@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("target_lang", ["de", "fr"]),
        ("tools", [[{"name": "add"}], [{"name": "sub"}]]),
        ("chat_template_kwargs", [{"enable_thinking": True}, None]),
    ],
)
def test_what_was_asked_beside_a_prompt_is_a_question_of_its_own_and_stays_with_its_pair(
    name: str, cells: list[Any], grouped: dict[str, Any]
) -> None:
    """One source for two languages: a German text is no answer to what was asked for in French."""
    rows = [
        {**row("a", k, 10 * n + k, text=f"{n}{k}"), "row": n, name: cell}
        for n, cell in enumerate(cells)
        for k in range(2)
    ]
    made = pairs_from_scored(rows, PairRules(**grouped)).pairs
    assert [(one["chosen"], one["rejected"], one.get(name)) for one in made] == [
        ("01", "00", cells[0]),
        ("11", "10", cells[1]),
    ]
    of_one = [{**one, "row": 0} for one in rows]
    if grouped:
        with pytest.raises(DataError, match="CP206"):
            pairs_from_scored(of_one, PairRules(**grouped))
    elsewhere = [{"prompt": "a", "text": one["text"], "score": one["score"]} for one in rows]
    (pair,) = pairs_from_scored([{**one, name: "own"} for one in elsewhere]).pairs
    assert name not in pair  # a table of another's, whose columns may mean another thing


def test_a_veto_or_a_missing_score_makes_no_pair_and_is_counted() -> None:
    rows = [
        *(row("a", 0, 9, vetoed=["lang"]), row("a", 1, 5), row("a", 2, None), row("a", 3, 1)),
        *(row("b", 0, None), row("b", 1, 2, text=" ", vetoed=["blank"])),
    ]
    made = pairs_from_scored(rows)
    assert places(made) == [(1, 3)]
    counts = made.counts.as_dict()
    assert counts["left_out"] == {"unscored": 2, "vetoed": 2}
    assert counts["prompts_without_a_pair"] == {"single": 1}
    assert counts["rows"] == 6
    assert counts["candidates"] == 2
    # where score did not write it, a null is an error as ever
    with pytest.raises(DataError, match="CP215"):
        pairs_from_scored([{"prompt": "a", "text": "b", "score": None}])


# The reference as a candidate


def with_reference(score: float | None) -> list[dict[str, Any]]:
    more = {"reference": "right", **({} if score is None else {"own": score})}
    return [row("a", n, s, **more) for n, s in enumerate((3.0, 1.0, 2.0))]


def test_the_reference_outranks_every_candidate() -> None:
    made = pairs_from_scored(with_reference(None), PairRules(reference="reference"))
    (pair,) = made.pairs
    assert (pair["chosen"], pair["rejected"], pair["score_gap"]) == ("right", "a1", 2)
    assert pair["chosen_from"] == {"model": "reference", "row": 0, "candidate": None}
    assert "human" not in pair
    assert made.counts.human == 0
    every = pairs_from_scored(with_reference(None), PairRules(reference="reference", select="all"))
    assert {one["chosen"] for one in every.pairs} == {"right"}
    assert len(every.pairs) == 3


@pytest.mark.parametrize(
    ("score", "ends"), [(9, ("right", "a1")), (0, ("a0", "right")), (2.5, None)]
)
def test_a_reference_with_a_score_is_one_candidate_among_others(
    score: float, ends: tuple[str, str] | None
) -> None:
    rules = PairRules(reference="reference", reference_score="own")
    (pair,) = pairs_from_scored(with_reference(score), rules).pairs
    assert (pair["chosen"], pair["rejected"]) == (ends or ("a0", "a1"))


def test_a_human_wins_over_the_reference() -> None:
    rows = [{**one, "liked": one["candidate"] == 1} for one in with_reference(None)]
    rules = PairRules(reference="reference", preferred="liked", select="all")
    assert {one["chosen"] for one in pairs_from_scored(rows, rules).pairs} == {"a1"}


def test_a_missing_reference_leaves_the_candidates_alone() -> None:
    rows = [row("a", n, n, reference=None) for n in range(2)]
    assert places(pairs_from_scored(rows, PairRules(reference="reference"))) == [(1, 0)]


# A human's choices in a file


def chosen_by_hand(tmp_path: Path, lines: list[Any], rows: list[dict], **rules: Any) -> ScoredPairs:
    path = tmp_path / "human.jsonl"
    path.write_text("".join(f"{json.dumps(one)}\n" for one in lines), encoding="utf-8")
    return pairs_from_scored(rows, PairRules(**rules), marks=read_marks(path))


@pytest.mark.parametrize(
    "line", [{"model": "m", "row": 0, "candidate": 1}, {"prompt": "a", "text": "a1"}]
)
def test_a_choice_in_a_file_wins_over_scores_and_vetoes(tmp_path: Path, line: dict) -> None:
    rows = [row("a", 0, 9), row("a", 1, 1, vetoed=["x"]), row("a", 2, 5), row("b", 0, 1)]
    made = chosen_by_hand(tmp_path, [line], [*rows, row("b", 1, 2)])
    assert places(made) == [(1, 2), (1, 0)]
    assert [one["human"] for one in made.pairs] == [True, False]
    assert (made.counts.human, made.counts.against_scores) == (1, 1)


def test_a_choice_of_nothing_that_is_there_is_refused(tmp_path: Path) -> None:
    rows = [row("a", 0, 9), row("a", 1, 1)]
    with pytest.raises(DataError, match=r"CP244 .*1 of 2 choices .* the first in line 2"):
        chosen_by_hand(
            tmp_path, [{"prompt": "a", "text": "a1"}, {"prompt": "a", "text": "no"}], rows
        )
    with pytest.raises(DataError, match=r"CP210 .*line 1: should name a candidate"):
        chosen_by_hand(tmp_path, [{"model": "m", "row": 0}], rows)
    with pytest.raises(DataError, match="CP211"):
        read_marks(tmp_path / "gone.jsonl")


# Lengths


@pytest.mark.parametrize("seed", range(5))
def test_where_prompts_offer_both_the_lengths_never_drift(seed: int) -> None:
    """Long texts score better, as with many judges; each prompt has a short good one, too."""
    chance = random.Random(seed)
    rows = []
    for n in range(200):
        lengths = [chance.randint(1, 60) for _ in range(4)]
        low = [("w" * length, length / 10) for length in lengths]
        texts = [*low, ("x" * min(lengths), 10), ("y" * max(lengths), 11), ("z" * max(lengths), 0)]
        rows += [
            {"prompt": f"p{n}", "text": text, "score": score + chance.random()}
            for text, score in texts
        ]
    gaps = {}
    for select in ("best_worst", "length_balanced"):
        made = pairs_from_scored(rows, PairRules(select=select))
        found = [len(folded(one["chosen"])) - len(folded(one["rejected"])) for one in made.pairs]
        gaps[select] = abs(sum(found))
        assert len(found) == 200
        if select == "length_balanced":
            running = [abs(sum(found[: n + 1])) for n in range(len(found))]
            assert max(running) <= 59
            assert made.counts.longer == sum(found)
    assert gaps["length_balanced"] <= 59


def test_a_pair_of_balanced_lengths_has_half_of_the_widest_gap() -> None:
    scores = {"long long long": 10.0, "short": 6.0, "tiny": 5.6, "none at all, but many": 0.0}
    rows = [{"prompt": "a", "text": text, "score": score} for text, score in scores.items()]
    (pair,) = pairs_from_scored(rows, PairRules(select="length_balanced")).pairs
    assert pair["score_gap"] >= 5
    assert (pair["chosen"], pair["rejected"]) == ("long long long", "none at all, but many")


@pytest.mark.parametrize("select", ["best_worst", "all", "best_random", "length_balanced"])
def test_a_human_s_choice_stays_whatever_the_scores_and_the_rule_say(select: str) -> None:
    rows = [
        row("a", 0, 1.0, mine=True),
        *(row("a", n, 2.0 + n, mine=False) for n in (1, 2)),
    ]
    made = pairs_from_scored(rows, PairRules(select=select, preferred="mine"))
    assert made.pairs
    assert {one["chosen_from"]["candidate"] for one in made.pairs} == {0}
    assert made.counts.against_scores == len(made.pairs)


def test_rules_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="CP104 per_prompt does nothing"):
        PairRules(select="length_balanced", per_prompt=2)
    with pytest.raises(ConfigError, match="CP104 reference_score does nothing"):
        PairRules(reference_score="own")
    with pytest.raises(ConfigError, match="CP104 keep=chosen_from"):
        PairRules(keep=["chosen_from"])
