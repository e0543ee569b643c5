"""The processors of models that see: beside the tokenizer in them, by which everyone else goes.

A run is given a processor and passes its tokenizer on, so that nothing but what reads rows about
pictures and what saves a model need know that there is more.

Not here: loading by name (``models.loading``), what a processor makes of a picture (``vision``).
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

_OF: WeakKeyDictionary[PreTrainedTokenizerBase, Any] = WeakKeyDictionary()


def is_processor(given: Any) -> bool:
    """Whether something is a processor of pictures, with a tokenizer in it.

    Args:
        given: any object.
    """
    tokenizer = getattr(given, "tokenizer", None)
    return isinstance(tokenizer, PreTrainedTokenizerBase) and hasattr(given, "image_processor")


def tokenizer_in(processor: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in a processor, from which ``processor_around`` finds the processor again.

    Args:
        processor: of which ``is_processor`` holds.
    """
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer
    _OF[tokenizer] = processor
    return tokenizer


def tokenizer_of(given: Any) -> Any:
    """The tokenizer in a processor; anything else as it is.

    Args:
        given: any object, or None.
    """
    return tokenizer_in(given) if is_processor(given) else given


def processor_around(tokenizer: Any) -> Any:
    """The processor whose tokenizer was taken out of it; None for a tokenizer that came alone.

    Args:
        tokenizer: any object.
    """
    return _OF.get(tokenizer) if isinstance(tokenizer, PreTrainedTokenizerBase) else None


def saved_as(tokenizer: Any) -> Any:
    """What is saved beside a model for others to read rows with: the processor, if there is one.

    Args:
        tokenizer: of a run, or None.
    """
    return processor_around(tokenizer) or tokenizer
