"""Samples stand beside what the same prompt gave before, and what is wrong with them is marked."""

from __future__ import annotations

import re
from pathlib import Path

from counterpoint.markup import join
from counterpoint.report.album import Album
from counterpoint.report.samples import LONGEST, MOST
from counterpoint.report.samples import before_and_after as with_album


def before_and_after(samples: list[dict[str, object]]) -> object:
    return with_album(samples, Album(Path()))


def sample(step: int, prompt: str = "Why?", **more: object) -> dict[str, object]:
    return {"step": step, "prompt": prompt, "completion": f"text {step}", "kind": "greedy", **more}


def test_the_first_and_the_last_text_stand_side_by_side() -> None:
    page = join(before_and_after([sample(20), sample(0), sample(10)]))
    assert page.index("text 0") < page.index("text 20")
    assert "text 10" not in page
    assert ("before training" in page, "after step 20" in page) == (True, True)


def test_prompts_of_two_sets_and_ways_of_writing_are_kept_apart() -> None:
    samples = [sample(0, set="eval_a"), sample(0, set="eval_b"), sample(0, kind="sampled")]
    page = join(before_and_after(samples))
    assert page.count("<article") == 3
    assert '<p class="hint">a</p>' in page


def test_what_is_wrong_with_a_text_is_marked() -> None:
    page = join(before_and_after([sample(0, ended=False, repetition=0.42, completion="")]))
    assert re.findall(r'<span class="flag">(.*?)</span>', page) == [
        ", 42% repetition",
        ", did not end",
        "(empty)",
    ]


def test_long_texts_and_many_prompts_leave_room_for_the_rest() -> None:
    page = join(before_and_after([sample(0, completion="x" * (LONGEST + 5))]))
    assert "(5 more characters)" in page
    page = join(before_and_after([sample(0, prompt=str(n)) for n in range(MOST + 7)]))
    assert page.count("<article") == MOST
    assert "7 more prompts are in samples.jsonl." in page
