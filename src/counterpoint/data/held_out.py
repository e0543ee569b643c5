"""A share of the rows held out to evaluate on, by prompt: no prompt has rows on both sides.

Prompts are taken in the order of their hashes, keyed with the seed, until the wanted rows are
held out. So which they are follows from the rows' content and the seed: not from the order of the
rows, the number of ranks, the tokenizer, or what is trained on.

1. Prompts are the same if their texts are, but for white space and Unicode's compatible forms, and
   if they show the same pictures; a text and a lone turn that says it are one prompt.
2. Rows that cannot be read stay where they are trained on, and are refused or dropped there.

Not here: what is done with either side (``cli``).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from counterpoint.console.phases import phase
from counterpoint.data import formats
from counterpoint.data.pictures import PictureCell
from counterpoint.data.undecoded import undecoded
from counterpoint.errors import DataError
from counterpoint.preference_row import Text

AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows of a data set on two sides.

    Args:
        trained: numbers of rows to train on, rising.
        held: numbers of rows to evaluate on, rising; no prompt of theirs is among the others.
        prompts: how many prompts there are.
        held_prompts: of these, how many are held out.
    """

    trained: npt.NDArray[np.int64]
    held: npt.NDArray[np.int64]
    prompts: int
    held_prompts: int

    def in_words(self, share: float, seed: int) -> str:
        """A line for the log."""
        rows = len(self.trained) + len(self.held)
        return (
            f"eval_share={share:g} holds out {len(self.held):,} of {rows:,} rows, "
            f"{self.held_prompts:,} of {self.prompts:,} prompts (seed {seed})"
        )


def hold_out(rows: Dataset, share: float, seed: int, *, name: str = "train") -> HeldOut:
    """Divide rows by their prompts.

    Args:
        rows: raw rows of any accepted shape.
        share: of the rows that are to be held out, above 0 and below 1. The number is met as
            nearly as whole prompts allow, and is never more unless a single prompt is.
        seed: of the choice.
        name: of the set, for messages.

    Raises:
        DataError: CP238 where there are fewer than two prompts.
    """
    by_prompt: dict[bytes, list[int]] = {}
    plain = undecoded(rows).with_format(None).select_columns(formats.columns_read(rows))
    with phase(f"holding out prompts of {name}", len(rows), "rows") as now:
        for first in range(0, len(plain), AT_ONCE):
            batch = plain[first : first + AT_ONCE]
            for number, cells in enumerate(zip(*batch.values(), strict=True), first):
                prompt = _prompt_of(dict(zip(batch, cells, strict=True)), number)
                if prompt is not None:
                    key = blake2b(prompt, digest_size=16, key=str(seed).encode()).digest()
                    by_prompt.setdefault(key, []).append(number)
            now.advance(min(AT_ONCE, len(plain) - first))
    if len(by_prompt) < 2:
        raise DataError(
            "CP238",
            f"{name}: eval_share holds out whole prompts, and its {len(rows):,} rows have "
            f"{len(by_prompt)} that can be read. Give an eval_dataset, or leave eval_share out.",
        )
    chosen = _chosen(by_prompt, share)
    held = np.array(sorted(n for key in chosen for n in by_prompt[key]), dtype=np.int64)
    trained = np.delete(np.arange(len(rows), dtype=np.int64), held)
    return HeldOut(trained, held, len(by_prompt), len(chosen))


def _chosen(by_prompt: Mapping[bytes, list[int]], share: float) -> list[bytes]:
    """Prompts in the order of their hashes, as long as they fit; the least one where none does."""
    total = sum(map(len, by_prompt.values()))
    wanted = min(max(1, round(share * total)), total - 1)
    chosen, held = [], 0
    for key in sorted(by_prompt):
        if held + len(by_prompt[key]) <= wanted:
            chosen.append(key)
            held += len(by_prompt[key])
    return chosen or [min(sorted(by_prompt), key=lambda key: len(by_prompt[key]))]


def _prompt_of(raw: dict[str, Any], number: int) -> bytes | None:
    """What a row asks, for comparison; None where it is no preference."""
    ways = [(raw, False), (raw, True)]  # pictures, which a model may see
    if isinstance(raw.get("source"), str):
        ways.append(({**raw, "prompt": raw["source"]}, False))  # as an encoder-decoder reads it
    for cells, seeing in ways:
        try:
            row, pictures = formats.read_unopened(cells, number, seeing)
        except DataError:
            continue
        break
    else:
        return None
    shown = [_said(row.prompt), *map(_shown, pictures)]
    return "\n".join(shown).encode("utf-8", "backslashreplace")


def _said(prompt: Text) -> str:
    if not isinstance(prompt, str):
        contents = [turn.get("content") for turn in prompt]
        prompt = "\n".join(_words(one) for one in contents)
    return " ".join(unicodedata.normalize("NFKC", prompt).split())


def _words(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _shown(picture: PictureCell) -> str:
    return blake2b(repr(picture.value).encode("utf-8", "backslashreplace")).hexdigest()
