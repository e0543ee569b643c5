"""Prepared pairs whose pictures are blank ones of the same size: what a model makes of texts alone.

A blank picture is white, as a page with nothing on it, and as large as the one in whose place it
stands. So the prompt's tokens stay the same, and nothing is prepared anew.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from datasets import Dataset

from counterpoint.data.pair_columns import (
    GIVEN_COLUMNS,
    PAIR_COLUMNS,
    PICTURES_OF_PAIR,
    pictures_per_pair,
)


def with_blank_pictures(pairs: Dataset) -> Dataset | None:
    """The pairs that show pictures, with blank ones.

    Args:
        pairs: prepared.

    Returns:
        The same rows, under the same numbers, without those that show none; None where none does.
    """
    places = pictures_per_pair(pairs).nonzero()[0]
    if not len(places):
        return None
    wanted = (*PAIR_COLUMNS, *GIVEN_COLUMNS, PICTURES_OF_PAIR)
    plain = pairs.select_columns([name for name in wanted if name in pairs.column_names])
    found: Dataset = plain.select(places).map(
        _blanked, keep_in_memory=True, load_from_cache_file=False, features=plain.features
    )
    return found


def _blanked(record: Mapping[str, Any]) -> dict[str, Any]:
    return {PICTURES_OF_PAIR: [_blank(picture) for picture in record[PICTURES_OF_PAIR]]}


def _blank(picture: Mapping[str, Any]) -> dict[str, Any]:
    data = _page(picture["width"], picture["height"])
    return {**picture, "path": None, "bytes": data, "digest": hashlib.sha256(data).hexdigest()}


@lru_cache(maxsize=256)
def _page(width: int, height: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(out, format="PNG")
    return out.getvalue()
