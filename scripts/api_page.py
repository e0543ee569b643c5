"""docs/api.md: what can be imported, from its own docstrings, as plain markdown.

Plain, so that the page can be read in the repository too, and the site needs none of the libraries
that are documented.

Not here: the options of ``CPOConfig``, which have a page of their own (``generate_docs``).
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import counterpoint
from counterpoint import CounterpointError, doctor, runlog

INTRODUCTION = (
    "# Python\n",
    "What can be imported, and what it takes. Names come from `counterpoint` unless another module "
    "is given; they load when they are first used, so that `import counterpoint` is quick. The "
    "[guide](guide.md) uses most of them.\n",
)
SECTIONS = re.compile(r"^(Args|Returns|Raises):\n((?: {4}.*\n|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^(\w[\w, ]*): (.*(?:\n .*)*)", re.MULTILINE)
TITLES = {"Args": "Takes", "Returns": "Returns", "Raises": "Raises"}


def api_page() -> str:
    """docs/api.md."""
    errors = [name for name in counterpoint.__all__ if name.endswith("Error")]
    # a class above the ones that inherit from it
    errors.sort(key=lambda name: (getattr(counterpoint, name) is not CounterpointError, name))
    parts = list(INTRODUCTION)
    for title, module, names in (
        ("Training", counterpoint, ("CPOTrainer", "CPOConfig")),
        ("Making pairs", counterpoint, ("pairs_from_scored", "PairRules")),
        ("Before a run", doctor, ("examine", "Report", "Finding")),
        ("After a run", runlog, ("read_run", "Run")),
        ("In a notebook", counterpoint, ("show",)),
        ("Errors", counterpoint, errors),
    ):
        parts.append(f"## {title}\n")
        for name in names:
            parts += _described(getattr(module, name), name, module.__name__)
    return "\n".join(parts)


def _described(thing: Any, name: str, module: str) -> Iterator[str]:
    yield f"### `{name}`\n"
    signature = _signature(thing, name)
    yield f"```python\nfrom {module} import {name}\n{signature}```\n"
    text = f"{inspect.getdoc(thing)}\n"
    yield _markdown(SECTIONS.split(text)[0])
    if thing is counterpoint.PairRules:  # each of its fields says itself what it means
        helps = (f"- `{field.name}`: {field.metadata['help']}" for field in fields(thing))
        yield "**Takes**\n\n" + "\n".join(helps) + "\n"
    for section, body in SECTIONS.findall(text):
        received = section == "Args" and not signature and not issubclass(thing, Exception)
        yield f"**{'Holds' if received else TITLES[section]}**\n"
        yield (_markdown if section == "Returns" else _entries)(textwrap.dedent(body))


def _signature(thing: Any, name: str) -> str:
    """The call, a line a parameter; "" for what is caught or received and not called."""
    if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, BaseException)):
        return ""
    if thing is counterpoint.CPOConfig:
        return f"\n{name}(output_dir: str | None = None, **options)\n"
    if is_dataclass(thing) and thing is not counterpoint.PairRules:
        return ""
    parameters = [str(one) for one in _parameters(thing)]
    return f"\n{name}(\n" + "".join(f"    {one},\n" for one in parameters) + ")\n"


def _parameters(thing: Any) -> Iterator[inspect.Parameter | str]:
    """Of a call, without quotes around types; a bare star before those that go by name."""
    by_name = False
    for one in inspect.signature(thing).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not by_name:
            by_name = True
            yield "*"
        shown = re.sub(r": '([^']*)'", r": \1", str(one))
        yield re.sub(r"<factory>", "[]", shown)


def _entries(body: str) -> str:
    entries = [f"- `{name}`: {_joined(text)}" for name, text in ENTRY.findall(body)]
    return "\n".join(entries) + "\n"


def _markdown(text: str) -> str:
    paragraphs = [_joined(part) for part in text.strip().split("\n\n")]
    return "\n\n".join(paragraphs) + "\n"


def _joined(text: str) -> str:
    """Lines of a docstring as one of markdown: its code, and links to the pages it names."""
    line = " ".join(text.split()).replace("``", "`")
    return re.sub(r"(?<!`)docs/([\w.-]+\.md)", r"[\1](\1)", line)
