"""What is given becomes the option's type, the same from YAML and from a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from beartype.door import is_bearable
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_utils import IntervalStrategy

from counterpoint import ConfigError
from counterpoint.options.coerce import coerce, expected
from counterpoint.options.given import Scalar, Setting
from counterpoint.options.table import Option, options
from counterpoint.options.yaml_file import read_config

TABLE: list[tuple[Any, str, Any]] = [
    (float, "1e-6", 1e-6),  # a string to YAML 1.1
    (float, '"1e-6"', 1e-6),
    (float, "3", 3.0),
    (float, "-.5", -0.5),
    (int, "12", 12),
    (int, "1e3", 1000),
    (int, '"12"', 12),
    (int | None, "null", None),
    (int | None, "None", None),
    (int | None, "none", None),
    (int | None, "~", None),
    (int | None, "7", 7),
    (bool, "true", True),
    (bool, "yes", True),
    (bool, "off", False),
    (bool, "0", False),
    (bool | None, "null", None),
    (bool | None, "True", True),
    (str, "42", "42"),
    (str, "007", "007"),
    (str, "2026-11-22", "2026-11-22"),  # a date to YAML 1.1
    (str, "1:30", "1:30"),  # ninety to YAML 1.1
    (str, "null", "null"),
    (str | None, "null", None),
    (str | None, '"null"', "null"),
    (str | None, "none", "none"),
    (str | bool, "no", "no"),
    (str | bool, "true", True),
    (str | None | Literal[False], "false", False),
    (str | None | Literal[False], "a/b", "a/b"),
    (IntervalStrategy | str, "no", "no"),  # false to YAML 1.1
    (IntervalStrategy | str, "epoch", "epoch"),
    (list[str], "one", ["one"]),
    (list[str], "[one, two]", ["one", "two"]),
    (list[str], '["1", 2]', ["1", "2"]),
    (None | str | list[str], "all", "all"),
    (None | str | list[str], "[a, b]", ["a", "b"]),
    (dict[str, Any] | str | None, "{a: 1e-3, b: null, c: no}", {"a": 1e-3, "b": None, "c": "no"}),
    (dict[str, Any] | str | None, '{"a": [1, "2", true]}', {"a": [1, "2", True]}),
    (dict[str, Any] | str | None, "file.json", "file.json"),
    (list[str] | dict[str, str], "{a: x.jsonl}", {"a": "x.jsonl"}),
]

WRONG: list[tuple[Any, str]] = [
    (float, "fast"),
    (float, "nan"),
    (float, ".inf"),
    (float, "true"),
    (float, "null"),
    (float, "[1]"),
    (int, "1.5"),
    (int, "true"),
    (int, '""'),
    (bool, "maybe"),
    (bool, "2"),
    (bool, "null"),
    (str, "[a]"),
    (str, "{a: 1}"),
    (list[str], "{a: 1}"),
    (list[str], "[[a]]"),
    (dict[str, bool] | None, "word"),
]


def from_flag(text: str) -> Setting:
    return Setting("x", Scalar(text), "--x")


def from_file(folder: Path, text: str) -> Setting:
    path = folder / "run.yaml"
    path.write_text(f"x: {text}\n", encoding="utf-8")
    return read_config(str(path))[0]


@pytest.mark.parametrize(("hint", "text", "value"), TABLE)
def test_a_value_in_yaml_becomes_what_its_option_declares(
    tmp_path: Path, hint: Any, text: str, value: Any
) -> None:
    read = coerce(from_file(tmp_path, text), hint)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("hint", "text", "value"), [row for row in TABLE if not row[1].startswith('"')]
)
def test_a_flag_means_what_the_same_word_means_in_yaml(hint: Any, text: str, value: Any) -> None:
    read = coerce(from_flag(text), hint)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(("hint", "text"), WRONG)
def test_a_value_of_the_wrong_type_names_line_value_and_expectation(
    tmp_path: Path, hint: Any, text: str
) -> None:
    with pytest.raises(ConfigError, match=r"^CP103 run\.yaml line 1: x=.* should be ") as caught:
        coerce(from_file(tmp_path, text), hint)
    assert caught.value.message.endswith(f"should be {expected(hint)}.")


def test_a_word_outside_an_enumeration_is_answered_with_the_words_there_are() -> None:
    with pytest.raises(ConfigError, match=r'^CP102 --x="never" is not one of no, steps, epoch\.'):
        coerce(from_flag("never"), IntervalStrategy | str)


def test_a_long_enumeration_answers_with_the_nearest_words() -> None:
    optim = options()["optim"]
    with pytest.raises(ConfigError, match="adamw_torch") as caught:
        coerce(Setting("optim", Scalar("adam_torch"), "--optim"), optim.hint, optim.choices)
    assert len(caught.value.message) < 200


def test_the_value_of_a_secret_is_never_repeated() -> None:
    setting = Setting("hub_token", [Scalar("hf_secret")], "--hub_token")
    with pytest.raises(ConfigError) as caught:
        coerce(setting, str | None)
    assert "hf_secret" not in str(caught.value)


SAMPLES: dict[Any, str] = {
    list: "[a, b]",
    dict: '{"a": true}',
    bool: "true",
    int: "3",
    float: "0.25",
}


def sample(option: Option) -> str:
    if option.choices:
        return option.choices[-1]
    if "list[dict" in str(option.hint):
        return '[{"a": true}]'
    fits = [text for kind, text in SAMPLES.items() if kind.__name__ in str(option.hint)]
    return fits[0] if fits else "word"


# An object of accelerate's, which CPOConfig refuses in any form.
NOT_WRITTEN = {"parallelism_config"}


@pytest.mark.parametrize("name", sorted(set(options()) - NOT_WRITTEN))
def test_every_option_is_read_as_its_annotation_from_a_flag_and_from_a_line(
    tmp_path: Path, name: str
) -> None:
    option = options()[name]
    text = sample(option)
    path = tmp_path / "run.yaml"
    path.write_text(f"{name}: {text}\n", encoding="utf-8")
    by_line = coerce(read_config(str(path))[0], option.hint, option.choices)
    by_flag = coerce(Setting(name, Scalar(text), f"--{name}"), option.hint, option.choices)
    assert by_line == by_flag
    assert by_line in (text, [text]) or is_bearable(by_line, option.hint)
    assert by_line != option.default or option.choices or by_line is True


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=200)
def test_any_finite_number_survives_being_written(number: float) -> None:
    assert coerce(from_flag(repr(number)), float) == number


@given(st.integers())
@settings(max_examples=100)
def test_any_whole_number_survives_being_written(number: int) -> None:
    assert coerce(from_flag(str(number)), int | None) == number
