"""Rows that repeat, contradict or circle each other, from hashes of their parts.

Not here: hashing texts (``survey``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

Keys = tuple[int, int, int]
"""Hashes of a row's prompt, chosen and rejected text."""


@dataclass(slots=True)
class Consistency:
    """Numbers of rows, in order.

    Args:
        duplicates: rows that were there before.
        originals: of each duplicate the first row that is like it.
        prompts: rows whose prompt was there before.
        contradictions: rows whose opposite was there before.
        circles: for each circle of three or more completions, one of its rows.
    """

    duplicates: list[int] = field(default_factory=list)
    originals: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    contradictions: list[int] = field(default_factory=list)
    circles: list[int] = field(default_factory=list)


def consistency(rows: Sequence[tuple[int, Keys]]) -> Consistency:
    """Compare the rows of a data set with each other.

    Args:
        rows: each row's number and the hashes of its parts, in order.
    """
    found = Consistency()
    by_prompt: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    seen: dict[Keys, int] = {}
    for number, keys in rows:
        prompt, chosen, rejected = keys
        if prompt in by_prompt:
            found.prompts.append(number)
        if keys in seen:
            found.duplicates.append(number)
            found.originals.append(seen[keys])
        elif (prompt, rejected, chosen) in seen:
            found.contradictions.append(number)
        else:
            by_prompt[prompt].append((chosen, rejected, number))
        seen.setdefault(keys, number)
    for edges in by_prompt.values():
        if len(edges) > 2:
            found.circles += _circles(edges)
    return found


def _circles(edges: Sequence[tuple[int, int, int]]) -> list[int]:
    """A row of each group of completions that are all preferred to each other, round and round.

    What is preferred to nothing, or to what nothing is preferred, is in no circle; taking such
    completions away until there are none leaves the circles and what lies between them.
    """
    left = list(edges)
    while True:
        better, worse = {edge[0] for edge in left}, {edge[1] for edge in left}
        both = better & worse
        kept = [edge for edge in left if edge[0] in both and edge[1] in both]
        if len(kept) == len(left):
            break
        left = kept
    return _one_each(left)


def _one_each(edges: Sequence[tuple[int, int, int]]) -> list[int]:
    """One row of each connected group."""
    group: dict[int, int] = {}

    def root(node: int) -> int:
        while group.setdefault(node, node) != node:
            node = group[node]
        return node

    for one, other, _ in edges:
        group[root(one)] = root(other)
    return sorted({root(edge[0]): edge[2] for edge in reversed(edges)}.values())
