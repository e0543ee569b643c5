"""A layout is known by its name in one file; everyone else asks its row of the table."""

from __future__ import annotations

import ast
from pathlib import Path

from counterpoint.forward.layouts import LAYOUTS

SOURCE = Path(__file__).parents[2] / "src" / "counterpoint"
TABLES = [SOURCE / "forward" / name for name in ("layouts.py", "encoded.py")]


def test_no_file_but_the_table_spells_the_name_of_a_layout() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in SOURCE.rglob("*.py")
        if path not in TABLES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in LAYOUTS
    ]
    assert found == []
