"""What a sweep varies is read from words, and what cannot be meant is refused by name."""

from __future__ import annotations

import pytest

from counterpoint.errors import ConfigError
from counterpoint.sweep.space import Axis, in_short, points, read_axes


def test_lists_and_ranges_are_read() -> None:
    axes = read_axes(["beta=0.1,0.5", "learning-rate=1e-6..1e-4:log", "lora_r=4..64"])
    assert axes == (
        Axis("beta", ("0.1", "0.5")),
        Axis("learning_rate", (), 1e-6, 1e-4, log=True),
        Axis("lora_r", (), 4.0, 64.0, whole=True),
    )
    assert [axis.ends() for axis in axes] == [("0.1", "0.5"), ("1e-06", "0.0001"), ("4", "64")]
    assert points(axes) is None


def test_a_path_with_two_dots_is_no_range() -> None:
    [axis] = read_axes(["dataset=../a.jsonl,../b.jsonl"])
    assert axis.values == ("../a.jsonl", "../b.jsonl")


def test_of_lists_every_combination_is_a_point() -> None:
    found = points(read_axes(["beta=1,2", "loss_type=simpo,sigmoid,hinge"]))
    assert found is not None
    assert len(found) == 6
    assert found[1] == {"beta": "1", "loss_type": "sigmoid"}


def test_numbers_are_shown_short_and_kept_whole() -> None:
    value = 3.1415926535897e-05
    axis = Axis("learning_rate", (), 1e-6, 1e-4)
    assert float(axis.word(value)) == value
    assert in_short({"learning_rate": axis.word(value)}) == "learning_rate=3.142e-05"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], "CP107", "--over is missing"),
        (["beta"], "CP103", "should be NAME=VALUE"),
        (["beta=0.1,"], "CP103", "empty"),
        (["beta=0.1,0.1"], "CP103", "twice"),
        (["betta=0.1,0.5"], "CP101", "beta"),
        (["beta=0.1", "beta=0.5"], "CP104", "twice"),
        (["beta=0.5..0.1"], "CP103", "from a smaller"),
        (["beta=0..1:log"], "CP103", "above 0"),
        (["lora_r=1.5..4"], "CP103", "whole numbers"),
        (["loss_type=1..4"], "CP103", "takes no numbers"),
        (["eval_share=0.1,0.2"], "CP104", "cannot be varied"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], code: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_axes(words)
    assert caught.value.code == code
