"""A batch of raw rows becomes columns of token ids: formats, encoder, truncate in one.

The one function that ``datasets`` runs, in this process or in many, eagerly or while streaming.
A row that cannot be used does not stop it: its ``problem`` says why, and its ids are empty.
What does not follow from the row alone is raised: an encoder that fits no row, a package that is
missing, memory that ran out.

Not here: dropping, counting, caching (``prepare``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from datasets import Features, List, Value

from counterpoint.data.bounds import bounded_memory
from counterpoint.data.cells import row_spells_messages
from counterpoint.data.counts import FIRST, FURTHER, NO_LIST
from counterpoint.data.encoder import Encoder, RowDraft
from counterpoint.data.formats import to_preference_row
from counterpoint.data.gold import CutGold, cut_three, gold_row, under_one_prompt
from counterpoint.data.options import Limits
from counterpoint.data.pair_columns import GIVEN_COLUMNS, GOLD_IDS
from counterpoint.data.picture_files import rules_for
from counterpoint.data.said_lists import place_in_list, with_place
from counterpoint.data.survival import as_column
from counterpoint.data.tokenize import Tokens
from counterpoint.data.turns import given_spans
from counterpoint.errors import DataError
from counterpoint.picture import Picture
from counterpoint.preference_row import GOLD, PARTS, ListedPlace, PreferenceRow

PICTURE = {
    "path": Value("string"),
    "bytes": Value("large_binary"),
    "field": Value("string"),
    "width": Value("int32"),
    "height": Value("int32"),
    "digest": Value("string"),
}
"""What is kept of a picture: its file, where it lies in one. Its bytes only where no raw row stands
beside, as in a stream; else it is found again in its field of that row."""

FEATURES = Features(
    {
        **{f"{part}_ids": List(Value("int32")) for part in PARTS},
        **{name: List(Value("int32")) for name in (*GIVEN_COLUMNS, *GOLD_IDS)},
        "weight": Value("float64"),
        "margin": Value("float64"),
        "row": Value("int64"),
        **{f"cut_{part}": Value("int32") for part in (*PARTS, GOLD)},
        "boundary": Value("int32"),
        "same": Value("bool"),
        "listed": Value("int32"),
        "absent": Value("string"),
        "spelled": Value("bool"),
        "pictures": List(PICTURE),
        "lost": Value("string"),
        "problem": Value("string"),
    }
)
"""The columns that ``encode_rows`` makes, and their types."""

COLUMNS = tuple(FEATURES)

NOT_OF_THE_ROW = ("CP208", "CP217", "CP222")
"""Codes that blame the tokenizer or the machine: the row may be in order, so that it is neither
dropped nor kept in the cache as a bad one."""


def encode_rows(
    batch: Mapping[str, Sequence[Any]],
    rows: Sequence[int],
    *,
    encoder: Encoder[Any],
    limits: Limits,
    first_row: int = 0,
    folder: str | None = None,
    whole: bool = False,
) -> dict[str, list[Any]]:
    """Encode a batch.

    Args:
        batch: the raw columns of some rows.
        rows: their numbers in the data set.
        encoder: may remember the batches before, and so is best used for all.
        limits: how long a pair may be.
        first_row: number of the row that ``rows`` calls 0.
        folder: in which pictures lie, where the run names none.
        whole: give the bytes of pictures with them, where the raw rows are not kept.

    Returns:
        ``COLUMNS``: ids of the three parts, spans of completions without loss, both of the gold
        completion, weight, margin and number of each row, tokens cut from each part, tokens that
        the boundary moved, whether cutting made the completions equal, whether the row was taken
        from a list (``counts.NO_LIST`` and its kin), the columns in which it has nothing, whether a
        text spells messages, its pictures, what the row lost in the chat template
        (``survival.as_column``), and the problem, an error's text or "".

    Raises:
        DataError: CP208 where messages meet a tokenizer without a chat template, CP217 where the
            template does not end, CP222 where this machine fails.
        SetupError: CP502 where a package is missing that the template needs.
    """
    columns = {name: list(values) for name, values in batch.items()}
    good: list[RowDraft] = []
    golds: list[RowDraft] = []
    records: list[dict[str, Any]] = []
    places: list[int] = []
    rules = rules_for(encoder.pictures, folder)
    with bounded_memory():
        for place, row in enumerate(row + first_row for row in rows):
            raw = {name: values[place] for name, values in columns.items()}
            try:
                read = partial(to_preference_row, row=row, pictures=rules)
                found = _rows_of(encoder.named(raw, row), read, limits)
                drafts = [encoder.draft(one) for one in found]
            except DataError as error:
                if error.code in NOT_OF_THE_ROW:
                    raise
                records.append(_problem(row, error, place_in_list(raw)))
            except MemoryError as error:
                raise DataError(
                    "CP222",
                    f"row {row} could not be read: memory ran out. The row may well be in order: "
                    "try again, with more memory or fewer processes.",
                ) from error
            else:
                good.append(drafts[0])
                golds += drafts[1:]
                records.append({})
                places.append(place)
    with _collector_paused():
        encoded = encoder.tokens([*good, *golds])
    beside: Sequence[Tokens | None] = encoded[len(good) :] or [None] * len(good)
    with bounded_memory():
        several = zip(places, good, encoded[: len(good)], beside, strict=True)
        for place, draft, tokens, gold in several:
            try:
                records[place] = _record(draft, tokens, gold, limits, encoder, whole)
            except DataError as error:
                if error.code in NOT_OF_THE_ROW:
                    raise
                records[place] = _problem(draft.row.row, error, draft.row.listed)
    return {name: [record[name] for record in records] for name in COLUMNS}


def _rows_of(
    raw: Mapping[str, Any], read: Callable[[Mapping[str, Any]], PreferenceRow], limits: Limits
) -> list[PreferenceRow]:
    """The row, and the same with its gold completion where that is read."""
    row = read(raw)
    return [row, gold_row(raw, row, read)] if limits.gold else [row]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector away from thousands of new lists, none of them in a cycle.

    It would walk over all of them again and again, a third of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _listed(place: ListedPlace | None) -> int:
    """Whether a row is the first of a list of several, a further one, or neither."""
    if place is None or not place.of:
        return NO_LIST
    return FURTHER if place.place else FIRST


def _problem(row: int, error: DataError, place: ListedPlace | None) -> dict[str, Any]:
    return {
        **{f"{part}_ids": [] for part in PARTS},
        **{name: [] for name in (*GIVEN_COLUMNS, *GOLD_IDS)},
        **{"weight": 0.0, "margin": 0.0, "row": row},
        **{f"cut_{part}": 0 for part in (*PARTS, GOLD)},
        **{"boundary": 0, "same": False, "absent": "", "spelled": False, "lost": ""},
        "pictures": [],
        "listed": _listed(place),
        "problem": str(with_place(error, place)),
    }


def _record(
    draft: RowDraft,
    tokens: Tokens,
    gold: Tokens | None,
    limits: Limits,
    encoder: Encoder[Any],
    whole: bool,
) -> dict[str, Any]:
    row, third = draft.row, CutGold()
    if gold is not None:
        tokens, gold = under_one_prompt(tokens, gold)
    if tokens.chosen == tokens.rejected:
        raise DataError(
            "CP205",
            f"row {row.row}: the tokenizer makes the same {len(tokens.chosen)} tokens of chosen "
            "and rejected, so there is nothing to prefer. Remove the row.",
        )
    if gold is None:
        pair = encoder.cut(draft, tokens, limits)
    else:
        pair, third = cut_three(encoder, draft, tokens, gold, limits)
    if not pair.fits:
        raise _too_long(row.row, tokens, limits)
    shortest = min(map(len, (pair.chosen, pair.rejected, third.ids or pair.chosen)))
    if not pair.prompt and shortest < 2:
        raise DataError(
            "CP214",
            f"row {row.row}: the prompt is empty and a completion is a single token, which "
            "nothing predicts. Give the row a prompt, or use a tokenizer with a BOS token.",
        )
    chosen_given, rejected_given = given_spans(row, tokens, pair, limits)
    return {
        "prompt_ids": pair.prompt,
        "chosen_ids": pair.chosen,
        "rejected_ids": pair.rejected,
        "chosen_given": chosen_given,
        "rejected_given": rejected_given,
        "gold_ids": third.ids,
        "gold_given": third.given,
        "weight": row.weight,
        "margin": row.margin,
        "row": row.row,
        "cut_prompt": pair.cut_prompt,
        "cut_chosen": pair.cut_chosen,
        "cut_rejected": pair.cut_rejected,
        "cut_gold": third.cut,
        "boundary": tokens.moved,
        "same": pair.chosen == pair.rejected,
        "listed": _listed(row.listed),
        "absent": " ".join(row.absent),
        "spelled": row_spells_messages(row),
        "pictures": [picture_cell(picture, whole=whole) for picture in row.pictures],
        "lost": as_column(draft.lost),
        "problem": "",
    }


def picture_cell(picture: Picture, *, whole: bool) -> dict[str, Any]:
    """What is kept of a picture, as ``PICTURE``: never pixels.

    Args:
        picture: of a row.
        whole: with its bytes, where nothing else has them.
    """
    source = picture.source
    return {
        "path": source if isinstance(source, str) else None,
        "bytes": source if whole and isinstance(source, bytes) else None,
        **{name: getattr(picture, name) for name in ("field", "width", "height", "digest")},
    }


def _too_long(row: int, tokens: Tokens, limits: Limits) -> DataError:
    prompt, longest = len(tokens.prompt), max(len(tokens.chosen), len(tokens.rejected))
    if limits.truncation == "drop":
        allowed = f"{limits.max_length:,} tokens"
        if limits.max_completion_length is not None:
            allowed += f" with at most {limits.max_completion_length:,} of completion"
        return DataError(
            "CP204",
            f"row {row}: prompt and longer completion take {prompt:,} + {longest:,} tokens of "
            f'{allowed}, and truncation="drop" drops such rows.',
        )
    if limits.truncation != "completion_end":
        return DataError(
            "CP204",
            f"row {row}: the prompt's {prompt:,} tokens hold a part that is not to be cut, and "
            f"{limits.max_length:,} tokens have no room for it beside the completions. Raise "
            'max_length, or set truncation="drop" to drop such rows.',
        )
    return DataError(
        "CP204",
        f"row {row}: the prompt takes {prompt:,} of {limits.max_length:,} tokens, so no "
        f"completion token would train. Raise max_length above {prompt:,}, or set "
        'truncation="prompt_start" to cut the prompt or "drop" to drop such rows.',
    )
