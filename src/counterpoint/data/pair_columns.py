"""The columns of a prepared data set, and a row of them as a ``TokenPair``.

1. A set with pictures has a column more. It says where each lies: in a file, or in a field of the
   raw row, whose columns then stand beside (``RAW``), in the memory or the file that they are
   mapped from.

Not here: how they are made (``encode``, ``prepare``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from datasets import Dataset

from counterpoint.data.marks import cell_at, column_of
from counterpoint.data.pictures import PictureCell, PictureRules, picture_source
from counterpoint.picture import Picture
from counterpoint.records import TokenPair

GIVEN_COLUMNS = ("chosen_given", "rejected_given")
"""Spans of completions that carry no loss, as ``TokenPair`` holds them."""

GOLD_IDS = ("gold_ids", "gold_given")
"""A third completion, and its spans without loss."""

PAIR_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "weight", "margin", "row")
"""The columns of every prepared data set that are trained on; beside them may stand
``GIVEN_COLUMNS``, where a completion has several turns, and ``GOLD_IDS``, where the loss reads a
third completion."""

AT_ONCE = 10_000
"""Pairs of which a column is looked at together."""

PROMPT_OF_TRL = "prompt_input_ids"
"""TRL's name for ``prompt_ids``, the one column of its prepared sets with the same content; beside
ours, in the same memory."""


PICTURES_OF_PAIR = "pictures"
"""The column of a set with pictures: of each pair those of its prompt, as ``encode.PICTURE``."""

RAW = "raw:"
"""What begins the names of columns of raw rows."""


def has_pair_columns(dataset: Any) -> bool:
    """Whether a data set has the columns of a prepared one; a stream need not know its columns.

    Args:
        dataset: of any kind.
    """
    names = getattr(dataset, "column_names", None)
    # a dict of sets has a dict of names
    return isinstance(names, list) and set(PAIR_COLUMNS) <= set(names)


def trained_columns(pairs: Any) -> Any:
    """The columns that are trained on alone: reading others would take time for nothing.

    Args:
        pairs: a prepared ``Dataset``; anything else is returned as it is.
    """
    if not isinstance(pairs, Dataset):
        return pairs
    beside = (PICTURES_OF_PAIR, *GIVEN_COLUMNS, *GOLD_IDS)
    more = [n for n in pairs.column_names if n in beside or n.startswith(RAW)]
    return pairs.select_columns([*PAIR_COLUMNS, *more])


def to_pair(record: Mapping[str, Any], start_tokens: int = 0) -> TokenPair:
    """A prepared row as the noun that batches are made of; ``start_tokens`` as its encoder says."""
    given = record["prompt_ids"]
    end = len(given) - start_tokens
    return TokenPair(
        prompt=given[:end] if start_tokens else given,
        start=given[end:] if start_tokens else (),
        chosen=record["chosen_ids"],
        rejected=record["rejected_ids"],
        row=record["row"],
        weight=record["weight"],
        margin=record["margin"],
        chosen_given=tuple(record.get("chosen_given") or ()),
        rejected_given=tuple(record.get("rejected_given") or ()),
        gold=record.get("gold_ids") or (),
        gold_given=tuple(record.get("gold_given") or ()),
        pictures=tuple(_picture(one, record) for one in record.get(PICTURES_OF_PAIR) or ()),
    )


def with_raw_row(record: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """A prepared row with the raw one beside it, in which its pictures may lie."""
    return {**record, **{f"{RAW}{name}": cell for name, cell in raw.items()}}


def _picture(kept: Mapping[str, Any], record: Mapping[str, Any]) -> Picture:
    source = kept["path"] or kept["bytes"]
    field, row = kept["field"], record["row"]
    if source is None:
        raw = {name.removeprefix(RAW): v for name, v in record.items() if name.startswith(RAW)}
        source = picture_source(PictureCell(field, cell_at(raw, field, row)), row, PictureRules())
    return Picture(source, kept["width"], kept["height"], kept["digest"], row, field)


def with_raw_pictures(pairs: Dataset, raw: Dataset) -> Dataset:
    """Prepared pairs, beside them the columns of raw rows in which their pictures lie.

    Args:
        pairs: one row for each of ``raw``, with a column ``PICTURES_OF_PAIR``.
        raw: the raw rows.

    Returns:
        Without that column where no pair has a picture.
    """
    kept = pairs.data.table.column(PICTURES_OF_PAIR)
    pictures = pc.list_flatten(kept)
    if not len(pictures):
        return pairs.remove_columns(PICTURES_OF_PAIR)
    paths, fields = (pc.struct_field(pictures, name) for name in ("path", "field"))
    inside = pc.unique(pc.filter(fields, pc.is_null(paths))).to_pylist()
    holding = {column_of(field, raw.column_names) for field in inside}
    columns = [name for name in raw.column_names if name in holding]
    if not columns:
        return pairs
    beside = raw.select_columns(columns).rename_columns({n: f"{RAW}{n}" for n in columns})
    both: Dataset = datasets.concatenate_datasets([pairs, beside], axis=1)
    return both


def paired(encoded: Dataset, raw: Dataset) -> Dataset:
    """The columns that are trained on, of rows of which ``raw`` has one each.

    Args:
        encoded: with the columns of ``encode.COLUMNS``.
        raw: the raw rows.
    """
    beside = (*GIVEN_COLUMNS, *GOLD_IDS, PICTURES_OF_PAIR)
    pairs = with_given(encoded.select_columns([*PAIR_COLUMNS, *beside]))
    return with_trl_s_prompt(with_raw_pictures(pairs, raw))


def with_given(pairs: Dataset) -> Dataset:
    """Prepared pairs, without the columns that only some runs have and no pair of this one needs.

    Args:
        pairs: with ``GIVEN_COLUMNS`` and ``GOLD_IDS``.
    """
    table = pairs.data.table
    for names in (GIVEN_COLUMNS, GOLD_IDS):
        if not any(len(pc.list_flatten(table.column(name))) for name in names):
            pairs = pairs.remove_columns([*names])
    return pairs


def pictures_per_pair(pairs: Dataset) -> npt.NDArray[np.int64]:
    """How many pictures each prepared pair shows, ``[pairs]``; the set is read a part at a time.

    Args:
        pairs: with or without a column ``PICTURES_OF_PAIR``.
    """
    if PICTURES_OF_PAIR not in pairs.column_names:
        return np.zeros(len(pairs), dtype=np.int64)
    tables = pairs.select_columns([PICTURES_OF_PAIR]).with_format("arrow").iter(AT_ONCE)
    lengths = [pc.list_value_length(table.column(PICTURES_OF_PAIR)) for table in tables]
    return np.concatenate([pc.fill_null(one, 0).to_numpy() for one in lengths]).astype(np.int64)


def with_trl_s_prompt(pairs: Dataset) -> Dataset:
    """Prepared pairs with their prompts under TRL's name too."""
    prompts = pairs.select_columns(["prompt_ids"]).rename_column("prompt_ids", PROMPT_OF_TRL)
    # side by side two tables share their memory, or the file that they are mapped from
    both: Dataset = datasets.concatenate_datasets([pairs, prompts], axis=1)
    return both
