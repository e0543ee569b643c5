"""A grade is the number that a judge gives a candidate alone; any other number is no grade."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from counterpoint.endpoint import Question
from counterpoint.errors import ConfigError, ModelError
from counterpoint.replies import Reply, ReplyKind
from counterpoint.scoring import of_grade
from counterpoint.scoring.entries import read_entries
from counterpoint.scoring.of_grade import EndpointGrade, grade_of
from counterpoint.scoring.scorer import ScoringWork
from counterpoint.scoring.scorer_options import GradeOptions
from tests.cli.conftest import Command, command, write_pairs
from tests.endpoint_on_the_spot import Answer, said, serving

__all__ = ["command"]

ANSWER = re.compile(r"<answer>\n(.*)\n</answer>", re.DOTALL)
BEHIND = ("--with", "grade:rubric.txt", "--judge_model", "served")


@pytest.fixture(autouse=True)
def rubric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rubric.txt").write_text("Grade {how true} it is.", encoding="utf-8")


class Simulated:
    """A judge in this process; counts what it is asked."""

    def __init__(self, decide: Callable[[str], Reply]) -> None:
        self.decide, self.asked = decide, Counter[str]()

    def ask_all(self, questions: Iterator[Question], take: Callable[[int, Reply], None]) -> None:
        for number, question in enumerate(questions):
            content = question.prompt[0]["content"]  # type: ignore[index]
            found = ANSWER.search(content)
            assert found
            assert "Grade {how true} it is." in content
            self.asked[found[1]] += 1
            take(number, self.decide(found[1]))


def graded(
    texts: list[str], decide: Callable[[str], Reply], first: int = 0, **options: Any
) -> tuple[list[float | None], EndpointGrade, Counter[str]]:
    write_pairs(Path("c.jsonl"), [{"prompt": "p", "text": text} for text in texts])
    entries = read_entries([Path("c.jsonl")])
    endpoint = Simulated(decide)
    told = GradeOptions(endpoint="http://x/v1", model="j", **options)
    grade = EndpointGrade("rubric.txt", told, endpoint)
    grade.begin(ScoringWork(entries, first, Path("grades.jsonl")))
    return grade.score(list(entries.read(0, len(entries)))), grade, endpoint.asked


def length(text: str) -> Reply:
    return Reply(ReplyKind.TEXT, f"Of 10 it has [[1]], no: [[{len(text)}]]")


@pytest.mark.parametrize(
    ("text", "finish", "grade", "why"),
    [
        ("so [[7]]", "stop", 7, ""),
        ("[[3]], but on second thought [[ 4.5 ]].", "stop", 4.5, ""),
        ("[[1]]", "stop", 1, ""),
        ("[[10]]", "length", 10, ""),
        ("[[0.99]]", "stop", None, of_grade.OUTSIDE),
        ("[[11]]", "stop", None, of_grade.OUTSIDE),
        ("[[-3]]", "stop", None, of_grade.OUTSIDE),
        ("7", "stop", None, of_grade.NONE),
        ("It is 7 of 10: [7]", "stop", None, of_grade.NONE),
        ("[[7/10]]", "stop", None, of_grade.NONE),
        ("[[7]] [[number]]", "stop", None, of_grade.NONE),
        ("[[nan]]", "stop", None, of_grade.NONE),
        ("", "stop", None, of_grade.NONE),
        ("A [[9]] would have said why, and", "length", None, of_grade.CUT),
    ],
)
def test_a_grade_is_the_last_marked_number_on_the_scale_and_nothing_else(
    text: str, finish: str, grade: float | None, why: str
) -> None:
    found = grade_of(Reply(ReplyKind.TEXT, text, finish), (1, 10))
    assert (found.value, found.why) == (grade, why)


def test_a_refusal_is_no_grade_whatever_it_says() -> None:
    assert grade_of(Reply(ReplyKind.REFUSED, "[[1]]"), (1, 10)).why == of_grade.REFUSED


def test_each_candidate_is_asked_about_alone_and_equal_ones_once() -> None:
    scores, grade, asked = graded(["a", "bb", "a", "cccc"], length)
    assert scores == [1, 2, 1, 4]
    assert asked == {"a": 1, "bb": 1, "cccc": 1}
    assert grade.remarks() == []
    assert graded(["a", "bb", "a", "cccc"], length)[2] == {}


def test_what_has_no_grade_is_counted_by_its_reason_and_only_a_failure_is_asked_again() -> None:
    replies = {
        "a": Reply(ReplyKind.TEXT, "[[11]]"),
        "b": Reply(ReplyKind.TEXT, "seven"),
        "c": Reply(ReplyKind.FAILED, reason="500"),
        "d": Reply(ReplyKind.TEXT, "[[7]]"),
        "e": Reply(ReplyKind.TEXT, "eight"),
    }
    scores, grade, _ = graded([*replies], replies.__getitem__)
    assert scores == [None, None, None, 7, None]
    (told,) = grade.remarks()
    assert told.startswith("4 have no grade of the judge j: 2 × no number in double brackets; 1 ×")
    for why in (of_grade.OUTSIDE, of_grade.FAILED):
        assert f"1 × {why}" in told
    # the reasons are those of the first time, but for the question that failed
    scores, grade, asked = graded([*replies], length, scale=[1.0, 10.0])
    assert asked == {"c": 1}
    assert scores == [None, None, 1, 7, None]
    assert f"3 have no grade of the judge j: 2 × {of_grade.NONE}; 1 × {of_grade.OUTSIDE}" in (
        grade.remarks()
    )


def test_a_grade_is_known_by_all_that_it_depends_on() -> None:
    for change in ({}, {"scale": [0.0, 5.0]}, {"temperature": 1.0}, {"max_tokens": 9}):
        assert graded(["a"], length, **change)[2] == {"a": 1}, change
        assert graded(["a"], length, **change)[2] == {}, change
    Path("rubric.txt").write_text("Grade {how true} it is. Be strict.", encoding="utf-8")
    assert graded(["a"], length)[2] == {"a": 1}


def test_a_judge_that_grades_nothing_is_refused_and_one_that_graded_before_is_not() -> None:
    silent = Reply(ReplyKind.TEXT, "fine")
    with pytest.raises(ModelError, match=r"CP348 the judge j gave no grade: 2 × no number"):
        graded(["a", "b"], lambda text: silent)
    Path("grades.jsonl").unlink()
    scores, _, asked = graded(["a", "b"], lambda text: silent, first=1)
    assert scores == [None, None]
    assert asked == {"b": 1}


@pytest.mark.parametrize("scale", [[1.0], [1.0, 1.0], [10.0, 1.0], [1.0, 5.0, 10.0], []])
def test_a_scale_is_two_numbers_the_least_first(scale: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"CP103 scale=.* should be two numbers"):
        GradeOptions(scale=scale)


def test_flags_are_enough_and_a_file_that_has_grown_is_graded_on(command: Command) -> None:
    def script(path: str, body: dict[str, Any], seen: int) -> Answer:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("served", 64, 0.5)
        content = body["messages"][0]["content"]
        assert "from 0 to 5" in content
        text = ANSWER.search(content)[1]  # type: ignore[index]
        return Answer(status=500) if seen == 0 and text == "aa" else said(f"[[{len(text)}]]")

    texts = ["a", "aa", "aaa"]
    rows = [{"prompt": "p", "text": text} for text in texts]
    write_pairs(Path("c.jsonl"), rows)
    with serving(script) as server:
        words = (
            *("score", "c.jsonl", "--out", "s.jsonl", *BEHIND, "--judge_endpoint", server.url),
            *("--judge_scale", "0", "5", "--judge_temperature", ".5", "--judge_max_tokens", "64"),
        )
        done = command(*words)
        assert done.code == 0, done.err
        assert len(server.asked) == 4  # one was asked again
        # what only says how it is asked is none of what a scoring is known by
        write_pairs(Path("c.jsonl"), [*rows, {"prompt": "p", "text": "aaaa"}])
        done = command(*words, "--judge_concurrency", "2", "--judge_retries", "1")
        assert done.code == 0, done.err
        assert len(server.asked) == 5
        other = command(*words[:-2])
    lines = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert [line["score"] for line in lines] == [1, 2, 3, 4]
    kept = json.loads(Path("s.jsonl.settings.json").read_text())["scorers"]["grade"]
    assert (kept["scale"], kept["model"], kept["max_tokens"]) == ([0, 5], "served", 64)
    assert "CP534 s.jsonl was scored with grade=" in other.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "CP107 endpoint of the judge is missing. Write --judge_endpoint"),
        (("--judge_endpoint", "127.0.0.1:8000"), "CP103 endpoint=127.0.0.1:8000 should be as in"),
        (("--judge_scale", "5", "1"), "CP103 scale=5 1 should be two numbers"),
        (("--judge_scale", "low"), 'CP103 --judge_scale="low" should be a list of numbers'),
        (("--judge_max_tokens", "0"), "CP103 max_tokens=0"),
        (("--judge_temperature", "-1"), "CP103 temperature=-1.0"),
        (("--judge_timeout", "0"), "CP103 timeout=0.0"),
        (
            ("--judge_opponents", "2"),
            "CP104 judge_opponents would do nothing: no scorer is a judge.",
        ),
        (("--judge_rubric", "x"), "CP101 --judge_rubric is no option"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_before_anything_is_read(
    command: Command, words: tuple[str, ...], said: str
) -> None:
    done = command("score", "none.jsonl", "--out", "s.jsonl", *BEHIND, *words)
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert not Path("s.jsonl").exists()
