"""What is worrying about a loop follows from its rounds' files; a loop that gets better is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from counterpoint.loop.figures import RoundFigures, figures_of, wins_over
from counterpoint.loop.stages import LoopCourse
from counterpoint.loop.worries import worries_of
from counterpoint.options.loop_options import LoopRecipe

PROMPTS = 40


def write_round(
    folder: Path,
    number: int,
    scores: Sequence[float],
    *,
    texts: Sequence[str] = ("one", "two", "three", "four"),
    tokens: int = 10,
    other: float = 1.0,
    accuracy: float = 0.7,
) -> None:
    """A round whose answers to every held-out prompt have these scores."""
    place = folder / f"round-{number}"
    place.mkdir()
    rows = [
        {
            "prompt": f"{n}?",
            "text": text,
            "tokens": tokens,
            "scores": {"main": score, "other": other},
            "score": score,
            "vetoed": [],
        }
        for n in range(PROMPTS)
        for text, score in zip(texts, scores, strict=True)
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (place / "held-out-scored.jsonl").write_text(lines)
    share = {"value": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05}
    content = {"after": {"sets": {"held": {"measures": {"accuracy": share}}}, "texts": {}}}
    (place / "evaluation.json").write_text(json.dumps(content))


def figures(folder: Path, rounds: int = 1, unfinished: int = -1) -> list[RoundFigures]:
    recipe = LoopRecipe("model", ["prompts.jsonl"], rounds=rounds, held_out=["held.jsonl"])
    given = {"sample": {}, "score": {}, "pairs": {}, "train": {}, "evaluate": {}}
    course = LoopCourse(recipe, folder, given, dict.fromkeys(given, ()))
    ended = {f"round-{n}/{stage}" for n in range(rounds + 1) for stage in ("judge", "evaluate")}
    return figures_of(course, ended - {f"round-{unfinished}/judge"})


UP, DOWN = (1.0, 2.0, 3.0, 4.0), (0.0, 1.0, 2.0, 3.0)


def test_a_round_that_is_better_worries_nobody(tmp_path: Path) -> None:
    write_round(tmp_path, 0, DOWN)
    write_round(tmp_path, 1, UP)
    found = figures(tmp_path)
    assert worries_of(found) == []
    assert found[0].wins is None
    # of 16 comparisons 10 are won and 3 equal: (10 + 1.5) / 16
    assert found[1].wins is not None
    assert found[1].wins.value == pytest.approx(11.5 / 16)
    assert found[1].held is not None
    assert found[1].held.score.value == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("CW446", {"texts": ("same",) * 4}),
        ("CW447", {"tokens": 16}),
        ("CW447", {"tokens": 6}),
        ("CW448", {"scores": (4.0,) * 4}),
        ("CW449", {"other": 0.5}),
        ("CW449", {"accuracy": 0.5}),
    ],
)
def test_each_worry_has_its_code(tmp_path: Path, code: str, changes: dict[str, Any]) -> None:
    write_round(tmp_path, 0, DOWN)
    write_round(tmp_path, 1, **{"scores": UP, **changes})
    assert [one.code for one in worries_of(figures(tmp_path))] == [code]


@pytest.mark.parametrize(("after", "worse"), [(0.5, False), (1.5, True)])
def test_of_a_penalty_more_is_worse(tmp_path: Path, after: float, worse: bool) -> None:
    write_round(tmp_path, 0, DOWN)
    write_round(tmp_path, 1, UP, other=after)
    found = worries_of(figures(tmp_path), {"other"})
    assert [one.code for one in found] == ["CW449"] * worse
    assert all("more is other: 1.5 after 1" in one.seen for one in found)


def test_what_a_stage_has_not_completed_counts_nowhere(tmp_path: Path) -> None:
    write_round(tmp_path, 0, DOWN)
    write_round(tmp_path, 1, UP)
    with (tmp_path / "round-1" / "held-out-scored.jsonl").open("a") as file:
        file.write('{"prompt": "to')
    (_, last) = figures(tmp_path, unfinished=1)
    assert last.held is None
    assert last.wins is None
    assert last.accuracy["held"].value == 0.7


def test_what_falls_with_the_score_is_no_price_of_it(tmp_path: Path) -> None:
    write_round(tmp_path, 0, UP)
    write_round(tmp_path, 1, DOWN, other=0.5, accuracy=0.5)
    assert worries_of(figures(tmp_path)) == []


def test_a_veto_and_a_missing_score_take_part_in_no_comparison() -> None:
    def rows(*scores: float | None, vetoed: bool = False) -> list[dict[str, Any]]:
        return [{"score": one, "vetoed": ["lang"] * vetoed} for one in scores]

    assert wins_over({"p": rows(None)}, {"p": rows(1.0)}) is None
    assert wins_over({"p": rows(0.0)}, {"p": rows(1.0, vetoed=True)}) is None
    found = wins_over({"p": rows(0.0, None)}, {"p": rows(1.0) + rows(-1.0, vetoed=True)})
    assert found is not None
    assert found.value == 1.0
