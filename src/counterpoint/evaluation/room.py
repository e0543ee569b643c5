"""How much a model may write before its positions end.

Not here: the writing (``generation``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from counterpoint.errors import DataError
from counterpoint.log import logger

_said: set[str] = set()
"""Warnings that this process has given."""


def room_behind(longest: int, model: Any, most_tokens: int, *, source: int = 0) -> int:
    """Tokens that may be written, the same for all prompts: no batch decides for its rows.

    Args:
        longest: tokens of the longest prompt; of an encoder-decoder, of what its decoder begins
            with.
        model: with a ``config``.
        most_tokens: that are wanted, at least 1.
        source: tokens of the longest source, for an encoder; it has as many positions.

    Raises:
        DataError: CP204 for a prompt that fills the model's positions, or a source that has more.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions and source > positions:
        raise DataError(
            "CP204",
            f"a source takes {source:,} tokens, and the model's encoder has {positions:,} "
            "positions, so that it cannot be read. Leave it out, or shorten it.",
        )
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


def longest_source(prompts: Iterable[Any]) -> int:
    """Tokens of the longest source; 0 where a decoder reads its prompts itself.

    Args:
        prompts: of one model, as ``generation.Prompt``.
    """
    return max((len(prompt.ids) for prompt in prompts if prompt.start), default=0)
