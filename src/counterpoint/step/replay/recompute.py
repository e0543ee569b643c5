"""A step done again to find what is not finite: which pair, which token, which term came first.

The terms are looked at in the order in which they are computed:

    parameters, weights, margins and pixels ─▶ layers ─▶ log-probabilities of tokens ─▶ rewards
      ─▶ losses ─▶ gradients, in the order of the backward pass

Not here: what the step is made of (``file``), and what is done about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.forward.head import Head
from counterpoint.forward.layouts import LAYOUTS, SIDES
from counterpoint.forward.offload import offloading
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.router import RouterSums
from counterpoint.forward.routing import find_routers
from counterpoint.forward.sights import sight_of
from counterpoint.forward.token_scores import TokenScores
from counterpoint.records import LossTerms, PairBatch, StepTotals, TokenPair
from counterpoint.step.constrained_loss import loss_of
from counterpoint.step.loss import StepDenominators
from counterpoint.step.random_states import restore_generators
from counterpoint.step.replay.file import Culprit, Replay
from counterpoint.step.replay.held import HeldSet
from counterpoint.step.replay.pictures import picture_of
from counterpoint.tensor_parts import local_part

MOST = 100
"""Things that are not finite, of one kind, that are told of."""


def culprits_of(
    replay: Replay,
    model: nn.Module,
    head: Head,
    *,
    device: torch.device | str,
    held: HeldSet | None = None,
    passes: int | None = None,
) -> tuple[Culprit, ...]:
    """Do the step's micro-batches again and say what is not finite, first things first.

    Leaves gradients in the model. Of a model in shards this rank's parts are looked at, and
    gradients are sums over ranks.

    Args:
        replay: the step.
        model: not wrapped for distributed training, on the device, with the dropout of the run.
        head: of the model, proved.
        device: where it is computed.
        held: its constraints; None: those that the file holds.
        passes: micro-batches that are run, where ranks must run as many; nothing is said of those
            that fill up. None: those of the step.

    Returns:
        Empty where everything is finite.
    """
    found = [*_of_parameters(model), *_of_data(replay)]
    own = len(replay.micro_batches)
    run = replay if passes is None else _filled_up(replay, passes)
    for number, again in enumerate(_done_again(run, model, head, device, held)):
        gradients = _of_gradients(model, again.loss)
        if number < own:
            found += [*again.culprits(), *gradients]
    return tuple(found)


def _filled_up(replay: Replay, passes: int) -> Replay:
    """So many micro-batches of a step: its first ones, and then the first again."""

    def cut(given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given + given[:1] * (passes - len(given)))[:passes]

    return replace(
        replay, micro_batches=cut(replay.micro_batches), generators=cut(replay.generators)
    )


def loss_again(
    replay: Replay,
    model: nn.Module,
    head: Head,
    *,
    device: torch.device | str,
    held: HeldSet | None = None,
) -> Float[Tensor, ""]:
    """The loss of the step's micro-batches, bit for bit what it was on the same weights.

    Args:
        replay: the step; all of its micro-batches.
        model: as for ``culprits_of``.
        head: of the model, proved.
        device: where it is computed.
        held: as for ``culprits_of``.
    """
    total = torch.zeros((), device=device)
    for again in _done_again(replay, model, head, device, held):
        total += again.loss.detach()
    return total


# What is not finite before anything is computed


def _of_parameters(model: nn.Module) -> Iterator[Culprit]:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            yield from _of_tensor(parameter, "parameter", name)


def _of_data(replay: Replay) -> Iterator[Culprit]:
    for pair in (pair for batch in replay.micro_batches for pair in batch):
        for term, value in (("weight", pair.weight), ("margin", pair.margin)):
            yield from _of_tensor(torch.tensor(value), term, row=pair.row)
    yield from _of_pixels(pair for batch in replay.micro_batches for pair in batch)


def _of_pixels(pairs: Iterable[TokenPair]) -> Iterator[Culprit]:
    """Pictures that the processor made wrong, each under the first pair that shows it."""
    looked: set[str] = set()
    for pair in pairs:
        for number, seen in enumerate(pair.seen):
            named = {} if seen.digest in looked else seen.inputs
            looked.add(seen.digest)
            for name, tensor in named.items():
                for one in _of_tensor(tensor, "pixels", name, pair.row):
                    yield replace(one, part="picture", token=number)


# The step


@dataclass(frozen=True, slots=True)
class _Again:
    """A micro-batch that was done again, before its backward."""

    loss: Float[Tensor, ""]
    terms: LossTerms
    token_logps: Float[Tensor, " targets"]
    layers: Sequence[Culprit]
    batch: PairBatch

    def culprits(self) -> Iterator[Culprit]:
        """What is not finite, in the order of the computation."""
        tokens = [*_of_tokens(self.token_logps, self.batch)]
        # what a layer gives is of no account where it did no harm: a mask may well be infinite
        yield from (*(self.layers if tokens else ()), *tokens, *_of_terms(self.terms, self.batch))
        if not torch.isfinite(self.loss):
            yield _culprit(self.loss, "loss", "of the micro-batch")


def _done_again(
    replay: Replay,
    model: nn.Module,
    head: Head,
    device: torch.device | str,
    held: HeldSet | None,
) -> Iterator[_Again]:
    """Each micro-batch, through the same forward and the same loss as in the run."""
    settings, layout = replay.settings, LAYOUTS[replay.settings.layout]
    held = HeldSet(replay) if held is None else held
    loss = loss_of(replay.objective, settings.balancing_weight, held)
    routers = find_routers(model) if settings.balancing_weight else ()
    kind = torch.device(device).type
    mixed = getattr(torch, settings.autocast) if settings.autocast else None
    model.train()
    for number, pairs in enumerate(replay.micro_batches):
        batch = layout.collate(pairs).to(device)
        step = _denominators(replay, held, batch.weight)
        scores: list[TokenScores] = []
        if replay.generators:
            restore_generators(replay.generators[number])
        with layout.running(model):
            with (
                torch.autocast(kind, mixed) if mixed else nullcontext(),
                offloading(torch.device(device), wanted=settings.offload),
                _watched_layers(model, batch) as layers,
            ):
                output = pair_forward(
                    model,
                    head,
                    batch,
                    routers=routers,
                    initial=held.policy,
                    asked=replay.objective.asked,
                    at_scores=scores.append,
                )
            found = loss(output, batch, step)
            yield _Again(found.loss, found.terms, scores[0].logps, layers, batch)


def _denominators(replay: Replay, held: HeldSet, like: Tensor) -> StepDenominators:
    """Those of the step, on the device and in the precision of a tensor."""
    totals, router = replay.totals, replay.router
    if router is not None:
        router = RouterSums(*(getattr(router, one.name).to(like) for one in fields(RouterSums)))
    return StepDenominators(
        StepTotals(totals.weight.to(like), totals.nll.to(like)),
        held.totals.to(like),
        replay.settings.micro_batches,
        router,
    )


CROSS_INPUTS = re.compile(
    r"(?:encoder_attn|cross_attention|EncDecAttention)\.[kv](?:_proj)?(?:\.|$)"
)
"""Names of the decoder's layers whose tokens are the source's: keys and values of what an encoder
says."""


def _of_sources(model: nn.Module, batch: PairBatch) -> set[str]:
    """Names of layers whose rows are sources, and not rows of the batch."""
    if not LAYOUTS[batch.layout].encoded:
        return set()
    inner: Any = model
    within = set(inner.get_encoder().modules())
    return {
        name
        for name, module in model.named_modules()
        if module in within or CROSS_INPUTS.search(name)
    }


def _of_tower(model: nn.Module) -> set[str]:
    """Names of layers whose rows are pictures, and not rows of the batch."""
    sight = sight_of(model.config)
    parts = () if sight is None else (*sight.tower, *sight.projector)
    names = (name for name, _ in model.named_modules())
    return {name for name in names if any(f".{part}." in f".{name}." for part in parts)}


@contextmanager
def _watched_layers(model: nn.Module, batch: PairBatch) -> Iterator[list[Culprit]]:
    """The first layer whose output is not finite, once one was, and its first such token."""
    found: list[Culprit] = []
    handles = []
    of_sources, of_tower = _of_sources(model, batch), _of_tower(model)

    def watch(name: str) -> Any:
        at_place = _at_source if name in of_sources else _at_token
        at_place = _at_picture if name in of_tower else at_place

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if found or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                return
            for one in _of_tensor(tensor.detach(), "layer", name):
                found.append(at_place(one, tensor.detach(), batch))

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


def _at_source(one: Culprit, output: Tensor, batch: PairBatch) -> Culprit:
    """The same where the output has one entry a token of a source, or of what was said of it."""
    ids = batch.inputs["input_ids"]
    if output.dim() < 3 or output.shape[1] != ids.shape[1]:
        return one
    bad = ~torch.isfinite(output.flatten(2)).all(-1)
    row, position = bad.nonzero()[0].tolist()
    if len(output) == len(ids):  # several pairs may have it; the first one is named
        source = ids[row].tolist()
        having = (p for p in batch.pairs if source[: len(p.prompt)] == list(p.prompt))
        pair = max(having, key=lambda p: len(p.prompt))
    else:
        pair = batch.pairs[row % len(batch)]
    part = "prompt" if position < len(pair.prompt) else "padding"
    token_id = pair.prompt[position] if part == "prompt" else None
    return replace(one, row=pair.row, part=part, token=position, token_id=token_id)


def _at_picture(one: Culprit, output: Tensor, batch: PairBatch) -> Culprit:
    """The same where the output is of pictures; the first pair that shows it is named."""
    found = picture_of(output, batch)
    if found is None:
        return one
    pair, number = found
    return replace(one, row=pair.row, part="picture", token=number)


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
                part=SIDES[sequence // len(batch)],
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
    part = local_part(values)
    if torch.isfinite(part).all():
        return ()
    return (_culprit(part, term, name, row),)


def _culprit(values: Tensor, term: str, name: str, row: int | None = None) -> Culprit:
    bad = ~torch.isfinite(values)
    first = values[bad].flatten()[0]
    return Culprit(term, name, row, value=_word(first), count=int(bad.sum()), total=values.numel())


def _word(value: Tensor) -> str:
    return str(float(value.detach()))
