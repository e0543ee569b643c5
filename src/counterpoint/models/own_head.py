"""A head that is a weight of its own in a model's files, and the embedding in its configuration.

transformers ties every T5, whatever ``config.json`` says. The files of T5 1.1, FLAN-T5, mT5 and
UMT5 hold a head, and a model that is loaded from them has it. One that is made from its
configuration alone does not: for mT5-base that would be a third of its weights too few.

Not here: loading (``loading``), rows for new tokens (``vocabulary``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from counterpoint.models.described import header_of

COMPARED = 16
"""Rows by which two weights of a file are told apart."""


def part_head(model: Any, folder: Path | None, described: Mapping[str, Any]) -> bool:
    """Give a model without data a head of its own, if its files have one.

    Args:
        model: of transformers, on ``meta``; changed in place.
        folder: of its files; None where they are not on this machine.
        described: its ``config.json``, as it is written there.

    Returns:
        Whether the head was its embedding, and no longer is.
    """
    read, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head is read or head.weight is not read.weight:
        return False
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    # without files: a word that transformers passes over in every T5, and writes anew in its own
    said = described.get("tie_word_embeddings") is False
    own = _hold_both(model, head, files) if files else said
    if own:
        trains = head.weight.requires_grad
        head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=trains)
    return own


def _hold_both(model: Any, head: nn.Module, files: list[Path]) -> bool:
    """Whether files hold head and embedding, and not the same twice."""
    places = {name: path for path in files for name in header_of(path) or ()}
    every = dict(model.named_modules(remove_duplicate=False))
    tied = [f"{name}.weight" for name, one in every.items() if _is_weight_of(head, one)]
    heads = [name for name in tied if every[name.removesuffix(".weight")] is head]
    written = [name for name in heads if name in places]
    others = [name for name in tied if name not in heads and name in places]
    if not written or not others:
        return False
    try:
        one, other = (_first_rows(places[name], name) for name in (written[0], others[0]))
    except (OSError, SafetensorError, ValueError):
        return False  # whoever loads them says what is wrong
    return not torch.equal(one, other)


def _is_weight_of(head: Any, module: Any) -> bool:
    return getattr(module, "weight", None) is head.weight


def _first_rows(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        rows: torch.Tensor = file.get_slice(name)[:COMPARED]
    return rows
