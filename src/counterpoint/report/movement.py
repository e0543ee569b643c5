"""From looks at the parameters to a heat map of layer by step, and a table of groups.

Not here: looking at parameters (the trainer's monitor writes ``movement.jsonl``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from counterpoint.language import phrase
from counterpoint.monitor.groups import GROUPS, in_encoder
from counterpoint.report.charts import Cell, ChartLine, HeatMap, LineChart, number, thin
from counterpoint.report.palette import SERIES

COLUMNS, LEAST_COLUMNS, CELLS = 100, 20, 3000
"""Most columns of the heat map, and most cells, so that a page stays small; looks beyond are taken
together, by their means. ``LEAST_COLUMNS`` are there however many rows there are."""

UNIT = "norm of the change a step, over the norm of the weights"

TITLES: Mapping[str, str] = {
    "moved": "weights that moved",
    "moved_last": "since the look before",
    "update": "relative change a step",
    "stuck": "stuck by precision",
    "grad_norm": "gradient norm",
}
"""What the numbers of a look are called."""

_SHARES = frozenset({"moved", "moved_last", "stuck"})
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|block|h)\.(\d+)(?:\.|$)")

Look = Mapping[str, Any]


def heat_map(looks: Sequence[Look]) -> HeatMap | None:
    """How far each layer moved between one look and the next; None where nobody looked.

    Args:
        looks: lines of ``movement.jsonl``.
    """
    looks = _once(looks)
    rows = _rows(looks)
    if not rows:
        return None
    places = {row: place for place, row in enumerate(rows)}
    cells = [
        cell
        for bundle, left, right in _bundles(looks, max(LEAST_COLUMNS, CELLS // len(rows)))
        for row, tensors in _by_row(bundle).items()
        if (cell := _cell(places[row], left, right, tensors)) is not None
    ]
    if not cells:
        return None
    return HeatMap(
        key="movement",
        title=phrase("How far each layer moved"),
        unit=phrase(UNIT),
        rows=tuple(_spoken(row) for row in rows),
        cells=tuple(cells),
        note=phrase(
            "Mean over the layer's tensors that train, from look to look. Grey: nothing moved."
        ),
    )


def group_chart(looks: Sequence[Look]) -> LineChart | None:
    """The same of each group of parameters, as lines; None where nobody looked."""
    looks = _once(looks)
    lines = []
    for role, group in zip(SERIES * 2, _groups(looks), strict=False):
        points = [(look["step"], _of_group(look, group)) for look in looks]
        if any(not math.isnan(value) for _, value in points):
            steps, values = zip(*points, strict=True)
            marks = len(points) <= 40
            lines.append(
                thin(ChartLine(f"groups/{group}", phrase(group), role, steps, values, marks=marks))
            )
    if not lines:
        return None
    return LineChart(
        key="groups",
        title=phrase("Relative change by kind of parameter"),
        unit=phrase(UNIT),
        lines=tuple(lines),
        log=True,
        note=phrase("A gap: nothing moved."),
    )


def last_look(looks: Sequence[Look]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], int]:
    """The groups at the last look.

    Args:
        looks: lines of ``movement.jsonl``, at least one.

    Returns:
        Titles, rows of as many words, and the step.
    """
    looks = _once(looks)
    groups: Mapping[str, Any] = looks[-1].get("groups") or {}
    numbers = [
        key
        for key in dict.fromkeys([*TITLES, *(key for one in groups.values() for key in one)])
        if any(_is_number(one.get(key)) for one in groups.values())
    ]
    named = (phrase(TITLES.get(key, key.replace("_", " "))) for key in numbers)
    titles = (phrase("parameters"), *named)
    rows = tuple(
        (phrase(group), *(movement_in_words(key, groups[group].get(key)) for key in numbers))
        for group in _groups(looks)
        if group in groups
    )
    return titles, rows, int(looks[-1]["step"])


def movement_in_words(key: str, value: Any) -> str:
    """One number of a look: a share in percent, any other as it is."""
    if not _is_number(value):
        return "–"
    if key in _SHARES:
        if value in (0, 1):
            return f"{100 * value:.0f} %"
        # nearly all must not be shown as all
        return f"{min(max(100 * value, 0.01), 99.99):.2f} %"
    return number(value)


def _once(looks: Sequence[Look]) -> list[Look]:
    """Looks in the order of their steps, changes by the step; of two at one step the later."""
    by_step = {look["step"]: look for look in looks if isinstance(look.get("step"), int)}
    found: list[Look] = []
    for step in sorted(by_step):
        look = by_step[step]
        last = look.get("last", found[-1]["step"] if found else 0)
        # looks need not be evenly spaced
        parts = {part: _a_step(look.get(part), step - last) for part in ("groups", "tensors")}
        found.append({**look, "last": last, **parts})
    return found


def _a_step(numbers: Mapping[str, Look] | None, steps: int) -> dict[str, dict[str, Any]]:
    """Numbers of a look by their names, the change divided by the steps that it took."""
    return {
        name: {
            **one,
            "update": one["update"] / steps
            if steps > 0 and _is_number(one.get("update"))
            else None,
        }
        for name, one in (numbers or {}).items()
    }


def _row_of(name: str, group: str) -> str:
    found = _LAYER.search(name)
    if found is None:
        return group
    return f"encoder layer {found[1]}" if in_encoder(name) else f"layer {found[1]}"


def _spoken(row: str) -> str:
    """A row of the heat map in the language spoken."""
    found = re.fullmatch(r"(encoder layer|layer) (\d+)", row)
    if found is None:
        return phrase(row)
    layer = "layer {number}" if found[1] == "layer" else "encoder layer {number}"
    return phrase(layer, number=found[2])


def _rows(looks: Iterable[Look]) -> list[str]:
    """Embeddings on top, then the layers, an encoder's first, then the rest, the head last."""
    found = dict.fromkeys(row for look in looks for row in _by_row([look]))

    def place(row: str) -> tuple[int, int, str]:
        for rank, what in enumerate(("encoder layer ", "layer "), 1):
            if row.startswith(what):
                return rank, int(row.split()[-1]), row
        return (0 if row.endswith("embeddings") else 4 if row == "head" else 3), 0, row

    return sorted(found, key=place)


