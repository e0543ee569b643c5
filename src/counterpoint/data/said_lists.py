"""What a raw row says of the list that its rejected completion was taken from (``several``).

Not here: taking lists apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from counterpoint.data.cells import fail
from counterpoint.errors import DataError
from counterpoint.preference_row import ListedPlace

LISTED = "rejected:place"
"""The column in which a row remembers the list that it was taken from; null for any other row."""


def place_in_list(raw: Mapping[str, Any]) -> ListedPlace | None:
    """Where a raw row's rejected completion stood; None where it was no list.

    Args:
        raw: the row's cells by column.
    """
    mark = raw.get(LISTED)
    return None if mark is None else ListedPlace(mark["row"], mark["place"], mark["of"])


def refuse_unusable_lists(raw: Mapping[str, Any], row: int) -> None:
    """Refuse a row whose list of rejected completions cannot be used, or that lists chosen ones.

    Args:
        raw: the row's cells by column.
        row: its number.

    Raises:
        DataError: CP233 or CP234.
    """
    mark = raw.get(LISTED)
    if mark is not None and mark["problem"]:
        fail("CP233", row, "rejected", mark["problem"])
    chosen = raw.get("chosen")
    if isinstance(chosen, list | tuple) and chosen and isinstance(chosen[0], str | list):
        fail(
            "CP234",
            row,
            "chosen",
            "is a list of completions; only rejected may list several. Give a row for each chosen "
            "completion.",
        )


@contextmanager
def saying_place(raw: Mapping[str, Any]) -> Iterator[None]:
    """Within it an error of a row says where that row's rejected completion stood.

    Args:
        raw: the row's cells by column.
    """
    try:
        yield
    except DataError as error:
        if (place := place_in_list(raw)) is None:
            raise
        raise with_place(error, place) from error


def with_place(error: DataError, place: ListedPlace | None) -> DataError:
    """The same error, which also says where in the set as it is given the row stands.

    Args:
        error: of a row.
        place: of that row, if it was taken from a list.
    """
    if place is None or place.in_words() in error.message:
        return error
    return DataError(error.code, f"{error.message} {place.in_words()}")
