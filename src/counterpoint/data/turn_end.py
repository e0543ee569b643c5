"""The token with which a chat template ends the assistant's turn.

Chat models are trained to say it, and not every model's files name it among its ends.

Not here: rendering (``chat``), tokens that model and tokenizer name themselves.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from counterpoint.data.chat import closing_of


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first special token that the template writes after an assistant's turn.

    Args:
        tokenizer: with or without a chat template.

    Returns:
        None without a template, or where it writes none there.
    """
    closing = closing_of(tokenizer)
    if not closing:
        return None
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(token for token, one in added if one.special)}
    ids = tokenizer(closing, add_special_tokens=False)["input_ids"]
    return next((int(one) for one in ids if one in special), None)
