"""Which scorers are asked for, in words and in YAML, and what they weigh."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.errors import ConfigError
from counterpoint.scoring.asked import AskedScorer, asked_scorers


def asked(*words: str, **more: object) -> dict[str, AskedScorer]:
    return {one.name: one for one in asked_scorers(words, **more)}  # type: ignore[arg-type]


def from_file(tmp_path: Path, text: str, *words: str, **more: object) -> dict[str, AskedScorer]:
    path = tmp_path / "scorers.yaml"
    path.write_text(text, encoding="utf-8")
    return asked(*words, file=str(path), **more)


def test_a_word_is_a_name_a_kind_and_an_argument() -> None:
    found = asked(
        *("chrf", "fit=length:reference", "mine.own:politeness", "q=reward:org/model:x"),
        "p=command:python a.py --k=1",
        weights=["chrf=1"],
    )
    assert [(one.name, one.kind.name, one.argument) for one in found.values()] == [
        ("chrf", "chrf", ""),
        ("fit", "length", "reference"),
        ("politeness", "function", "mine.own:politeness"),
        ("q", "reward", "org/model:x"),
        ("p", "command", "python a.py --k=1"),
    ]


def test_one_scorer_has_weight_one_and_what_is_not_weighed_counts_nothing() -> None:
    assert asked("chrf")["chrf"].weight == 1
    assert asked("chrf", requirements=["lang=de"])["chrf"].weight == 1
    assert asked("chrf", "exact", requirements=["exact"])["chrf"].weight == 1
    found = asked("chrf", "exact", "length", weights=["chrf=1", "length=-1e-1"])
    assert [one.weight for one in found.values()] == [1, 0, -0.1]


@pytest.mark.parametrize(
    "word",
    ["mqm=column:mqm", "x=column:ter", "metricx=command:run it", "own:nll", "length:reference"],
)
def test_what_is_better_when_lower_is_told_its_sign(word: str) -> None:
    """`pairs` sees their sum alone, which is called score."""
    name = {"own:nll": "nll", "length:reference": "length"}.get(word, word.partition("=")[0])
    with pytest.raises(ConfigError, match=f"CP107 weight is missing: {name} is usually better"):
        asked(word)
    assert asked(word, weights=[f"{name}=-1"])[name].weight == -1
    assert asked(word, weights=[f"{name}=1"])[name].weight == 1
    assert asked(word, are_summed=False)[name].weight is None
    assert asked("chrf", word, requirements=[f"{name}<=5"])["chrf"].weight == 1


def test_a_requirement_compares_and_lang_is_a_scorer_of_its_own() -> None:
    found = asked(
        "chrf", "exact", requirements=["lang=zho_Hans", "exact", "chrf>=30.5"], weights=["chrf=1"]
    )
    assert (found["lang"].kind.name, found["lang"].argument) == ("language", "zho_Hans")
    meets = {name: one.require.is_met for name, one in found.items() if one.require}
    assert meets["lang"](1)
    assert not meets["lang"](0)
    assert meets["exact"](1)
    assert meets["chrf"](30.5)
    assert not meets["chrf"](30.4)


def test_a_file_gives_each_name_its_kind_its_options_weight_and_requirement(tmp_path: Path) -> None:
    found = from_file(
        tmp_path,
        "zh:\n  bleu:\n  tokenizer: zh\n  weight: 0.5\n"
        "comet:\n  command: python comet.py\n  timeout: 60\n  weight: 1\n"
        "lang:\n  language: de\n  require: true\n"
        "short:\n  length: tokens\n  require: <= 80\n"
        "exact: exact\n",
        "chrf",
    )
    assert list(found) == ["zh", "comet", "lang", "short", "exact", "chrf"]
    assert found["zh"].made_options().tokenizer == "zh"
    assert found["comet"].made_options().timeout == 60
    assert [one.weight for one in found.values()] == [0.5, 1, 0, 0, 0, 0]
    assert found["short"].require is not None
    assert found["short"].require.is_met(80)
    assert not found["short"].require.is_met(81)
    assert found["comet"].settings()["argument"] == "python comet.py"


@pytest.mark.parametrize(
    ("words", "more", "wrong"),
    [
        ([], {}, "CP107 scorers are missing"),
        (["chrff"], {}, "CP102 --with: 'chrff' is not one of chrf, bleu"),
        (["reward"], {}, "CP103 --with: reward needs hub id or folder"),
        (["exact:x"], {}, "CP103 --with: exact takes nothing"),
        (["blank=chrf"], {}, "CP104 --with: blank is the name of a veto"),
        (["chrf", "chrf"], {}, "CP104 two scorers are called chrf"),
        (["chrf", "bleu"], {}, "CP107 weight is missing: of chrf, bleu"),
        (["chrf"], {"weights": ["bleu=1"]}, "CP102 --weight bleu: there is no scorer"),
        (["chrf"], {"weights": ["chrf"]}, "CP103 --weight chrf should be NAME=NUMBER"),
        (["chrf"], {"weights": ["chrf=nan"]}, "CP103 --weight chrf"),
        (["chrf"], {"weights": ["chrf=0"]}, "CP103 every weight is 0"),
        (["chrf"], {"requirements": ["bleu>=1"]}, "CP102 --require bleu"),
        (["chrf"], {"requirements": ["chrf>=x"]}, "CP103 --require chrf"),
        (["chrf"], {"requirements": ["3=4"]}, "CP103 --require 3=4"),
        ([], {"requirements": ["lang=de"]}, "CP107 weight is missing"),
    ],
)
def test_what_cannot_be_meant_is_named(words: list[str], more: dict, wrong: str) -> None:
    with pytest.raises(ConfigError) as error:
        asked(*words, **more)
    assert wrong in str(error.value)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a:\n  weight: 1\n", "CP103 scorers.yaml line 1: a should have one of chrf"),
        ("a:\n  chrf:\n  bleu:\n", "it has chrf, bleu"),
        ("a:\n  bleu:\n  tokeniser: zh\n", "CP101 scorers.yaml line 1: a.tokeniser"),
        ("a:\n  bleu:\n  tokenizer: x\n", "CP102 scorers.yaml line 1: a.tokenizer"),
        ("a:\n  chrf:\n  require: often\n", "CP103 scorers.yaml line 1: a.require"),
        ("a:\n  reward: m\n  batch: 0\n", "CP103 batch=0"),
        ("a:\n  command: x\n  timeout: 0\n", "CP103 timeout=0"),
        ("a b:\n  chrf:\n", "CP103 scorers.yaml line 1: a b"),
        ("a: [chrf]\n", "CP103 scorers.yaml line 1: a should be a text"),
    ],
)
def test_a_file_is_refused_by_its_line(tmp_path: Path, text: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_file(tmp_path, text)
    assert wrong in str(error.value)


def test_flags_of_a_judge_count_before_its_file_and_reach_no_other_scorer(tmp_path: Path) -> None:
    text = "style:\n  judge: r.txt\n  model: a\n  temperature: 0.5\n  opponents: 4\nlong: length\n"
    flags = {"judge_endpoint": "http://x/v1", "judge_model": "b", "judge_opponents": None}
    found = from_file(tmp_path, text, "grade:r.txt", judging=flags, weights=["style=1"])
    style, grade = (found[name].made_options() for name in ("style", "grade"))
    assert (style.model, style.temperature, style.opponents) == ("b", 0.5, 4)
    assert (grade.model, grade.endpoint, grade.scale) == ("b", "http://x/v1", [1, 10])
    assert found["long"].options == {}


def test_a_flag_of_a_judge_without_one_does_nothing_and_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="CP104 judge_model would do nothing: no scorer is a judg"
    ):
        asked("chrf", judging={"judge_model": "m"})
    judging = {"judge_model": "m", "judge_endpoint": "http://x/v1", "judge_scale": [1.0, 5.0]}
    with pytest.raises(ConfigError, match=r"judge_scale would do nothing: no scorer is a grade\."):
        asked("judge:r.txt", judging=judging)
