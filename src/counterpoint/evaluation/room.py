"""How much a model may write before its positions end.

Not here: the writing (``generation``).
"""

from __future__ import annotations

from typing import Any

from counterpoint.errors import DataError
from counterpoint.log import logger

_said: set[str] = set()
"""Warnings that this process has given."""


def room_behind(longest: int, model: Any, most_tokens: int) -> int:
    """Tokens that may be written, the same for all prompts: no batch decides for its rows.

    Args:
        longest: tokens of the longest prompt.
        model: with a ``config``.
        most_tokens: that are wanted, at least 1.

    Raises:
        DataError: CP204 for a prompt that fills the model's positions.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not positions or longest + most_tokens <= positions:
        return most_tokens
    if longest >= positions:
        raise DataError(
            "CP204",
            f"a prompt takes {longest:,} tokens, and the model has {positions:,} positions, so "
            "that nothing can be written. Leave it out, or shorten it.",
        )
    room = int(positions - longest)
    of = f"{longest} of the model's {positions} positions"
    said = f"texts end after {room} tokens: a prompt takes {of}"
    if said not in _said:  # with each set, way and evaluation anew
        logger().warning("%s", said)
        _said.add(said)
    return room
