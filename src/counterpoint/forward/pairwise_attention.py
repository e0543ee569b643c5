"""Attention of completions that share their prompt, one by one: any device, dtype and mask.

It is the truth that every other kernel is compared with (``kernel_proof``), and suits a CPU.

Not here: which kernel runs (``kernels``), how it is reached from a model (``shared_attention``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from counterpoint.pair_segments import PairSegments


class Scores(TypedDict, total=False):
    """How scores are made.

    Args:
        scaling: factor of the scores; None: the inverse square root of the width.
        window: a query sees that many positions back, itself included; None: all.
        softcap: bound of the scores (Gemma 2); None for none.
        sinks: a score that every query of a head has for nothing (gpt-oss); None for none.
    """

    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None


def attend_to_pairs(
    query: Float[Tensor, "one heads tokens width"],
    key: Float[Tensor, "one kv_heads tokens width"],
    value: Float[Tensor, "one kv_heads tokens value_width"],
    segments: tuple[PairSegments, ...],
    *,
    blocks: Sequence[Tensor] | None = None,
    **scores: Unpack[Scores],
) -> Float[Tensor, "one tokens heads value_width"]:
    """Attention over one row of pairs.

    Args:
        query: rotated already, at the positions of ``PairBatch.position_ids``.
        key: likewise; fewer heads where queries share them.
        value: likewise.
        segments: where each pair lies; they cover the row without gaps.
        blocks: of each pair the number of the block that a token of its prompt is of, -1 for none.
            The tokens of a block see each other, ahead too (Gemma's pictures), but not back out
            of a window. None: there are none.
        scores: how they are made.

    Returns:
        The attended values, token by token.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    # split and not slices: the gradient of each slice would be as long as the whole row
    ways = [length for s in segments for length in (s.prompt, *s.completions)]
    # the prompt's own queries are among those of the first completion
    own = [n for s in segments for n in (s.prompt + s.completions[0], *s.completions[1:])]
    queries = iter(torch.split(query, own, 2))
    keys, values = iter(torch.split(key, ways, 2)), iter(torch.split(value, ways, 2))
    parts = []
    for pair, segment in enumerate(segments):
        prompt = next(keys), next(values)
        for side in range(len(segment.completions)):
            parts.append(
                _causal(
                    next(queries),
                    torch.cat([prompt[0], next(keys)], 2),
                    torch.cat([prompt[1], next(values)], 2),
                    scores,
                    None if blocks is None or side else blocks[pair],
                )
            )
    return torch.cat(parts, 2).transpose(1, 2)


def _causal(
    query: Tensor, key: Tensor, value: Tensor, how: Scores, blocks: Tensor | None
) -> Tensor:
    """The last queries of a sequence over all of its keys."""
    scaling, window = how.get("scaling"), how.get("window")
    softcap, sinks = how.get("softcap"), how.get("sinks")
    queries, keys = query.shape[2], key.shape[2]
    narrow = window is not None and window < keys
    plain = softcap is None and sinks is None
    if plain and queries == keys and not narrow and blocks is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    mask = _mask(queries, keys, window if narrow else None, query.device, blocks)
    if plain:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        nothing = sinks[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, nothing], -1)
    weights = scores.softmax(-1, dtype=_wide(scores.dtype))[..., :keys]
    return weights.to(value.dtype) @ value


def _mask(
    queries: int, keys: int, window: int | None, device: torch.device, blocks: Tensor | None
) -> Bool[Tensor, "queries keys"]:
    behind = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(
        keys, device=device
    )
    seen = behind >= 0
    if blocks is not None:
        of = F.pad(blocks.to(device), (0, keys - len(blocks)), value=-1)
        seen = seen | (of[:, None] == of) & (of >= 0)
    return seen if window is None else seen & (behind < window)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
