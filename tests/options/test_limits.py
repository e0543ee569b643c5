"""What several commands refuse alike."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from counterpoint.errors import ConfigError
from counterpoint.options.chat_options import ChatOptions
from counterpoint.options.evaluate_options import EvaluateOptions
from counterpoint.options.limits import refuse_below, refuse_unless_given
from counterpoint.options.sample_options import SampleOptions
from counterpoint.scoring.scorer_options import JudgeOptions

DRAWING = (ChatOptions, EvaluateOptions, SampleOptions)


@pytest.mark.parametrize("kind", [*DRAWING, JudgeOptions])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_no_command_takes_what_is_no_temperature(kind, value):
    with pytest.raises(ConfigError, match=r"CP103 temperature=.* should be at least 0"):
        kind(temperature=value)


@pytest.mark.parametrize("kind", DRAWING)
@pytest.mark.parametrize("value", [0.0, 1.1, float("nan")])
def test_no_command_takes_what_is_no_share(kind, value):
    with pytest.raises(ConfigError, match=r"CP103 top_p=.* should be in \(0, 1\]"):
        kind(temperature=1.0, top_p=value)


def test_a_number_that_is_too_small_is_named_and_none_is_none():
    refuse_below(SimpleNamespace(one=None, two=1), one=1, two=1)
    with pytest.raises(ConfigError, match=r"CP103 two=0 should be a whole number, at least 1\."):
        refuse_below(SimpleNamespace(one=3, two=0), one=1, two=1)


def test_all_that_is_missing_is_named():
    refuse_unless_given({"a": ["x"], "b": "y"})
    with pytest.raises(ConfigError, match=r"CP107 b is missing in its file\."):
        refuse_unless_given({"a": "x", "b": None}, " in its file")
    with pytest.raises(ConfigError, match=r"CP107 a and b are missing\."):
        refuse_unless_given({"a": [], "b": ""})
