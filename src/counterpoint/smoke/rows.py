"""A few of the run's own rows as pairs, for a run in miniature.

Rows are taken evenly from the whole set and become tokens as in the run, with its limits. What is
longer than a miniature needs is then cut around the place where the two completions part.
Pictures become small ones, and a prompt that shows any keeps all of its tokens.

Not here: what a row becomes (``data.encode``), and judging the whole set (``doctor``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.data import formats
from counterpoint.data.account import dropped_by_policy
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.encode import encode_rows, picture_cell
from counterpoint.data.encoder import Encoder, encoder_for
from counterpoint.data.mixture import joined_rows
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_columns import GIVEN_COLUMNS, PICTURES_OF_PAIR, to_pair, with_given
from counterpoint.data.picture_files import folder_of
from counterpoint.data.several import one_rejected_a_row
from counterpoint.data.sources import dataset_from_rows
from counterpoint.data.truncate import spans_within
from counterpoint.data.undecoded import undecoded
from counterpoint.errors import DataError
from counterpoint.preference_row import COMPLETIONS, GOLD
from counterpoint.records import TokenPair

PROMPT, COMPLETION = 48, 24
"""Most tokens of a miniature's prompt and of each of its completions."""


def own_pairs(
    rows: Any, encoder: Encoder[Any] | PreTrainedTokenizerBase, args: CPOConfig, most: int
) -> list[TokenPair]:
    """Some rows of a data set as pairs, as the run would train them.

    Args:
        rows: raw rows: a ``Dataset``, several sets, a stream (its first rows are taken) or a list.
        encoder: of the run, or the tokenizer of a decoder.
        args: the run's limits, and what it does with rows that are no pairs.
        most: how many rows to look at.

    Returns:
        At least one pair; each row at most once.

    Raises:
        DataError: CP2xx of the first row that is no pair, unless ``invalid_rows`` is "drop";
            CP209 where no row that was looked at is usable.
    """
    encoder, rows = encoder_for(encoder), joined_rows(rows)
    numbers, raw = _some(rows, most)
    names = dict.fromkeys(name for row in raw for name in row)
    formats.check_columns(list(names), name="train")
    table = {name: [row.get(name) for row in raw] for name in names}
    options = PrepareOptions.of(args)
    columns = encode_rows(
        table,
        numbers,
        encoder=encoder,
        limits=options.limits,
        folder=folder_of(rows),
        whole=True,
    )
    cells = zip(*columns.values(), strict=True)
    records = [dict(zip(columns, row, strict=True)) for row in cells]
    problems = [record["problem"] for record in records if record["problem"]]
    refused = [text for text in problems if not dropped_by_policy(text, options)]
    if refused and options.invalid_rows == "raise":
        raise DataError(refused[0][:5], f"train, {refused[0][6:]}")
    usable = (record for record in records if not record["problem"])
    pairs = [to_pair(record, encoder.start_tokens) for record in usable]
    if not pairs:
        first = f" The first: {problems[0]}" if problems else ""
        raise DataError(
            "CP209", f"none of the {len(records)} rows of train looked at can be used.{first}"
        )
    return pairs


def shortened(pair: TokenPair) -> TokenPair:
    """A pair of at most ``PROMPT`` + ``COMPLETION`` tokens a side.

    Tokens with which all completions begin go to the prompt where a completion is too long, so
    that what is left of them differs; then the prompt loses its beginning, completions their end.
    The prompt of an encoder-decoder is another text: there they are left out. A prompt that shows
    pictures is not cut.
    """
    prompt, whole, same = list(pair.prompt), [list(one) for one in pair.completions], 0
    shortest = min(map(len, whole))
    if max(map(len, whole)) > COMPLETION:
        while same < shortest - 1 and len({one[same] for one in whole}) == 1:
            same += 1
        prompt = prompt if pair.start else prompt + whole[0][:same]
    left = [one[same:][:COMPLETION] for one in whole]
    given = [_given(spans, same, one) for spans, one in zip(pair.givens, left, strict=True)]
    changed: dict[str, Any] = {}
    for name, ids, spans in zip((*COMPLETIONS, GOLD), left, given, strict=False):
        changed |= {name: ids, f"{name}_given": spans}
    return replace(pair, prompt=prompt if pair.pictures else prompt[-PROMPT:], **changed)


def _given(spans: Sequence[int], start: int, kept: Sequence[int]) -> tuple[int, ...]:
    """The spans without loss of what is kept of a completion; none where all of it would be."""
    found = spans_within(spans, start, start + len(kept))
    return found if sum(found[1::2]) - sum(found[::2]) < len(kept) - 1 else ()


def prepared(pairs: Sequence[TokenPair]) -> Dataset:
    """Pairs as the data set that a trainer takes for prepared."""
    records = [
        {
            "prompt_ids": [*pair.prompt, *pair.start],
            "chosen_ids": pair.chosen,
            "rejected_ids": pair.rejected,
            **{name: getattr(pair, name) for name in ("row", "weight", "margin", *GIVEN_COLUMNS)},
            **{"gold_ids": pair.gold, "gold_given": pair.gold_given},
            PICTURES_OF_PAIR: [picture_cell(one, whole=True) for one in pair.pictures],
        }
        for pair in pairs
    ]
    found = with_given(Dataset.from_list(records))
    shown = any(pair.pictures for pair in pairs)
    return found if shown else found.remove_columns(PICTURES_OF_PAIR)


def _some(rows: Any, most: int) -> tuple[list[int], list[Any]]:
    """Numbers and content of a few rows; of a stream the first ones."""
    rows = lists_of_csv(undecoded(rows), "train")
    if isinstance(rows, IterableDataset):
        first = list(islice(one_rejected_a_row(rows), most))
        return list(range(len(first))), first
    table = rows if isinstance(rows, Dataset) else dataset_from_rows(list(rows), name="train")
    table = one_rejected_a_row(table)
    if table.format["type"] != "custom":
        table = table.with_format(None)
    count = min(most, len(table))
    numbers = [place * len(table) // count for place in range(count)]
    return numbers, [table[number] for number in numbers]
