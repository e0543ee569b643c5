"""Measures of texts on texts made for them."""

from __future__ import annotations

import pytest

from counterpoint import SetupError
from counterpoint.evaluation import references
from counterpoint.evaluation.bootstrap import Resampling
from counterpoint.evaluation.references import reference_scores
from counterpoint.evaluation.table import shown_texts, text_comparison_table
from counterpoint.evaluation.texts import (
    Completion,
    exact_match,
    repetition,
    statistics,
    text_differences,
    variety,
)


def completion(ids=(), text="", *, reference=None, ended=True, prompt="p") -> Completion:
    return Completion("greedy", prompt, text, reference, tuple(ids), ended)


def test_one_token_over_and_over_is_all_repetition_but_the_first():
    """103 tokens have 100 4-grams, of which one is new."""
    assert repetition([7] * 103) == pytest.approx(0.99)


def test_a_phrase_said_again_is_counted_by_its_grams():
    phrase = [1, 2, 3, 4, 5]
    # 7 grams over 10 tokens; the last two repeat the first two
    assert repetition(phrase * 2) == pytest.approx(2 / 7)
    assert repetition(phrase) == 0
    assert repetition([1, 1, 1]) == 0


def test_variety_is_over_all_texts_together():
    assert variety([[1, 2], [1, 2]], 1) == 0.5
    assert variety([[1, 2], [3, 4]], 2) == 1
    assert variety([[1]], 2) == 0


def test_white_space_around_a_text_is_no_mistake_and_letters_are():
    assert exact_match(" Berlin\n", "Berlin")
    assert not exact_match("berlin", "Berlin")


def test_statistics_are_means_over_completions():
    found = statistics(
        [
            completion([1, 2, 3], "a b c", reference="a b c"),
            completion([7] * 7, "x", reference="y", ended=False),
            completion([], " "),
        ]
    )
    assert found["length"] == pytest.approx(10 / 3)
    assert found["ended"] == pytest.approx(2 / 3)
    assert found["empty"] == pytest.approx(1 / 3)
    assert found["repetition"] == pytest.approx((3 / 4) / 3)
    assert found["exact_match"] == 0.5  # of the two with a reference
    assert found["distinct_1"] == pytest.approx(4 / 10)


def test_without_references_there_is_no_exact_match():
    assert "exact_match" not in statistics([completion([1], "a")])


def test_an_entry_has_the_form_of_samples_jsonl():
    assert completion([7] * 5, "xxxxx", reference="y", ended=False).as_entry() == {
        "kind": "greedy",
        "prompt": "p",
        "completion": "xxxxx",
        "reference": "y",
        "tokens": 5,
        "ended": False,
        "repetition": 0.5,
    }


def test_a_text_equal_to_its_reference_scores_a_hundred():
    texts = ["Das ist ein kleiner Test.", "Und noch ein zweiter Satz."]
    found = reference_scores(texts, texts)
    assert found["bleu"].value == pytest.approx(100)
    assert found["chrf"].value == pytest.approx(100)
    assert "version:" in found["bleu"].signature
    assert reference_scores(["ganz anderes"], ["x y z"], ["chrf"])["chrf"].value < 20


def test_bleu_does_not_judge_where_it_would_fail_the_references_themselves():
    found = reference_scores(["fünfzig", "ein Wort mehr"], ["fünfzig", "ein Wort mehr"])
    assert set(found) == {"chrf"}
    assert set(reference_scores(["a"], ["b b b b"])) == {"bleu", "chrf"}


def test_chinese_needs_its_own_words():
    text, other = ["国会由众议院和参议院组成"], ["国会由参议院和众议院组成"]
    assert reference_scores(text, other, ["bleu"]) == {}  # one long word
    assert reference_scores(text, other, ["bleu"], "zh")["bleu"].value > 20


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(references, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"CP502 .*-m pip install 'sacrebleu>=2\.4'"):
        reference_scores(["a"], ["a"])


def test_changes_of_texts_have_intervals_where_they_are_means():
    before = [completion([1], "a", reference="b", prompt=str(n)) for n in range(6)]
    after = [completion([1, 2], "b", reference="b", prompt=str(n)) for n in range(6)]
    found = text_differences(before, after, Resampling(resamples=50))
    assert (found["exact_match"].value, found["exact_match"].high) == (1, 1)
    assert (found["length"].low, found["length"].high) == (1, 1)
    table = text_comparison_table("t", statistics(before), statistics(after), found, 0.95)
    assert max(map(len, table)) <= 80


def test_texts_are_shown_on_a_line_each_whatever_they_hold():
    shown = shown_texts({"after": [completion([1], "two\nlines\x1b[31m " + "长" * 200)]})
    assert all(line.isprintable() and len(line) <= 80 for line in shown)
