"""Configurations of any kind: refused with a code, in one line, and nothing is written."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterpoint.options.table import options
from tests.cli.conftest import Command, command, pattern, tree, workshop
from tests.reliability.trials import trials

__all__ = ["command", "pattern", "workshop"]

AT_ONCE = 10

WORDS = [
    "", "null", "~", "true", "no", "0", "1", "-1", "1.5", "1e-6", "1e308", "1e999", ".nan", "-.inf",
    "9" * 400, "nan", "inf", "simpo", "adamw_torch", "epoch", "steps", "a b", "[]", "{}", "[1, 2]",
    "{a: 1}", "[[]]", "{a: {b: [c]}}", "!!set {}", "!x y", "&a 1", "*a", "- 1", "|\n  text", "'",
    '"', "\\", "\t", "%", "@", "`", ": ", "國", "\U0001f600", "2026-01-01", "0x1f", "0o7", "1_000",
    "../x", "/proc/self/mem", "a" * 300, "[" * 30, "cpu", "cuda:9", "auto", "bfloat16", "{", "]",
]  # fmt: skip

BYTES = [b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\x85", b"\x1b[2J", b"\r", b"\xe2\x80\xa8"]


def configuration(rng: random.Random) -> bytes:
    """A run's file whose data set is not there, with options and values of any kind."""
    lines = ["model: model", "dataset: gone.jsonl", "output_dir: out"]
    names = sorted(options())
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 8])):
        name = rng.choice(names)
        if rng.random() < 0.1:
            name = rng.choice([name[:-1], name.upper(), f"{name}s", rng.choice(WORDS) or "x"])
        lines.append(f"{name}: {rng.choice(WORDS)}")
    if rng.random() < 0.2:
        lines = rng.sample(lines, len(lines))
    if rng.random() < 0.1:
        lines = [f"{rng.choice([' ', '- ', '? ', '# '])}{line}" for line in lines]
    text = "\n".join(lines).encode()
    if rng.random() < 0.15:
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice(BYTES) + text[place:]
    if rng.random() < 0.05:
        text = text[: rng.randrange(len(text))]
    return text


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What options put into the environment stays in the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("seed", range(trials(10, 100)))
def test_each_of_a_thousand_configurations_is_one_coded_line_and_leaves_nothing(
    workshop: Path, command: Command, seed: int
) -> None:
    rng = random.Random(seed)
    file = workshop / "run.yaml"
    for _ in range(AT_ONCE):
        text = configuration(rng)
        file.write_bytes(text)
        before = tree(workshop)
        answer = command("train", file.name, "--doctor", "off")
        assert answer.code == 2, (text, answer)
        assert answer.err.startswith("counterpoint: CP"), (text, answer)
        assert answer.err.count("\n") == 1, (text, answer)
        assert len(answer.err) < 3000, (text, answer)
        assert answer.out == "", (text, answer)
        assert tree(workshop) == before, (text, answer)


@pytest.mark.parametrize("seed", range(trials(5, 50)))
def test_flags_of_any_kind_are_refused_alike(workshop: Path, command: Command, seed: int) -> None:
    rng = random.Random(seed)
    names = sorted({*options()} - {"debug"})  # which asks for a stack trace
    for _ in range(AT_ONCE):
        words: list[Any] = ["--model", "model", "--dataset", "gone.jsonl", "--output_dir", "out"]
        for _ in range(rng.randint(1, 3)):
            flag = f"--{rng.choice(['', '', '', 'no_', '-'])}{rng.choice(names)}"
            word = rng.choice(WORDS)
            words += rng.choice(
                [[flag], [flag, word], [f"{flag}={word}"], [flag, json.dumps(word)]]
            )
        before = tree(workshop)
        answer = command("train", *words, "--doctor", "off")
        assert answer.code == 2, (words, answer)
        assert answer.err.startswith("counterpoint: CP"), (words, answer)
        assert answer.err.count("\n") == 1, (words, answer)
        assert tree(workshop) == before, (words, answer)
