"""What says that memory ran out, of a device or of the host, and the error of it.

Not here: what is done about it in a step (``step.share``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from counterpoint.errors import CounterpointError, SetupError, first_line

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")
"""What says in a RuntimeError that memory ran out: of a device, of the host, of cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a device or of the host."""
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or any(sign in str(error) for sign in SIGNS)


@contextmanager
def memory_named(folder: str) -> Iterator[None]:
    """Raise CP522 in place of what a library says where memory ran out, if nobody knew an answer.

    Args:
        folder: of the run, for the message.

    Raises:
        SetupError: CP522.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, CounterpointError) or not is_out_of_memory(error):
            raise
        raise SetupError(
            "CP522",
            f"memory ran out, and not in a micro-batch ({first_line(error)}): for weights, the "
            "optimizer's moments, a checkpoint or a text that was written. Smaller micro-batches "
            "leave it more room (max_micro_batch_tokens); a LoRA adapter, an optimizer of 8 bits "
            f"or more ranks under fsdp=2 need less of it. What is saved is in {folder}.",
        ) from error
