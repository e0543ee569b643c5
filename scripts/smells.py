"""Print files past 400 lines and functions past 60, longest first: places to look, not faults."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

LONG_FILE, LONG_FUNCTION = 400, 60
ROOT = Path(__file__).parents[1]


def python_files() -> list[Path]:
    """The Python files of the repository, those not committed yet included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def find(path: Path) -> list[tuple[int, str]]:
    """Lengths and names of what is long in a file."""
    text = path.read_text(encoding="utf-8")
    name, lines = path.relative_to(ROOT), text.count("\n")
    found = [(lines, f"{name}")] if lines > LONG_FILE else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONG_FUNCTION:
                found.append((length, f"{name}:{node.lineno} {node.name}"))
    return found


def main() -> None:
    """Print them."""
    for length, name in sorted(
        (item for path in python_files() for item in find(path)), reverse=True
    ):
        print(f"{length:6d} lines  {name}")


if __name__ == "__main__":
    main()
