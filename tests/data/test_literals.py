"""What ``repr`` writes is read back, in linear time; all else is refused, and never evaluated."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.literals import (
    MOST_CHARACTERS,
    MOST_NESTED,
    LiteralError,
    read_literal,
    read_value,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)


@given(VALUES)
def test_what_repr_wrote_is_read_back(value: Any) -> None:
    assert read_literal(repr(value)) == value


@given(st.lists(VALUES, max_size=3))
def test_json_and_literals_say_the_same(value: Any) -> None:
    assert read_value(repr(value)) == read_value(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[('a', 'b'), ('c',)]", [["a", "b"], ["c"]]),
        ("[1, -2.5, 1e3, .5,]", [1, -2.5, 1000.0, 0.5]),
        (r"['\x41\u00e9\U0001F600\t\'\\']", ["A\u00e9\U0001f600\t'\\"]),
        ("\n [ {'a' : None , \"b\":True} ]\n", [{"a": None, "b": True}]),
        ("[]", []),
        ("()", []),
        ("{}", {}),
    ],
)
def test_other_spellings_are_read(text: str, value: Any) -> None:
    assert read_value(text) == value


REFUSED = {
    "no bracket": ("'a'", "does not begin with a bracket"),
    "blank": (" ", "does not begin with a bracket"),
    "numpy's array": ("[{'a': 1}\n {'a': 2}]", "no comma between two entries"),
    "two strings": ("['a' 'b']", "no comma between two entries"),
    "cut off": ("[{'role': 'user', 'content': 'Hi", "cut off"),
    "cut off after a comma": ("['a',", "cut off"),
    "followed": ("['a'] + ['b']", "something follows"),
    "a call": ("[print('a')]", "'print' is no value"),
    "a name": ("[nan]", "'nan' is no value"),
    "an array's name": ("[array(['a'], dtype=object)]", "'array' is no value"),
    "a sum": ("[1+1]", "is no value"),
    "bytes": ("[b'a']", "'b' is no value"),
    "a set": ("{'a'}", "no text followed by a colon"),
    "a number as a field": ("{1: 'a'}", "no text followed by a colon"),
    "fields without a comma": ("{'a': 1 'b': 2}", "no comma between two fields"),
    "a value in parentheses": ("('a')", "parentheses"),
    "the wrong end": ("['a')", "no comma between two entries"),
    "a comma alone": ("[,]", "stands where a value should"),
    "an escape of no character": (r"['\UFFFFFFFF']", "is no character"),
    "an unknown escape": (r"['\d']", "is no character"),
    "an octal escape": (r"['\012']", "is no character"),
    "a number of thousands of digits": (f"['a', {'1' * 5000}]", "number is too long"),
}


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_with_what_was_seen(text: str, said: str) -> None:
    with pytest.raises(LiteralError, match=said):
        read_value(text)


def test_numpy_s_arrays_are_known_for_what_they_are() -> None:
    for name, (text, _) in REFUSED.items():
        with pytest.raises(LiteralError) as caught:
            read_value(text)
        assert caught.value.unjoined == (name in ("numpy's array", "two strings", "the wrong end"))


def test_depth_and_length_are_bounded() -> None:
    assert read_literal("[" * MOST_NESTED + "]" * MOST_NESTED)
    for text in ("[" * 70 + "'a'" + "]" * 70, "[" * 100_000, "[{'a': " * 100_000):
        with pytest.raises(LiteralError, match="nested more than 64 deep"):
            read_literal(text)
    with pytest.raises(LiteralError, match="nested more than 64 deep"):
        read_value("[" * 100_000)
    with pytest.raises(LiteralError, match="longer than 4,194,304 characters"):
        read_value("['" + "a" * MOST_CHARACTERS + "']")


HOSTILE = {
    "a long text": lambda n: "['" + "a" * n + "']",
    "escapes": lambda n: "['" + "\\n" * (n // 2) + "']",
    "an open quote": lambda n: "['" + "\\\\" * (n // 2),
    "spaces": lambda n: "[1" + " " * n + "]",
    "spaces and no end": lambda n: "[1" + " " * n,
    "a long word": lambda n: "[" + "1" * n + "]",
    "a word of points": lambda n: "[" + "1.e" * (n // 3) + "]",
    "entries": lambda n: "[" + "1," * (n // 2) + "]",
    "quotes": lambda n: "[" + "''" * (n // 2) + "]",
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_take_time_as_their_length(make: Any) -> None:
    text = make(200_000)
    begun = time.perf_counter()
    with contextlib.suppress(LiteralError):
        read_literal(text)
    assert time.perf_counter() - begun < 10  # tenths of a second; a quadratic reader takes hours


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_take_memory_as_their_length(make: Any) -> None:
    text = make(10_000)
    tracemalloc.start()
    with contextlib.suppress(LiteralError):
        read_literal(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(text)
