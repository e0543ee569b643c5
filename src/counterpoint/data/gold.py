"""The third completion of a row, which some losses make likelier in the place of the chosen one.

1. On its way to tokens it is a row of its own: the gold completion stands in the place of the
   chosen one, and all the rest is the row's. So what may be a completion, and what is refused of
   one, is said in one place.
2. All three share one prompt. Where tokens merge over the boundary with one of them, the prompt
   ends before these tokens for all; and what is cut of the prompt follows from the longest.

Not here: which loss reads it (``objectives.Loss.gold``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from counterpoint.data.encoder import Drafted, Encoder
from counterpoint.data.formats import filled_cells
from counterpoint.data.options import Limits
from counterpoint.data.pair_columns import GOLD_IDS
from counterpoint.data.shapes import in_known_shape
from counterpoint.data.tokenize import Tokens
from counterpoint.data.truncate import Truncation
from counterpoint.data.turns import Said, given_spans
from counterpoint.errors import DataError
from counterpoint.preference_row import GOLD_COLUMNS, PreferenceRow

_READ_AS = "field chosen"
"""What an error of the row that stands in for the gold completion calls it."""


def as_read(pairs: Any, *, gold: bool) -> Any:
    """Prepared pairs as a run reads them that may have been prepared for another.

    Args:
        pairs: with the columns of ``pair_columns``; a stream is left as it is.
        gold: whether the run's loss reads gold completions.

    Returns:
        Without gold completions where the loss reads none; else the same object.

    Raises:
        DataError: CP236 for pairs without gold completions where it does.
    """
    if not isinstance(pairs, Dataset) or gold == (GOLD_IDS[0] in pairs.column_names):
        return pairs
    if gold:
        raise DataError(
            "CP236",
            "the pairs were prepared without gold completions, which the loss makes likelier. Give "
            f"the trainer the raw rows, with a column {' or '.join(GOLD_COLUMNS)}.",
        )
    return pairs.remove_columns([*GOLD_IDS])


@dataclass(frozen=True, slots=True)
class CutGold:
    """What is left of a gold completion.

    Args:
        ids: its tokens.
        given: its spans without loss, as in ``TokenPair``.
        cut: how many tokens were cut off its end.
    """

    ids: Sequence[int] = ()
    given: Sequence[int] = ()
    cut: int = 0


def gold_row(
    raw: Mapping[str, Any], row: PreferenceRow, read: Callable[[Mapping[str, Any]], PreferenceRow]
) -> PreferenceRow:
    """The row in which a gold completion stands in the place of the chosen one.

    Args:
        raw: the cells of the row by column, under the names that ``formats`` knows.
        row: what it says without its gold completion.
        read: reads cells as ``formats.to_preference_row`` does.

    Raises:
        DataError: CP236 where the row has none, or one that answers another prompt; else what a
            chosen completion in its place would be refused for.
    """
    cells = filled_cells(raw)
    column = next((name for name in GOLD_COLUMNS if name in cells), None)
    if column is None:
        raise DataError(
            "CP236",
            f"row {row.row} has no gold completion, which the loss makes likelier. Give it a "
            f"column {' or '.join(GOLD_COLUMNS)}, or choose a loss of two completions.",
        )
    shaped, gold = _with_sides(cells, row.row), cells[column]
    if isinstance(gold, str) and isinstance(shaped["chosen"], list):
        gold = [{"role": "assistant", "content": gold}]
    for beside in ("rejected", "chosen"):
        try:
            found = read({**raw, **shaped, "chosen": gold, "rejected": shaped[beside]})
        except DataError as error:
            if error.code == "CP205":  # it may well be one of the two
                continue
            text = str(error).removeprefix(f"{error.code} ")
            raise DataError(error.code, text.replace(_READ_AS, f"field {column}")) from error
        if found.prompt == row.prompt:
            return found
    raise DataError(
        "CP236",
        f"row {row.row}, field {column}: does not begin with the prompt that chosen and rejected "
        "begin with. Give the row a column prompt, or write all three with the same beginning.",
    )


def _with_sides(cells: Mapping[str, Any], row: int) -> Mapping[str, Any]:
    """The cells with chosen and rejected among them, whichever columns these stand in."""
    shaped = in_known_shape(cells, row)
    if "chosen" in shaped:
        return shaped
    better, worse = shaped["output"]
    return {**shaped, "chosen": better, "rejected": worse}


def under_one_prompt(tokens: Tokens, gold: Tokens) -> tuple[Tokens, Tokens]:
    """The same ids, of which both prompts end where the shorter one does.

    Args:
        tokens: of the row.
        gold: of the row with its gold completion.
    """
    end = min(len(tokens.prompt), len(gold.prompt))
    return _ended_at(tokens, end), _ended_at(gold, end)


def _ended_at(tokens: Tokens, end: int) -> Tokens:
    moved = tokens.prompt[end:]
    if not moved:
        return tokens

    def later(said: Said) -> Said:
        if not said:
            return said
        # the first turn of a completion begins with it
        return tuple((a + len(moved) if a else 0, b + len(moved)) for a, b in said)

    return Tokens(
        prompt=tokens.prompt[:end],
        chosen=[*moved, *tokens.chosen],
        rejected=[*moved, *tokens.rejected],
        moved=tokens.moved + len(moved),
        chosen_said=later(tokens.chosen_said),
        rejected_said=later(tokens.rejected_said),
    )


def cut_three(
    encoder: Encoder[Drafted], draft: Drafted, tokens: Tokens, gold: Tokens, limits: Limits
) -> tuple[Truncation, CutGold]:
    """A pair and its gold completion within the limits, under one prompt.

    Args:
        encoder: of the row.
        draft: of the row.
        tokens: its ids.
        gold: ids of the row with its gold completion, whose prompt is the same.
        limits: of the run.

    Raises:
        DataError: CP247 and CP248, as ``turns.given_spans``.
    """
    longest = max(tokens.chosen, tokens.rejected, gold.chosen, key=len)

    def cut(completion: list[int]) -> Truncation:
        return encoder.cut(draft, replace(tokens, chosen=completion, rejected=longest), limits)

    chosen, rejected, third = map(cut, (tokens.chosen, tokens.rejected, gold.chosen))
    pair = replace(chosen, rejected=rejected.chosen, cut_rejected=rejected.cut_chosen)
    if not pair.fits:
        return pair, CutGold()
    beside = replace(third, rejected=third.chosen)
    as_chosen = replace(gold, rejected=gold.chosen, rejected_said=gold.chosen_said)
    given, _ = given_spans(draft.row, as_chosen, beside, limits)
    return pair, CutGold(third.chosen, given, third.cut_chosen)
