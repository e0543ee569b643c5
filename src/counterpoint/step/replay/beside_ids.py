"""What stands beside the ids of pairs in a file of a step: spans without loss, references.

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
    flat = typed(tensors["given"], torch.long, int(counts.sum())).tolist()
    ends = counts.cumsum(0).tolist()
    found = [tuple(flat[a:b]) for a, b in pairwise([0, *ends])]
    for spans, size in zip(found, sizes, strict=True):
        # in order and apart, and something is left that carries loss
        fits = len(spans) % 2 == 0 and all(a < b for a, b in pairwise((-1, *spans, size + 1)))
        check(fits and sum(spans[1::2]) - sum(spans[::2]) < size, "its spans are none")
    return found
