"""Model + ``PairBatch`` -> ``PairLogps``: the forward pass of every loss and every layout.

    hidden states where a target is predicted -> token log-probabilities -> sums per completion

The head sees only rows that have a target, never the prompt or padding, and its logits exist
only in chunks.

Not here: how pairs are laid into rows (``data.collate``), and what is made of the sums
(``losses``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.forward.head import Head, head_input
from counterpoint.forward.router import RouterSums, router_sums, token_multiplicity
from counterpoint.forward.token_logps import dense_token_logps
from counterpoint.records import PairBatch, PairLogps, exact_dtype


@dataclass(frozen=True, slots=True)
class PairOutput:
    """Everything one forward pass tells.

    Args:
        logps: what the losses read.
        logit_sums: mean logit over the vocabulary, summed over each completion's targets;
            chosen completions, then rejected ones; detached.
        router: load-balancing sums of a mixture-of-experts model, else None.
    """

    logps: PairLogps
    logit_sums: Float[Tensor, " sequences"]
    router: RouterSums | None


def pair_forward(
    model: nn.Module, head: Head, batch: PairBatch, *, top_k: int | None = None
) -> PairOutput:
    """Log-probabilities of both completions of every pair.

    Args:
        model: a causal language model, plain or wrapped (PEFT, DDP), on the batch's device.
        head: its head, as ``find_head`` and ``prove_head`` give it.
        batch: the pairs.
        top_k: experts a token is sent to, to have the router's sums as well; None without.

    Returns:
        Sums over the targets of each completion, float64 where the device has it.
    """
    hidden, logits, router = _run(model, head, batch, top_k)
    if logits is not None:
        # the slow way out: every logit there is, for models whose head could not be proved
        rows = logits.flatten(0, -2).index_select(0, batch.target_source)
        token_logps, logit_means = dense_token_logps(rows, batch.target_ids)
    else:
        rows = hidden.flatten(0, -2).index_select(0, batch.target_source)
        token_logps, logit_means = head.token_logps(rows, batch.target_ids)
    sums = _sum_by_sequence(token_logps, batch)
    pairs = len(batch)
    return PairOutput(
        logps=PairLogps(
            chosen=sums[:pairs],
            rejected=sums[pairs:],
            chosen_tokens=batch.target_counts[:pairs],
            rejected_tokens=batch.target_counts[pairs:],
        ),
        logit_sums=_sum_by_sequence(logit_means, batch),
        router=router,
    )


def trunk_router_sums(model: nn.Module, head: Head, batch: PairBatch, *, top_k: int) -> RouterSums:
    """The router's sums alone, without gradient and without the head.

    Args:
        model: as for ``pair_forward``.
        head: its head.
        batch: the pairs.
        top_k: experts a token is sent to.

    Returns:
        Sums over the batch's tokens.
    """
    with torch.no_grad():
        router = _run(model, head, batch, top_k)[2]
    assert router is not None
    return router


def _run(
    model: nn.Module, head: Head, batch: PairBatch, top_k: int | None
) -> tuple[Tensor, Tensor | None, RouterSums | None]:
    """Head inputs (or, for a dense head, logits) of every token, and the router's sums."""
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask.to(batch.input_ids.dtype),
        # a cache would be wasted, and some models mistake packed rows for continued ones with it
        "use_cache": False,
    }
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    if top_k is not None:
        inputs["output_router_logits"] = True
    with head_input(head) as taken:
        outputs = model(**inputs)
    router = None
    if top_k is not None:
        router = router_sums(outputs.router_logits, top_k, token_multiplicity(batch))
    if head.dense:
        return outputs.logits, outputs.logits, router
    hidden = taken[0]
    # prompt tuning puts virtual tokens before each row; real tokens are the last ones
    return hidden[:, -batch.input_ids.shape[1] :], None, router


def _sum_by_sequence(values: Float[Tensor, " targets"], batch: PairBatch) -> Tensor:
    exact = values.to(exact_dtype(values.device))
    return torch.segment_reduce(exact, "sum", lengths=batch.target_counts, unsafe=True)
