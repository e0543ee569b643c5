"""``counterpoint diff``: what training, or whatever else, has done to saved weights.

Not here: the comparison (``monitor.difference``), which files are read (``monitor.weight_files``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoint.console.manners import importing, put, terminal_width
from counterpoint.console.phases import phase
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from counterpoint.monitor.difference import Difference

USAGE = """\
usage: counterpoint diff BEFORE AFTER [--all] [--json]

Compares two saved models or adapters, every weight of them: what share has
moved, the norm of the change over the norm of the weights, and the largest
change; by group (embeddings, attention, mlp, norms, head, ...) and
by tensor, most changed first. Folders as save_pretrained writes them, shards
and PEFT adapters too, or single safetensors files. No model is built.

examples:
  counterpoint diff counterpoint-quickstart/base counterpoint-quickstart/cpo
  counterpoint diff runs/first/checkpoint-100 runs/first/checkpoint-200 --all

exit codes:
  0    compared; something differs
  1    compared; the two are the same: whatever came between has done nothing
  2    it cannot be done: a side is no model

options:
"""

SHOWN = 10
"""Names in a list, unless all are asked for."""


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """What the command takes beside two paths; every field's help is its meaning."""

    all: bool = option(False, f"Every tensor, not {SHOWN} of them.")
    json: bool = option(False, "All that was found, as JSON.")


COMMAND = Command("diff", USAGE, DiffOptions)


def diff(words: list[str]) -> int:
    """Compare the two models that a command line names, and show how they differ.

    Args:
        words: what follows ``counterpoint diff``.

    Returns:
        0 where something differs, 1 where nothing does.

    Raises:
        CounterpointError: CP1xx for words that mean nothing, CP301 for a side that is no model.
    """
    options, paths = COMMAND.read(words)
    if len(paths) != 2:
        raise ConfigError(
            "CP107" if len(paths) < 2 else "CP103",
            f"diff compares two models, not {len(paths)}: counterpoint diff BEFORE AFTER.",
        )
    # slow to import, and so after what the words alone can tell
    with importing():
        from counterpoint.monitor.difference import compare_weights
        from counterpoint.monitor.weight_files import WeightFiles

    before, after = (Path(path).expanduser() for path in paths)
    reading = phase("comparing the weights")
    with reading, WeightFiles(before) as one, WeightFiles(after) as other:
        found = compare_weights(one, other)
    if options.json:
        content = {"before": str(before), "after": str(after), **found.as_dict()}
        text = strict_json(content, indent=2)
    else:
        text = "\n".join(lines(found, terminal_width(), shown=None if options.all else SHOWN))
    put(text)
    return 1 if found.same else 0


def lines(found: Difference, width: int, *, shown: int | None = SHOWN) -> Iterator[str]:
    """The difference for people.

    Args:
        found: what was compared.
        width: columns of the terminal, at least 60.
        shown: most names of a list; None shows all.
    """
    if found.tensors:
        yield from _groups(found)
        yield ""
        yield from _tensors(found, width, shown)
    dtypes = {n: one.dtypes for n, one in found.tensors.items() if one.dtypes}
    yield from _list("another dtype", [f"{n}  {a} -> {b}" for n, (a, b) in dtypes.items()], shown)
    shapes = [f"{n}  {_shape(a)} -> {_shape(b)}" for n, (a, b) in found.shapes.items()]
    yield from _list("another shape, not compared", shapes, shown)
    for title, entries in (("only before", found.removed), ("only after", found.added)):
        named = [f"{name}  {one.dtype} {_shape(one.shape)}" for name, one in entries.items()]
        yield from _list(title, named, shown)
    yield f"\n{found.in_words()}"


def _groups(found: Difference) -> Iterator[str]:
    space = max(12, *(len(group) + 1 for group in found.groups()))
    counted = f"{'tensors':>9}{'weights':>17}"
    yield f"{'group':<{space}}{counted}{'moved':>10}{'update':>11}{'largest':>11}"
    for group, one in found.groups().items():
        counts = f"{one['tensors']:>9,}{one['weights']:>17,}"
        yield f"{group:<{space}}{counts}{_numbers(one['moved'], one['update'], one['largest'])}"


def _tensors(found: Difference, width: int, shown: int | None) -> Iterator[str]:
    def size(name: str) -> float:
        return found.tensors[name].update

    names = sorted(found.tensors, key=size, reverse=True)[:shown]
    space = width - 32
    title = "tensor" if shown is None else f"tensor ({len(names)} of {len(found.tensors):,})"
    yield f"{title:<{space}}{'moved':>10}{'update':>11}{'largest':>11}"
    for name in names:
        one = found.tensors[name]
        # the end of a name tells more than its beginning
        kept = name if len(name) < space else f"...{name[4 - space :]}"
        yield f"{kept:<{space}}{_numbers(one.moved, one.update, one.largest)}"


def _numbers(moved: float, *others: float | None) -> str:
    from counterpoint.monitor.difference import percent

    shown = ["-" if other is None else f"{other:.3g}" for other in others]
    return f"{percent(moved):>10}" + "".join(f"{other:>11}" for other in shown)


def _list(title: str, named: Sequence[str], shown: int | None) -> Iterator[str]:
    if not named:
        return
    yield ""
    yield f"{title}: {len(named):,}"
    yield from (f"  {line}" for line in named[:shown])
    if shown is not None and len(named) > shown:
        yield f"  and {len(named) - shown:,} more; --all names them"


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "one number"
