"""The pictures of a step that is kept: what the tower was given of each, once.

Kept are tensors, not files: the pixels as the processor had made them, bit for bit. So a step is
done again without the data, which may have moved, and without the processor, whose next release
may round otherwise. Where a pixel is what is not finite, the file shows it.

Not here: the rest of the file (``file``), how a model is given pictures (``forward.seeing``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.errors import ModelError, kind_and_line
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.forward.shown import LOOK, RowsShown
from counterpoint.forward.sights import sight_of
from counterpoint.model_seams import class_of
from counterpoint.picture import MOST_PIXELS_EVER, SeenPicture
from counterpoint.records import PairBatch, TokenPair

MOST_BYTES = 2**30
"""Bytes of the pictures in a file; a page of 7,000 patches takes 32 MiB in float32."""

MOST_JOINED = 2**30
"""Numbers that the pictures of a file may become where they are laid side by side."""

MOST_AXES = 6
"""Dimensions of what the tower is given of a picture."""

TILES = 5
"""Dimensions of pixels that are tiles in a batch of one: [1, tiles, channels, height, width]."""

_ENTRIES = {"digest", "tokens", "patches", "inputs"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEYWORD = re.compile(r"[a-z][a-z0-9_]{0,63}")

_OF_TEXT = {"input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels"}
"""Keywords of a model that no picture gives."""

Pairs = Sequence[TokenPair]
Checking = Callable[[bool, str], None]
"""Raises for what does not hold, with what is wrong."""


def bytes_of_pictures(pairs: Pairs) -> int:
    """Bytes that the pictures of some pairs take in a file, each once.

    Args:
        pairs: with their pictures decoded.
    """
    return sum(tensor.nbytes for one in _distinct(pairs) for tensor in one.inputs.values())


def pictures_as_tensors(pairs: Pairs) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The pictures of pairs for a file: tensors by name, and what is no tensor.

    Args:
        pairs: in the order of the file.
    """
    pictures = _distinct(pairs)
    number = {one.digest: place for place, one in enumerate(pictures)}
    shown = [number[one.digest] for pair in pairs for one in pair.seen]
    tensors = {
        "shown": torch.tensor(shown, dtype=torch.long),
        "shows": torch.tensor([len(pair.seen) for pair in pairs], dtype=torch.long),
    }
    for place, one in enumerate(pictures):
        for name, tensor in one.inputs.items():
            tensors[_named(place, name)] = tensor.detach().cpu().contiguous()
    described = [
        {
            "digest": one.digest,
            "tokens": one.tokens,
            "patches": one.patches,
            "inputs": sorted(one.inputs),
        }
        for one in pictures
    ]
    return tensors, described


def pairs_with_pictures(
    pairs: Pairs, tensors: Mapping[str, Tensor], described: Any, check: Checking
) -> list[TokenPair]:
    """Pairs of a file with their pictures; nothing of it is trusted.

    Args:
        pairs: in the order of the file.
        tensors: of the file.
        described: the pictures' part of what is no tensor.
        check: is told what must hold.
    """
    check(isinstance(described, list), "its pictures are no list")
    pictures = [_read(number, one, tensors, check) for number, one in enumerate(described)]
    _check_together(pictures, check)
    shown, shows = tensors["shown"], tensors["shows"]
    whole = all(one.dtype == torch.long and one.dim() == 1 for one in (shown, shows))
    check(whole and len(shows) == len(pairs), "it does not say what its pairs show")
    check(bool((shows >= 0).all()) and int(shows.sum()) == len(shown), "its pairs show others")
    numbers = shown.tolist()
    check(all(0 <= one < len(pictures) for one in numbers), "a pair shows what is not there")
    ends = [0, *shows.cumsum(0).tolist()]
    found = []
    for pair, (start, end) in zip(pairs, pairwise(ends), strict=True):
        seen = tuple(pictures[number] for number in numbers[start:end])
        fits = sum(one.tokens for one in seen) <= len(pair.prompt)
        check(fits, "a prompt is shorter than its pictures")
        found.append(replace(pair, seen=seen))
    return found


def check_seen_by(model: nn.Module, pairs: Pairs) -> None:
    """Refuse a model that does not see the pictures of some pairs as the run's own did.

    Args:
        model: plain or PEFT-wrapped.
        pairs: of a step that is done again.

    Raises:
        ModelError: CP334.
    """
    shown = [pair for pair in pairs if pair.seen]
    config: Any = model.config
    if not shown:
        return
    if sight_of(config) is None:
        raise ModelError(
            "CP334",
            f"the step's pairs show pictures, and {class_of(model).__name__} sees none. Name the "
            "model of the run with --model.",
        )
    for pair in shown:
        wanted = list(pair.prompt).count(config.image_token_id)
        given = sum(one.tokens for one in pair.seen)
        if wanted != given:
            raise ModelError(
                "CP334",
                f"row {pair.row}: its pictures take {given} tokens, and for this "
                f"{class_of(model).__name__} {wanted} tokens of the prompt stand for pictures. "
                "Name the model of the run with --model.",
            )


