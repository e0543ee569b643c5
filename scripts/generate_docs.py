"""Write docs/options.md and docs/errors.md from the code, or check that they are up to date.

    python scripts/generate_docs.py            write them
    python scripts/generate_docs.py --check    exit 1 where they differ from what it would write

Help texts live with their options and meanings with their codes; nothing is said here twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

from counterpoint import errors
from counterpoint.cli.help import kind, show, show_default, summary
from counterpoint.cli.options import COUNTERPOINT, GROUPS, RUN, TRANSFORMERS, Option, options
from counterpoint.config import REFUSED

DOCS = Path(__file__).parents[1] / "docs"
NOTE = "<!-- Written by scripts/generate_docs.py (make docs); edit the code instead. -->\n"

ERROR_CLASSES = {
    "1": (errors.ConfigError, "What was asked for"),
    "2": (errors.DataError, "The data"),
    "3": (errors.ModelError, "Model and tokenizer"),
    "4": (errors.NonFiniteError, "While training"),
    "5": (errors.SetupError, "The machine and its packages"),
}


def options_page() -> str:
    """docs/options.md."""
    parts = [
        NOTE,
        "# Options\n",
        "Every option is a line of YAML (`beta: 0.1`) and a flag (`--beta 0.1`) of "
        "`counterpoint train`; flags override the file. Those of the second and third table are "
        "fields of `CPOConfig` too. `null` stands for no value.\n",
    ]
    for group in (RUN, COUNTERPOINT):
        parts += [f"## {group}\n", f"{GROUPS[group]}\n", _table(_described(group)), ""]
    parts += ["## Refused\n", "Other values would mislead, or do nothing.\n", _refused(), ""]
    parts += [
        f"## {TRANSFORMERS}\n",
        f"{GROUPS[TRANSFORMERS]} The sentence is the first of transformers' own help.\n",
        _table(_described(TRANSFORMERS)),
    ]
    return "\n".join(parts)


def errors_page() -> str:
    """docs/errors.md."""
    parts = [
        NOTE,
        "# Error codes\n",
        "Every error that a user can cause carries a code, which never changes its meaning. The "
        "message says what was seen, what was expected and what to do. In Python they are "
        "`counterpoint.CounterpointError` and its subclasses, with `.code` and `.message`; the "
        "command prints one line and exits with 2.\n",
    ]
    for hundred, codes in groupby(errors.CODES, key=lambda code: code[2]):
        kind_of_error, title = ERROR_CLASSES[hundred]
        rows = [("Code", "Meaning"), *((f"`{code}`", errors.CODES[code]) for code in codes)]
        parts += [f"## {title}: `{kind_of_error.__name__}`\n", _table(rows), ""]
    return "\n".join(parts)


def _described(group: str) -> list[tuple[str, ...]]:
    rows = [("Option", "Type", "Default", "Meaning")]
    for option in options().values():
        if option.group == group and option.name not in REFUSED:
            meaning = summary(option)
            rows.append((f"`{option.name}`", _type(option), f"`{show_default(option)}`", meaning))
    return rows


def _type(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{word}`" for word in option.choices)
    return kind(option)


def _refused() -> str:
    rows = [("Option", "Passes", "Why any other value does not")]
    rows += [
        (f"`{name}`", f"`{show(passing)}`", f"{reason}.")
        for name, (passing, reason) in sorted(REFUSED.items())
    ]
    return _table(rows)


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PAGES: dict[str, Callable[[], str]] = {"options.md": options_page, "errors.md": errors_page}


def main() -> int:
    """Write or check the pages."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page().rstrip("\n") + "\n"
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"docs: {'out of date' if check else 'wrote'} {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