def _by_row(looks: Iterable[Look]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for look in looks:
        for name, tensor in look.get("tensors", {}).items():
            row = _row_of(name, str(tensor.get("group", "other")))
            found.setdefault(row, []).append(tensor)
    return found


def _bundles(looks: Sequence[Look], most: int) -> Iterator[tuple[Sequence[Look], float, float]]:
    """Looks next to each other, taken together for at most so many columns; and their steps."""
    width = math.ceil(len(looks) / min(most, COLUMNS))
    for first in range(0, len(looks), width):
        bundle = looks[first : first + width]
        left, right = bundle[0]["last"], bundle[-1]["step"]
        if right > left:  # a look before the first step stands for no step
            yield bundle, float(left), float(right)


def _cell(row: int, left: float, right: float, tensors: Sequence[Mapping[str, Any]]) -> Cell | None:
    means = {
        key: fmean(known)
        for key in TITLES
        if (known := [one[key] for one in tensors if _is_number(one.get(key))])
    }
    if "update" not in means:
        return None
    shown = {phrase(TITLES[key]): movement_in_words(key, value) for key, value in means.items()}
    return Cell(row, left, right, max(0.0, means["update"]), shown)


def _groups(looks: Iterable[Look]) -> list[str]:
    found = dict.fromkeys(group for look in looks for group in look.get("groups", {}))
    return sorted(found, key=lambda g: GROUPS.index(g) if g in GROUPS else len(GROUPS))


def _of_group(look: Look, group: str) -> float:
    """A group's relative change; NaN, a gap, where it is unknown or 0, which no logarithm has."""
    value = look.get("groups", {}).get(group, {}).get("update")
    return float(value) if _is_number(value) and value > 0 else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
