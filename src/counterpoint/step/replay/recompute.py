"""A step done again to find what is not finite: which pair, which token, which term came first.

The terms are looked at in the order in which they are computed:

    parameters, weights and margins ─▶ layers ─▶ log-probabilities of tokens ─▶ rewards
      ─▶ losses ─▶ gradients, in the order of the backward pass

Not here: what the step is made of (``replay``), and what is done about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.forward.head import Head
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.forward.pair_forward import trunk
from counterpoint.forward.router import RouterSums, balancing_loss
from counterpoint.forward.routing import find_routers
from counterpoint.forward.token_logps import dense_token_logps
from counterpoint.records import (
    LossTerms,
    PairBatch,
    PairLogps,
    StepTotals,
    exact_dtype,
)
from counterpoint.step.replay.file import Culprit, Replay

MOST = 100
"""Things that are not finite, of one kind, that are told of."""


def culprits_of(
    replay: Replay, model: nn.Module, head: Head, *, device: torch.device | str
) -> tuple[Culprit, ...]:
    """Do the step's micro-batches again and say what is not finite, first things first.

    Leaves gradients in the model.

    Args:
        replay: the step.
        model: not wrapped for distributed training, on the device, with the dropout of the run.
        head: of the model, proved.
        device: where it is computed.

    Returns:
        Empty where everything is finite.
    """
    found = [*_of_parameters(model), *_of_data(replay)]
    model.train()
    layout = LAYOUTS[replay.settings.layout]
    for number, pairs in enumerate(replay.micro_batches):
        batch = layout.collate(pairs)
        if replay.generators:
            restore_generators(replay.generators[number])
        with layout.running(model):
            found += _of_batch(replay, model, head, batch.to(device))
    return tuple(found)


def generator_states(device: torch.device | str) -> dict[str, Tensor]:
    """The states of torch's random generators that a forward pass on a device draws from."""
    states = {"cpu": torch.get_rng_state()}
    kind = torch.device(device).type
    if kind == "cuda":
        states[kind] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: Mapping[str, Tensor]) -> None:
    """Set them again; one of a device that is not here is left out."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


# What is not finite before anything is computed


def _of_parameters(model: nn.Module) -> Iterator[Culprit]:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            yield from _of_tensor(parameter, "parameter", name)


def _of_data(replay: Replay) -> Iterator[Culprit]:
    for pair in (pair for batch in replay.micro_batches for pair in batch):
        for term, value in (("weight", pair.weight), ("margin", pair.margin)):
            yield from _of_tensor(torch.tensor(value), term, row=pair.row)


# The step


def _of_batch(replay: Replay, model: nn.Module, head: Head, batch: PairBatch) -> list[Culprit]:
    settings = replay.settings
    kind = batch.input_ids.device.type
    routers = find_routers(model) if settings.balancing_weight else ()
    mixed = getattr(torch, settings.autocast) if settings.autocast else None
    watching = _watched_layers(model, batch)
    with torch.autocast(kind, mixed) if mixed else nullcontext(), watching as layers:
        states, router = trunk(model, head, batch, routers)
        rows = states.flatten(0, 1).index_select(0, batch.target_source)
        to_logps = dense_token_logps if head.dense else head.token_logps
        token_logps, _ = to_logps(rows, batch.target_ids)
    sums = torch.segment_reduce(
        token_logps.to(exact_dtype(kind)), "sum", lengths=batch.target_counts, unsafe=True
    )
    half = len(batch)
    logps = PairLogps(
        chosen=sums[:half],
        rejected=sums[half:],
        chosen_tokens=batch.target_counts[:half],
        rejected_tokens=batch.target_counts[half:],
    )
    terms = replay.objective(logps, batch.margin)
    totals = StepTotals(replay.totals.weight.to(sums), replay.totals.nll.to(sums))
    loss = replay.objective.share(terms, batch.weight, totals)
    if router is not None:
        step = _on(sums, replay.router) if replay.router is not None else router
        loss = loss + settings.balancing_weight * balancing_loss(router, step)
    tokens = [*_of_tokens(token_logps, batch)]
    # what a layer gives is of no account where it did no harm: a mask may well be infinite
    found = [*(layers if tokens else ()), *tokens, *_of_terms(terms, batch)]
    if not torch.isfinite(loss):
        found.append(_culprit(loss, "loss", "of the micro-batch"))
    return found + _of_gradients(model, loss)


def _on(like: Tensor, sums: RouterSums) -> RouterSums:
    """Sums on the device and in the precision of a tensor."""
    return RouterSums(sums.sent.to(like), sums.probability.to(like), sums.tokens.to(like))


@contextmanager
def _watched_layers(model: nn.Module, batch: PairBatch) -> Iterator[list[Culprit]]:
    """The first layer whose output is not finite, once one was, and its first such token."""
    found: list[Culprit] = []
    handles = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if found or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                return
            for one in _of_tensor(tensor.detach(), "layer", name):
                found.append(_at_token(one, tensor.detach(), batch))

        return look

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(watch(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _at_token(one: Culprit, output: Tensor, batch: PairBatch) -> Culprit:
    """A layer's culprit with its first token, where the output has one entry a token."""
    if output.dim() < 3 or output.shape[:2] != batch.input_ids.shape:
        return one
    bad = ~torch.isfinite(output.flatten(2)).all(-1)
    row, position = bad.nonzero()[0].tolist()
    number, part, token = LAYOUTS[batch.layout].part_at(batch, row, position)
    token_id = int(batch.input_ids[row, position])
    return replace(one, row=batch.pairs[number].row, part=part, token=token, token_id=token_id)