@contextmanager
def pictures_fit(micro_batches: Sequence[Pairs]) -> Iterator[None]:
    """Within it, what a model makes of pictures that are another's fails with a code.

    Args:
        micro_batches: of the step that is done again.

    Raises:
        ModelError: CP334.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if not any(pair.seen for batch in micro_batches for pair in batch):
            raise
        raise ModelError(
            "CP334",
            f"the model cannot be given the pictures of the step: {kind_and_line(error)}. Name the "
            "model of the run with --model.",
        ) from error


def picture_of(output: Tensor, batch: PairBatch) -> tuple[TokenPair, int] | None:
    """The picture of the first entry that is not finite in what a layer of the tower gives.

    Args:
        output: of the layer; not finite somewhere.
        batch: that the model was given.

    Returns:
        The first pair that shows it, and which of its pictures it is; None where the output has no
        entries of each picture.
    """
    look = LAYOUTS[batch.layout].inputs(batch).get(LOOK)
    if not isinstance(look, RowsShown):
        return None
    places = [(pair, number) for pair in batch.pairs for number in range(len(pair.seen))]
    if look.repeated:
        places *= 2
    else:  # each once, where it is shown first
        of = {pair.seen[number].digest: (pair, number) for pair, number in reversed(places)}
        places = [of[one.digest] for one in _distinct(batch.pairs)]
    sizes = [_entries(pair.seen[number]) for pair, number in places]
    whole = sum(sizes)
    if output.dim() > 2 and len(output) == 1 != whole:
        output = output[0]
    if output.dim() < 2 or any(len(output) * size % whole for size in sizes):
        return None
    bad = ~torch.isfinite(output.flatten(1)).all(-1)
    first, end = int(bad.nonzero()[0]), 0
    for place, size in zip(places, sizes, strict=True):
        end += size
        if first * whole < end * len(output):
            return place
    return None


def _entries(seen: SeenPicture) -> int:
    """How many entries its pixels have where they stand beside those of others."""
    shape = seen.inputs["pixel_values"].shape
    return int(shape[1] if len(shape) == TILES else shape[0])


def _distinct(pairs: Pairs) -> list[SeenPicture]:
    return list({one.digest: one for pair in pairs for one in pair.seen}.values())


def _named(number: int, name: str) -> str:
    return f"picture/{number}/{name}"


def _read(number: int, told: Any, tensors: Mapping[str, Tensor], check: Checking) -> SeenPicture:
    check(isinstance(told, dict) and set(told) == _ENTRIES, f"picture {number} has other entries")
    digest, names = told["digest"], told["inputs"]
    check(isinstance(digest, str) and bool(_DIGEST.fullmatch(digest)), "a digest is none")
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    check(texts and len(set(names)) == len(names), "a picture is given by no names")
    named = all(_KEYWORD.fullmatch(name) and name not in _OF_TEXT for name in names)
    check(named and "pixel_values" in names, "a picture is given by other names")
    inputs = {name: tensors[_named(number, name)] for name in names}
    for tensor in inputs.values():
        _check_tensor(tensor, check)
    for name in ("tokens", "patches"):
        counted = type(told[name]) is int and 0 < told[name] <= inputs["pixel_values"].numel()
        check(counted, f"{name} of a picture is {told[name]!r}")
    return SeenPicture(digest, told["tokens"], told["patches"], inputs)


def _check_tensor(tensor: Tensor, check: Checking) -> None:
    check(1 <= tensor.dim() <= MOST_AXES and tensor.numel() > 0, "a picture has no pixels")
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        return
    check(tensor.dtype in (torch.long, torch.int32, torch.uint8), "a picture's sizes are none")
    # sizes and grids, of which a model makes as many places as their product says
    places = tensor.double().prod(-1)
    least, most = float(tensor.min()), float(places.max())
    # -1: Gemma 4 fills up with it where a picture has fewer patches
    check(least >= -1 and most <= MOST_PIXELS_EVER, "a picture is larger than any that is opened")


def _check_together(pictures: Sequence[SeenPicture], check: Checking) -> None:
    """What is laid side by side has the same axes, and does not grow beyond all bounds."""
    for name in pictures[0].inputs if pictures else ():
        alike = all(one.inputs.keys() == pictures[0].inputs.keys() for one in pictures)
        check(alike, "its pictures are given by different names")
        shapes = [one.inputs[name].shape for one in pictures]
        check(len({len(shape) for shape in shapes}) == 1, "its pictures have different axes")
        numbers = len(shapes)
        for sizes in zip(*shapes, strict=True):
            numbers *= max(sizes)
        check(numbers <= MOST_JOINED, "its pictures do not fit beside each other")
