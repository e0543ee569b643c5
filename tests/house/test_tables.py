"""Losses and kinds of constraints have one table each: nothing else in the package names one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint import Constraint
from counterpoint.constraints import KINDS, UPDATES
from counterpoint.losses.constrained import ConstraintMath, constraint_math
from counterpoint.losses.multiplier import rule_of
from counterpoint.objectives import LOSSES

SOURCE = Path(__file__).parents[2] / "src" / "counterpoint"
TABLES = ("objectives.py", "constraints.py")
MODULES = [path for path in sorted(SOURCE.rglob("*.py")) if path.name not in TABLES]
NAMES = {*LOSSES, *KINDS}

OTHER_THINGS = {"length", "custom"}
"""Kinds whose names are words for other things too: of these, only comparisons of kinds count."""

SAID = re.compile(r"(?:loss_type|kind)\W{1,3}(\w+)")
"""A name in a line of configuration that is printed, or in a sentence."""

EXAMPLES = {
    "config/options.py": {"bc"},
    "cli/main.py": {"simpo"},
    "cli/sweep.py": {"simpo"},
    "migrate/of_llama_factory.py": {"dpo"},  # a stage of that tool, whatever its loss is
}
"""Texts of help that show how an option is given, by their files."""


def texts(node: ast.AST) -> Iterator[str]:
    """The texts of code, without those that stand alone, as docstrings do."""
    alone = {id(one.value) for one in ast.walk(node) if isinstance(one, ast.Expr)}
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str) and id(one) not in alone:
            yield one.value


def kinds_compared(tree: ast.AST) -> Iterator[str]:
    """The texts that something called a kind is compared with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and "kind" in ast.unparse(node.left):
            yield from (text for side in node.comparators for text in texts(side))


def named_in(source: str) -> list[str]:
    """The losses and kinds of constraints that some code names."""
    tree = ast.parse(source)
    found = [text for text in texts(tree) if text in NAMES - OTHER_THINGS]
    found += [name for text in texts(tree) for name in SAID.findall(text) if name in NAMES]
    found += [text for text in kinds_compared(tree) if text in OTHER_THINGS]
    return sorted(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_loss_or_a_kind_of_constraint_is_named_in_its_table_alone(path: Path) -> None:
    shown = EXAMPLES.get(path.relative_to(SOURCE).as_posix(), set())
    assert set(named_in(path.read_text(encoding="utf-8"))) - shown == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('fine = "length"', []),
        ('"""loss_type: alphapo"""', []),
        ('a.loss_type == "simpo"', ["simpo"]),
        ('a.kind == "length"', ["length"]),
        ('a["kind"] in ("custom", "bc")', ["bc", "custom"]),
        ('fix = f"loss_type: alphapo, {a}"', ["alphapo"]),
        ("say(\"loss_type='repo'\")", ["repo"]),
    ],
)
def test_the_search_finds_what_it_is_after(source: str, names: list[str]) -> None:
    assert named_in(source) == names


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_constraint_names_its_arithmetic(kind: str) -> None:
    asked = Constraint(
        kind, bound=1.0, numerator=print if "numerator" in KINDS[kind].own_options else None
    )
    assert isinstance(constraint_math(asked), ConstraintMath)


@pytest.mark.parametrize("update", UPDATES)
def test_every_update_names_its_rule(update: str) -> None:
    gains = dict.fromkeys(("rate", "proportional", "derivative", "nu", "smoothing"), 0.5)
    assert type(rule_of(update, **gains, cap=1.0, steps=2)).__name__ == UPDATES[update]
