"""What stands beside the ids of pairs in a file of a step: spans, references, gold completions.

Not here: the ids (``file``), and pictures (``pictures``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from counterpoint.records import TokenPair

Typed = Callable[[Tensor, torch.dtype, int | None], Tensor]
"""A flat tensor of a dtype and a length, or an error."""


def references_as_tensors(pairs: Sequence[TokenPair]) -> dict[str, Tensor]:
    """What the run's reference said of pairs, for a file; nothing where it has none.

    Args:
        pairs: of a step.
    """
    said = [pair.reference for pair in pairs if pair.reference is not None]
    if len(said) < len(pairs):
        return {}
    return {"reference": torch.tensor(said, dtype=torch.float64).flatten()}


def references_of(
    tensors: Mapping[str, Tensor], count: int, typed: Typed
) -> Sequence[tuple[float, float] | None]:
    """The same of each pair of a file; None where its run had no reference.

    Args:
        tensors: of the file.
        count: of its pairs.
        typed: refuses a tensor of another kind.
    """
    if "reference" not in tensors:
        return [None] * count
    flat = typed(tensors["reference"], torch.float64, 2 * count).tolist()
    return list(zip(flat[::2], flat[1::2], strict=True))


def golds_as_tensors(pairs: Sequence[TokenPair]) -> dict[str, Tensor]:
    """The gold completions of pairs, for a file; nothing where they have none.

    Args:
        pairs: of a step; where none has one, nothing is written.
    """
    if not any(pair.gold for pair in pairs):
        return {}
    parts = [part for pair in pairs for part in (pair.gold, pair.gold_given)]
    return {
        "gold": torch.tensor([n for part in parts for n in part], dtype=torch.long),
        "golds": torch.tensor([len(part) for part in parts], dtype=torch.long),
    }


def golds_of(
    tensors: Mapping[str, Tensor],
    prompts: Sequence[int],
    typed: Typed,
    check: Callable[[bool, str], None],
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of each pair of a file its gold completion and the spans of it without loss, if it has one.

    Args:
        tensors: of the file.
        prompts: tokens of each prompt.
        typed: refuses a tensor of another kind.
        check: refuses what does not hold.
    """
    if "golds" not in tensors:
        return [((), ())] * len(prompts)
    counts = typed(tensors["golds"], torch.long, 2 * len(prompts))
    check(bool((counts >= 0).all()), "its gold completions are shorter than nothing")
    parts = _parted(tensors["gold"], counts, typed)
    found = list(zip(parts[::2], parts[1::2], strict=True))
    for (ids, spans), prompt in zip(found, prompts, strict=True):
        check(not ids or len(ids) > (prompt == 0), "a gold completion has nothing to predict")
        check(min(ids, default=0) >= 0, "it has negative token ids")
        check(not spans or _fit(spans, len(ids)), "its spans are none")
    return found


def _parted(flat: Tensor, counts: Tensor, typed: Typed) -> list[tuple[int, ...]]:
    """Numbers that were written one list behind another, by how many each list has."""
    numbers = typed(flat, torch.long, int(counts.sum())).tolist()
    ends = counts.cumsum(0).tolist()
    return [tuple(numbers[a:b]) for a, b in pairwise([0, *ends])]


def _fit(spans: Sequence[int], size: int) -> bool:
    """Whether spans are in order and apart, and something is left that carries loss."""
    ordered = len(spans) % 2 == 0 and all(a < b for a, b in pairwise((-1, *spans, size + 1)))
    return ordered and sum(spans[1::2]) - sum(spans[::2]) < size


def spans_of(
    tensors: Mapping[str, Tensor],
    sizes: Sequence[int],
    typed: Typed,
    check: Callable[[bool, str], None],
) -> list[tuple[int, ...]]:
    """The spans without loss of each completion; files up to 4 have none.

    Args:
        tensors: of the file.
        sizes: tokens of each completion.
        typed: refuses a tensor of another kind.
        check: refuses what does not hold.
    """
    if "givens" not in tensors:
        return [()] * len(sizes)
    counts = typed(tensors["givens"], torch.long, len(sizes))
    check(bool((counts >= 0).all()), "its spans are fewer than none")
    found = _parted(tensors["given"], counts, typed)
    for spans, size in zip(found, sizes, strict=True):
        check(_fit(spans, size), "its spans are none")
    return found
