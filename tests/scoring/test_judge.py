"""A judge is asked in both orders, so that what it thinks of positions decides nothing."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from counterpoint.endpoint import Question
from counterpoint.errors import ConfigError, ModelError
from counterpoint.replies import Reply, ReplyKind
from counterpoint.scoring.entries import read_entries
from counterpoint.scoring.of_judge import EndpointJudge, position_bias, verdict_of
from counterpoint.scoring.scorer import ScoringWork
from counterpoint.scoring.scorer_options import JudgeOptions
from tests.cli.conftest import Command, command, write_pairs
from tests.endpoint_on_the_spot import said, serving

__all__ = ["command"]

ANSWERS = re.compile(r"<answer A>\n(.*)\n</answer A>\n\n<answer B>\n(.*)\n</answer B>", re.DOTALL)

Decide = Callable[[str, str], str | None]
"""What a judge says of the texts shown first and second; None: the question fails."""


class Simulated:
    """A judge in this process; counts what it is asked."""

    def __init__(self, decide: Decide) -> None:
        self.decide, self.asked = decide, Counter[tuple[str, str]]()

    def ask_all(self, questions: Iterator[Question], take: Callable[[int, Reply], None]) -> None:
        for number, question in enumerate(questions):
            found = ANSWERS.search(question.prompt[0]["content"])  # type: ignore[index]
            assert found
            self.asked[found[1], found[2]] += 1
            verdict = self.decide(found[1], found[2])
            failed = Reply(ReplyKind.FAILED, reason="500")
            take(number, failed if verdict is None else Reply(ReplyKind.TEXT, f"[[{verdict}]]"))


@pytest.fixture(autouse=True)
def rubric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("rubric.txt").write_text("The truer answer is better.", encoding="utf-8")
    return "rubric.txt"


def judged(
    rows: list[dict[str, Any]], decide: Decide, **options: Any
) -> tuple[list[float | None], EndpointJudge, Simulated]:
    write_pairs(Path("c.jsonl"), rows)
    entries = read_entries([Path("c.jsonl")])
    endpoint = Simulated(decide)
    judge = EndpointJudge(
        "rubric.txt", JudgeOptions(endpoint="http://x/v1", model="j", **options), endpoint
    )
    judge.begin(ScoringWork(entries, 0, Path("verdicts.jsonl")))
    return judge.score(list(entries.read(0, len(entries)))), judge, endpoint


def rows_of(prompts: int, texts: int) -> list[dict[str, Any]]:
    """Candidates of which the lower number is the better one."""
    return [
        {"prompt": f"p{n}", "text": f"{n}-{k}", "reference": f"{n}-reference"}
        for n in range(prompts)
        for k in range(texts)
    ]


def quality(text: str) -> int:
    return -int(text.rpartition("-")[2])


def test_answers_to_a_prompt_in_two_languages_are_never_compared() -> None:
    rows = [
        {"prompt": "p", "text": f"{lang}-{k}", "model": "m", "row": n, "candidate": k}
        | {"target_lang": lang}
        for n, lang in enumerate(("de", "fr"))
        for k in range(3)
    ]
    scores, _, endpoint = judged(rows, lambda a, b: "A" if quality(a) > quality(b) else "B")
    assert all(one[:2] == other[:2] for one, other in endpoint.asked)
    assert scores == [1.0, 0.5, 0.0] * 2


@pytest.mark.parametrize("towards", ["A", "B"])
def test_a_position_bias_of_a_fifth_is_measured_and_taken_out(towards: str) -> None:
    """Of each two the lower number is better for 70 of 100 raters; 20 % of verdicts are blind."""
    chance = random.Random(3)

    def decide(first: str, second: str) -> str:
        if chance.random() < 0.2:
            return towards
        right = "A" if quality(first) > quality(second) else "B"
        return right if chance.random() < 0.7 else "AB"["BA".index(right)]

    prompts = 1_500
    scores, judge, endpoint = judged(rows_of(prompts, 3), decide)
    assert endpoint.asked.total() == prompts * 6
    assert set(endpoint.asked.values()) == {1}
    # the best wins 70 % of both comparisons, the middle one 70 and 30 %, the last 30 %
    for place, truth in enumerate((0.7, 0.5, 0.3)):
        mean = sum(map(float, scores[place::3])) / prompts  # type: ignore[arg-type]
        # of 6,000 verdicts a share has a standard error of 0.65 %, and the bias of 1 %
        assert mean == pytest.approx(truth, abs=0.02)
    (told,) = judge.remarks()
    assert f"prefers what stands {'first' if towards == 'A' else 'second'} in" in told
    share = re.search(r" in ([\d.]+)% ", told)
    assert share
    assert float(share[1]) == pytest.approx(20, abs=2)


def test_a_biased_judge_of_plain_texts_never_turns_a_pair_round() -> None:
    chance = random.Random(0)

    def decide(first: str, second: str) -> str:
        biased = chance.random() < 0.2
        return "A" if biased or quality(first) > quality(second) else "B"

    scores, _, _ = judged(rows_of(300, 2), decide)
    better, worse = scores[::2], scores[1::2]
    assert all(a >= b for a, b in zip(better, worse, strict=True))  # type: ignore[operator]
    assert sum(a == b for a, b in zip(better, worse, strict=True)) == pytest.approx(60, abs=25)


def test_a_comparison_without_both_verdicts_counts_nothing_and_is_asked_again() -> None:
    rows = rows_of(1, 3)

    def decide(first: str, second: str) -> str | None:
        return None if (first, second) == ("0-2", "0-0") else "tie" if "0-2" in first else "A"

    scores, judge, _ = judged(rows, decide)
    assert (
        "1 comparisons have no verdict in one order, and count nothing; 1 questions"
        in (judge.remarks()[-1])
    )
    kept = [json.loads(line) for line in Path("verdicts.jsonl").read_text().splitlines()]
    assert len(kept) == 5
    scores, judge, endpoint = judged(rows, lambda first, second: "B")
    assert endpoint.asked == {("0-2", "0-0"): 1}
    assert None not in scores
    assert len(judge.remarks()) == 1


def test_a_torn_verdict_is_asked_again_and_none_twice() -> None:
    rows, better = rows_of(2, 2), lambda first, second: "A" if quality(first) == 0 else "B"
    scores, _, _ = judged(rows, better)
    assert scores == [1, 0, 1, 0]
    whole = Path("verdicts.jsonl").read_bytes()
    Path("verdicts.jsonl").write_bytes(whole[:-9])
    again, _, endpoint = judged(rows, better)
    assert again == scores
    assert endpoint.asked.total() == 1


def test_a_verdict_of_other_settings_is_no_verdict() -> None:
    """An answer that was cut before its verdict is asked for again with more room."""
    rows, better = rows_of(1, 2), lambda first, second: "A" if quality(first) == 0 else "B"
    for options, asked in (
        ({}, 2),
        ({"max_tokens": 2048}, 2),
        ({"temperature": 0.5}, 2),
        ({}, 0),
    ):
        scores, _, endpoint = judged(rows, better, **options)
        assert (scores, endpoint.asked.total()) == ([1, 0], asked)


def test_the_same_text_is_a_tie_and_asks_nothing() -> None:
    rows = [{"prompt": "p", "text": text} for text in ("x", "x ", "y")]
    scores, _, endpoint = judged(rows, lambda first, second: "A" if first == "y" else "B")
    assert scores == [0.25, 0.25, 1]
    assert endpoint.asked.total() == 4


def test_a_reference_is_what_each_candidate_may_be_compared_with() -> None:
    rows = [*rows_of(1, 2), {"prompt": "p", "text": "alone"}]
    scores, _, endpoint = judged(
        rows, lambda first, second: "A" if "-0" in first else "B", against="reference"
    )
    assert scores == [1, 0.5, None]
    assert endpoint.asked.total() == 4


def test_a_ring_gives_each_candidate_as_many_opponents() -> None:
    _, _, endpoint = judged(rows_of(1, 7), lambda first, second: "A", opponents=4)
    shown = Counter(text for pair in endpoint.asked for text in pair)
    assert set(shown.values()) == {8}


def test_a_judge_that_looks_at_positions_alone_is_refused() -> None:
    with pytest.raises(ModelError, match=r"CP348 the judge j names the same position in 100%"):
        judged(rows_of(20, 2), lambda first, second: "A")
    Path("verdicts.jsonl").unlink()
    with pytest.raises(ModelError, match="CP348 the judge j gave no verdict"):
        judged(rows_of(2, 2), lambda first, second: "perhaps A")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("[[A]]", 1), ("[[B]] no, [[ a ]]", 1), ("so [[B]].", 0), ("[[Tie]]", 0.5), ("A", None)],
)
def test_the_last_verdict_counts(text: str, verdict: float | None) -> None:
    assert verdict_of(text) == verdict


def test_bias_is_a_share_of_verdicts_with_a_sign() -> None:
    assert position_bias([1, 0, 0, 1]) == (0, 0)
    assert position_bias([1, 1]) == (1, 0)
    assert position_bias([0, 0, 0, 0]) == (-1, 0)
    assert position_bias([1, 1, 1, 0]) == (0.5, pytest.approx(0.5 / 2**0.5))
    assert position_bias([]) == (0, 0)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="CP107 endpoint of the judge is missing"):
        EndpointJudge("rubric.txt", JudgeOptions())
    with pytest.raises(ConfigError, match=r"CP106 the rubric gone.txt cannot be read"):
        EndpointJudge("gone.txt", JudgeOptions(endpoint="http://x/v1", model="m"))


def test_the_command_asks_a_server_and_keeps_what_it_said(command: Command) -> None:
    def script(path: str, body: dict[str, Any], seen: int) -> Any:
        first, second = ANSWERS.search(body["messages"][0]["content"]).groups()  # type: ignore[union-attr]
        return said(f"Since it is so: [[{'A' if quality(first) > quality(second) else 'B'}]]")

    write_pairs(Path("c.jsonl"), rows_of(2, 3))
    with serving(script) as server:
        Path("s.yaml").write_text(
            f"style:\n  judge: rubric.txt\n  endpoint: {server.url}\n  model: served\n"
        )
        words = ("score", "c.jsonl", "--out", "s.jsonl", "--scorers", "s.yaml")
        done = command(*words)
        assert done.code == 0, done.err
        asked = len(server.asked)
        assert asked == 12
        assert command(*words, "--overwrite").code == 0
        assert len(server.asked) == asked
    lines = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [1, 0.5, 0] * 2
    kept = [json.loads(line) for line in Path("s.jsonl.style.jsonl").read_text().splitlines()]
    assert {one["said"][:15] for one in kept} == {"Since it is so:"}
    write_pairs(Path("c.jsonl"), rows_of(2, 4))
    assert "CP534 s.jsonl holds scores of 6 other candidates" in command(*words).err