def _of_tokens(token_logps: Tensor, batch: PairBatch) -> Iterator[Culprit]:
    """The first token of each completion whose log-probability is not finite."""
    counts = batch.target_counts.tolist()
    rows = batch.row_ids.tolist()
    with torch.no_grad():
        parts = zip(
            torch.split(token_logps, counts), torch.split(batch.target_ids, counts), strict=True
        )
        for sequence, (values, ids) in enumerate(parts):
            bad = (~torch.isfinite(values)).nonzero()[:, 0]
            if not len(bad):
                continue
            first = int(bad[0])
            yield Culprit(
                "log-probability",
                part="chosen" if sequence < len(batch) else "rejected",
                row=rows[sequence % len(batch)],
                token=first,
                token_id=int(ids[first]),
                value=_word(values[first]),
                count=len(bad),
                total=len(values),
            )


def _of_terms(terms: LossTerms, batch: PairBatch) -> Iterator[Culprit]:
    """Rewards and losses of each pair."""
    named = (
        ("reward", "", "chosen", terms.chosen_rewards),
        ("reward", "", "rejected", terms.rejected_rewards),
        ("loss", "preference", "", terms.preference),
        ("loss", "NLL", "", terms.nll),
    )
    for term, name, part, values in named:
        for row, value in zip(batch.row_ids.tolist(), values.detach(), strict=True):
            for one in _of_tensor(value, term, name, row):
                yield replace(one, part=part)


def _of_gradients(model: nn.Module, loss: Tensor) -> list[Culprit]:
    """Parameters whose gradient is not finite, in the order in which they got it."""
    model.zero_grad(set_to_none=True)
    order: list[tuple[str, Tensor]] = []
    handles = []

    def watch(name: str) -> Any:
        return lambda parameter: order.append((name, parameter.grad))

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            register: Any = parameter.register_post_accumulate_grad_hook
            handles.append(register(watch(name)))
    try:
        torch.autograd.backward(loss)
    finally:
        for handle in handles:
            handle.remove()
    return [one for name, grad in order for one in _of_tensor(grad, "gradient", name)][:MOST]


# Words


def _of_tensor(
    values: Tensor, term: str, name: str = "", row: int | None = None
) -> Sequence[Culprit]:
    bad = ~torch.isfinite(values)
    if not bad.any():
        return ()
    return (_culprit(values, term, name, row),)


def _culprit(values: Tensor, term: str, name: str, row: int | None = None) -> Culprit:
    bad = ~torch.isfinite(values)
    first = values[bad].flatten()[0]
    return Culprit(term, name, row, value=_word(first), count=int(bad.sum()), total=values.numel())


def _word(value: Tensor) -> str:
    return str(float(value.detach()))
