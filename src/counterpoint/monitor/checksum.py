"""A number for the bytes of a tensor, made on its device: whether anything in it has changed.

The bytes are read as whole numbers x[j, k], in rows. With odd multipliers a[j] and b[k], which
look random, the number is

    sum over j and k of a[j] x[j, k] b[k]   modulo 2^64.

A change of one word alters it for certain: an odd number times what is not 0 modulo 2^64 is not 0
either. A change of several words, a swap among them, leaves it as it was only if their differences
cancel: once in 2^32 or less often, for words of 32 bits. That is no protection against somebody
who wants to hide a change, and none is needed here.

Nothing is copied to the host, and no more than ``CHUNK`` words are widened at a time.

Not here: what a change means (``judge``).
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from counterpoint.rounding import CHUNK
from counterpoint.tensor_parts import on_its_mesh, parts_of

WIDTH = 4096
"""Words in a row."""

_WORDS = ((4, torch.int32), (2, torch.int16), (1, torch.int8))
"""Words of 64 bits would lose the top bit of two of them when they are added."""


def checksum(tensor: Tensor) -> Int[Tensor, ""]:
    """The number of a tensor's bytes.

    Args:
        tensor: of any dtype, shape and kind.

    Returns:
        A 64-bit number on the tensor's device; 0 for a tensor without entries.
    """
    first, *others = map(_of_bytes, parts_of(tensor))
    if not others:
        return first
    numbers = torch.stack([first, *(other.to(first.device) for other in others)])
    return (numbers * _odd(torch.arange(len(numbers), device=first.device))).sum()


def digest_of_weights(model: nn.Module) -> str:
    """Of a model's weights, frozen ones too; the same on every kind of device, and on any ranks.

    Args:
        model: unwrapped; where it is sharded, every rank must call it.
    """
    found = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.named_parameters()):
        gather: Any = getattr(on_its_mesh(weight), "full_tensor", None)  # of one in shards
        number = int(checksum(weight if gather is None else gather()))
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype} {number}\n".encode())
    return found.hexdigest()


def _of_bytes(tensor: Tensor) -> Int[Tensor, ""]:
    words = _as_words(tensor)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    whole = len(words) // WIDTH * WIDTH
    first = 0
    for part in torch.split(words[:whole].view(-1, WIDTH), CHUNK // WIDTH):
        total += _weighted(part, first)
        first += len(part)
    if whole < len(words):
        total += _weighted(words[whole:][None], first)
    return total


def _as_words(tensor: Tensor) -> Int[Tensor, " words"]:
    flat = tensor.detach().contiguous().view(-1)
    size = flat.numel() * flat.element_size()
    # a part of a larger tensor may begin anywhere
    start = flat.storage_offset() * flat.element_size()
    kind = next(dtype for width, dtype in _WORDS if size % width == 0 and start % width == 0)
    return flat.view(kind)


def _weighted(rows: Int[Tensor, "rows words"], first: int) -> Int[Tensor, ""]:
    of_words = _odd(torch.arange(rows.shape[1], device=rows.device))
    of_rows = _odd(torch.arange(first, first + rows.shape[0], device=rows.device) + WIDTH)
    return ((rows.long() * of_words).sum(1) * of_rows).sum()


def _odd(numbers: Int[Tensor, " numbers"]) -> Int[Tensor, " numbers"]:
    """Odd 64-bit numbers without a pattern, one for each: the mixing steps of SplitMix64."""
    mixed = (numbers + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        # the sign must not be drawn in from the left
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return mixed | 1
