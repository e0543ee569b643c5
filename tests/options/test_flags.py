"""Flags of the small commands are read as those of ``train`` are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import flags_help


@dataclass
class Few:
    """One flag of each kind."""

    min_gap: float = field(default=0.5, metadata={"help": "A gap."})
    turn: bool | None = field(default=None, metadata={"help": "Turn it."})
    keep: list[str] = field(default_factory=list, metadata={"help": "Columns."})
    how: str = field(default="so", metadata={"help": "How.", "choices": ("so", "thus")})


FEW = Command("few", "", Few)
BESIDE_TRAIN = Command("few", "", Few, of_train=True)


@pytest.mark.parametrize(
    ("line", "values", "others"),
    [
        ("--min_gap 2 a b", {"min_gap": 2.0}, ["a", "b"]),
        ("--min-gap=-1e-3 a", {"min_gap": -0.001}, ["a"]),
        ("--turn a", {"turn": True}, ["a"]),
        ("--turn no a", {"turn": False}, ["a"]),
        ("--no-turn a", {"turn": False}, ["a"]),
        ("a --keep x y --how thus", {"keep": ["x", "y"], "how": "thus"}, ["a"]),
        ("--keep=x", {"keep": ["x"]}, []),
        ("--how so --how thus", {"how": "thus"}, []),
        ("--other 3 --min_gap 1", {"min_gap": 1.0}, ["--other", "3"]),
    ],
)
def test_flags_are_taken_and_other_words_left(
    line: str, values: dict[str, Any], others: list[str]
) -> None:
    assert BESIDE_TRAIN.take(line.split()) == (values, others)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--min_gap", "CP103"),
        ("--keep --turn", "CP103"),
        ("--min_gap wide", "CP103"),
        ("--no_turn=yes", "CP103"),
        ("--how", "CP103"),
        ("--how other", "CP102"),
    ],
)
def test_a_value_that_a_flag_does_not_take_is_refused(line: str, code: str) -> None:
    with pytest.raises(ConfigError) as raised:
        FEW.take(line.split())
    assert raised.value.code == code


def test_a_flag_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^CP101 --min-gaps is no option; did you mean --min_g"):
        FEW.take(["a", "--min-gaps=3"])
    with pytest.raises(ConfigError, match=r"-x is no option; see counterpoint few --help\.$"):
        FEW.take(["-x"])
    assert FEW.take(["a", "b"]) == ({}, ["a", "b"])


def test_the_help_is_read_off_the_fields() -> None:
    assert flags_help(FEW.flags(), width=60).splitlines() == [
        "  --min_gap  (number)",
        "      A gap. Default: 0.5.",
        "  --turn  (true or false)",
        "      Turn it.",
        "  --keep  (list of texts)",
        "      Columns.",
        "  --how  (word)",
        "      How. One of so, thus. Default: so.",
    ]
