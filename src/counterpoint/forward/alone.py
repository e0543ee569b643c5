"""One completion in a call of its own, all logits and no layout: what any family can be asked.

Not here: the forward that trains (``pair_forward``), and the reference that tests compare it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.forward.seeing import shown_before
from counterpoint.records import TokenPair


def logits_alone(
    model: nn.Module, pair: TokenPair, completion: Sequence[int]
) -> tuple[Float[Tensor, "targets vocab"], Int[Tensor, " targets"]]:
    """The logits that predict a completion, and the ids that they should predict.

    Args:
        model: of any family that is trained, plain or PEFT-wrapped.
        pair: whose prompt, and start of the decoder, are given.
        completion: chosen or rejected, at least one token.
    """
    inner: Any = model
    device = next(model.parameters()).device
    encodes = bool(getattr(inner.config, "is_encoder_decoder", False))
    before = [*(pair.start if encodes else pair.prompt)]
    given = max(1, len(before))  # nothing predicts the first token of all
    ids = torch.tensor([[*before, *completion]], device=device)
    if encodes:
        source = torch.tensor([[*pair.prompt]], device=device)
        named = {"input_ids": source, "decoder_input_ids": ids[:, :-1]}
    else:
        shown = [(pair.prompt, pair.seen)]
        beside = shown_before(model, shown, len(pair.prompt), device, after=len(completion))
        named = {"input_ids": ids, **beside}
    logits = inner(**named, use_cache=False).logits[0]
    return logits[given - 1 : ids.shape[1] - 1], ids[0, given:]
