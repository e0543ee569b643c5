"""The files that ARCHITECTURE.md asks to be read first: short, and what they say they are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "counterpoint"

MOST_LINES = 750
"""Of the reading path together."""

MOST_OF_A_FILE = 450
MOST_OF_THE_TRAINER = 3_400
MOST_OF_A_TRAINER_FILE = 400


def path() -> list[str]:
    """The reading path, as the first lines of ARCHITECTURE.md give it."""
    opening = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("\n## ")[0]
    return re.findall(r"\]\(src/counterpoint/([a-z_/]+\.py)\)", opening)


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def test_the_reading_path_is_read_in_an_hour() -> None:
    assert path() == [
        "records.py",
        "losses/preference.py",
        "step/loss.py",
        "forward/pair_forward.py",
        "step/runner.py",
    ]
    assert sum(lines(SRC / file) for file in path()) <= MOST_LINES


def test_it_is_the_path_of_a_step() -> None:
    """Each file calls, or is called by, the next one: nothing is left out between them."""
    runner = (SRC / "step" / "runner.py").read_text(encoding="utf-8")
    reader = (SRC / "step" / "reader.py").read_text(encoding="utf-8")
    loss = (SRC / "step" / "loss.py").read_text(encoding="utf-8")
    assert "class StepRunner(PairReader)" in runner
    assert "pair_forward(" in reader
    assert "self.loss(output, batch" in runner
    assert "self.objective(output.logps, batch.margin)" in loss


def test_a_step_asks_nobody_whether_there_are_constraints() -> None:
    """A run without any has an empty set, and another loss where there are some."""
    for file in ("step/loss.py", "step/runner.py"):
        tree = ast.parse((SRC / file).read_text(encoding="utf-8"))
        asked = [
            ast.unparse(node.test)
            for node in ast.walk(tree)
            if isinstance(node, ast.If | ast.IfExp) and "constraints" in ast.unparse(node.test)
        ]
        assert asked == [], file


@pytest.mark.parametrize(
    "file", sorted(SRC.rglob("*.py")), ids=lambda file: file.relative_to(SRC).as_posix()
)
def test_no_file_is_too_long_to_be_read_at_once(file: Path) -> None:
    assert lines(file) <= MOST_OF_A_FILE


def test_the_trainer_is_transformers_side_alone() -> None:
    files = {file.name: lines(file) for file in (SRC / "trainer").glob("*.py")}
    assert sum(files.values()) <= MOST_OF_THE_TRAINER
    assert max(files.values()) <= MOST_OF_A_TRAINER_FILE
