"""MinHash estimates how alike texts are, and finds those that nearly are the same."""

from __future__ import annotations

import random

import numpy as np
import pytest

from counterpoint.doctor.near_duplicates import BINS, RUN, likeness, nearly_equal, signature

WORDS = [f"word{n}" for n in range(3000)]


def text(rng: random.Random, words: int = 60) -> str:
    """A text unlike any other."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def truly_alike(one: str, other: str) -> float:
    """Jaccard of the sets of runs, by definition."""
    sets = [{t[n : n + RUN] for n in range(len(t) - RUN + 1)} for t in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_a_text_is_like_itself_whatever_its_case_and_spacing() -> None:
    one = signature("The quick  brown fox\njumps over the lazy dog")
    assert likeness(one, signature("the QUICK brown fox jumps over the lazy dog ")) == 1.0


@pytest.mark.parametrize("words", [4, 20, 200])
def test_the_estimate_is_right_on_average_and_seldom_far_off(words: int) -> None:
    rng = random.Random(words)
    errors = []
    for _ in range(300):
        one = text(rng, words)
        kept = rng.randrange(len(one))
        other = one[:kept] + text(rng, words)
        cut = 2048
        errors.append(
            likeness(signature(one), signature(other)) - truly_alike(one[:cut], other[:cut])
        )
    # the mean of 300 errors, each of a standard deviation of at most 0.06
    assert abs(np.mean(errors)) < 5 * 0.06 / np.sqrt(300)
    assert np.std(errors) < 0.06


def test_near_copies_are_found_and_nothing_else() -> None:
    rng = random.Random(1)
    among = [text(rng) for _ in range(400)]
    copies = [among[n].replace("word1", "wort1", 1) for n in (3, 77, 399)]
    wanted = [text(rng), copies[0], text(rng), copies[1], copies[2]]
    found = nearly_equal([signature(t) for t in wanted], [signature(t) for t in among])
    assert found == [(1, 3), (3, 77), (4, 399)]


def test_of_several_like_texts_the_most_alike_is_named() -> None:
    rng = random.Random(2)
    one = text(rng)
    among = [one[:-30] + "x" * 30, one, one[:-10]]
    assert nearly_equal([signature(one)], [signature(t) for t in among]) == [(0, 1)]


def test_half_a_copy_is_none() -> None:
    rng = random.Random(3)
    one = text(rng)
    half = one[: len(one) // 2] + text(rng, 30)
    assert nearly_equal([signature(half)], [signature(one)]) == []


@pytest.mark.parametrize("text", ["", " ", "a", "国会", "\ud800", "a" * 100_000])
def test_any_text_has_a_signature(text: str) -> None:
    assert signature(text).shape == (BINS,)
    assert nearly_equal([signature(text)], [signature(text)]) == [(0, 0)]


def test_nothing_is_near_nothing() -> None:
    assert nearly_equal([], [signature("a")]) == nearly_equal([signature("a")], []) == []
