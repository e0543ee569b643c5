"""``counterpoint evaluate --with``: written texts are scored, and two models are matched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

import pytest
from transformers import AutoTokenizer

from tests.cli.conftest import Command
from tests.endpoint_on_the_spot import said, serving
from tests.models_on_the_spot import make_model

FEW = ("--use_cpu", "--resamples", "50", "--generate", "5", "--max_new_tokens", "6")
WORDS = ("evaluate", "other", "--dataset", "pairs.jsonl", *FEW)


@pytest.fixture(autouse=True)
def other(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model with the same tokenizer, and a scorer."""
    tokenizer = AutoTokenizer.from_pretrained("model")
    make_model("qwen2", seed=5, vocab_size=len(tokenizer)).save_pretrained("other")
    tokenizer.save_pretrained("other")
    Path("own_scores.py").write_text(
        "def vowels(rows):\n    return [sum(c in 'aeiou' for c in row['text']) for row in rows]\n"
    )
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)


def test_both_models_are_scored_and_the_share_of_wins_is_said(command: Command) -> None:
    words = ("--base", "model", "--with", "own_scores:vowels", "length", "--out", "found")
    told = command(*WORDS, *words)
    assert told.code == 0, told.err
    assert "pairs.jsonl, greedy: 5 prompts, scores" in told.out
    assert "wins over before" in told.out
    content = json.loads(Path("found/evaluation.json").read_text())
    lines = [json.loads(one) for one in Path("found/completions.jsonl").read_text().splitlines()]
    texts = {who: [one for one in lines if one["model"] == who] for who in ("model", "other")}
    old, new = ([one["scores"]["vowels"] for one in texts[who]] for who in ("model", "other"))
    assert new == [sum(c in "aeiou" for c in one["completion"]) for one in texts["other"]]
    for who, numbers in (("before", old), ("after", new)):
        found = content[who]["scored"]["pairs.jsonl"]["greedy"]["vowels"]
        assert found["mean"]["value"] == pytest.approx(mean(numbers), abs=1e-12)
        assert (found["scored"], found["without"]) == (5, 0)
    change = content["score_changes"]["pairs.jsonl"]["greedy"]["vowels"]
    won = mean((b > a) + 0.5 * (a == b) for a, b in zip(old, new, strict=True))
    assert change["wins"]["value"] == pytest.approx(won, abs=1e-12)
    assert change["change"]["value"] == pytest.approx(mean(new) - mean(old), abs=1e-12)


def test_one_model_is_scored_alone(command: Command) -> None:
    told = command(*WORDS, "--with", "exact", "--json")
    content = json.loads(told.out)
    assert content["after"]["scored"]["pairs.jsonl"]["greedy"]["exact"]["scored"] == 5
    assert "score_changes" not in content


def test_what_was_written_stays_where_a_scorer_fails(command: Command) -> None:
    Path("own_scores.py").write_text("def vowels(rows): raise OSError('no network')\n")
    told = command(*WORDS, "--with", "own_scores:vowels", "--out", "found")
    assert told.code == 2
    assert "CP347 own_scores:vowels failed at" in told.err
    lines = [json.loads(one) for one in Path("found/completions.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    assert "scores" not in lines[0]
    assert "sets" in json.loads(Path("found/evaluation.json").read_text())["after"]


def test_scorers_without_texts_do_nothing_and_are_refused(command: Command) -> None:
    told = command("evaluate", "other", "--dataset", "pairs.jsonl", "--with", "exact")
    assert "CP104 with would do nothing: no text is written" in told.err
    assert "CP102" in command(*WORDS, "--with", "exactly").err


def test_a_judge_grades_the_texts_by_flags_alone(command: Command) -> None:
    Path("rubric.txt").write_text("Longer is better.")
    grading = ("--with", "grade:rubric.txt", "--judge_model", "served")
    with serving(lambda path, body, seen: said("Well: [[4]]")) as server:
        done = command(*WORDS, *grading, "--judge_endpoint", server.url, "--json")
    assert done.code == 0, done.err
    scored = json.loads(done.out)["after"]["scored"]["pairs.jsonl"]["greedy"]["grade"]
    assert (scored["scored"], scored["mean"]["value"]) == (5, 4)
    lone = command(*WORDS, "--judge_scale", "1", "5")
    assert "CP104 judge_scale would do nothing: no scorer is a grade." in " ".join(lone.err.split())
    assert "CP107 endpoint of the judge is missing" in command(*WORDS, *grading).err
