"""Weights and optimizer state that are not finite are found where they come about, and never saved.

The guard reads losses and the gradient before the weights move. A finite gradient can still make
an update that is not: an epsilon that is 0 in the weights' precision, a learning rate that
overflows, a NaN in the optimizer's state. So the weights that train are read once more after every
update, and all of them, with the optimizer's state, before the first step and before a checkpoint
takes its place.

Not here: losses and gradients (``guard``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.checkpoint.folder import finished
from counterpoint.errors import ConfigError, ModelError, NonFiniteError
from counterpoint.models.quantized import known_in_shards
from counterpoint.tensor_parts import floating_parts

SHOWN = 3
"""Most tensors that a message names."""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every value is finite.

    Args:
        tensors: of any shapes, precisions, kinds and devices; what has no floating point is left
            out.
    """
    given = list(tensors)
    likely = norms_finite(given)
    # only a finite norm is an answer: a sum of squares can overflow though every value is finite
    return likely is None or bool(likely) or not any(map(_odd_values, given))


def norms_finite(tensors: Iterable[Tensor]) -> Bool[Tensor, ""] | None:
    """Whether the norm of each tensor is finite, in one pass and without looking back.

    A norm is the fastest pass there is, and keeps every NaN and infinity.

    Args:
        tensors: as for ``all_finite``.

    Returns:
        A truth value on the first tensor's device; None where there is nothing to read.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        for part in floating_parts(tensor):
            alike[part.device, part.dtype].append(part)
    norms = [torch.stack(torch._foreach_norm(group)) for group in alike.values()]
    if not norms:
        return None
    device = norms[0].device
    return torch.stack([part.isfinite().all().to(device) for part in norms]).all()


def _odd_values(tensor: Tensor) -> int:
    return sum(int((~part.isfinite()).sum()) for part in floating_parts(tensor))


class UpdateGuard:
    """Ends a run whose weights are not finite, before its first step or after an update.

    All ranks end alike.

    What it sees after an update is read together with the next step's own verdict, so that a step
    looks back from the device once; and before anything is logged, evaluated or saved.
    """

    def __init__(self) -> None:
        self.pending: Bool[Tensor, ""] | None = None
        """Whether the last update was finite, as far as is known; None where that was read."""
        self._facts: dict[str, Any] = {}

    def check_start(self, model: nn.Module, optimizer: Any, step: int) -> None:
        """Refuse to train on from what is lost already: frozen weights and a checkpoint's too.

        Args:
            model: that is to train.
            optimizer: of the run.
            step: of the checkpoint; 0 for a run that begins.

        Raises:
            ModelError: CP308, with the tensors.
            NonFiniteError: CP405 for the optimizer's state of a checkpoint.
        """
        known_in_shards(model)
        device = next(model.parameters()).device
        if not on_every_rank(all_finite(model.parameters()), device):
            seen = ", ".join(_bad_weights(model)) or "weights of another rank are not"
            origin = "the checkpoint" if step else "the model, or a model that is whole"
            raise ModelError("CP308", f"before the first step {seen}. Load {origin} again.")
        if not on_every_rank(all_finite(_state(optimizer)), device):
            raise NonFiniteError(
                "CP405",
                f"the optimizer's state is not finite at step {step}, before anything "
                "is trained. Resume from an earlier checkpoint.",
            )

    def look(self, model: nn.Module, optimizer: Any, step: int, run: Path) -> None:
        """Look at what was just updated; reads nothing back.

        Args:
            model: that trains.
            optimizer: that has moved its weights.
            step: its number, from 1.
            run: the run's folder.
        """
        groups = optimizer.param_groups
        self.pending = norms_finite(weight for group in groups for weight in group["params"])
        self._facts = {"model": model, "groups": groups, "step": step, "run": run}

    def settle(self) -> None:
        """Read what the last update left; every rank must call it.

        Raises:
            NonFiniteError: CP405, with the tensors and the last checkpoint.
        """
        if self.pending is None:
            return
        finite, self.pending = self.pending, None
        if on_every_rank(finite, finite.device):
            return
        groups = self._facts["groups"]
        # an infinite norm may be a sum that overflowed: every value is looked at
        if on_every_rank(all_finite(w for group in groups for w in group["params"]), finite.device):
            return
        seen = ", ".join(_bad_weights(self._facts["model"])) or "weights of another rank are not"
        rates = ", ".join(dict.fromkeys(f"{float(group['lr']):g}" for group in groups))
        raise NonFiniteError(
            "CP405",
            f"step {self._facts['step']}: after the update {seen}. These weights are not saved. "
            f"{_last_checkpoint(self._facts['run'])} Lower the learning rate ({rates}), and see "
            "that epsilon and the optimizer's state are finite in the weights' precision.",
        )


def on_every_rank(finite: bool | Tensor, device: torch.device) -> bool:
    """Whether it is so on every rank.

    Args:
        finite: on this one.
        device: of the run.
    """
    flag = torch.as_tensor(finite, device=device).to(torch.int32)
    return bool(ranks.least(flag))


def refuse_non_finite(model: nn.Module, optimizer: Any, target: Path) -> None:
    """Refuse to save what is not finite.

    Args:
        model: whose weights are to be saved.
        optimizer: whose state is saved too; None where only the model is.
        target: where it would have been saved.

    Raises:
        NonFiniteError: CP405; what was saved before stays.
    """
    bad = [] if all_finite(model.parameters()) else list(_bad_weights(model))
    if optimizer is not None and not all_finite(_state(optimizer)):
        bad.append("the optimizer's state is not finite")
    if bad:
        raise NonFiniteError(
            "CP405",
            f"{target} was not saved: {', '.join(bad)}. {_last_checkpoint(target.parent)}",
        )


def refuse_vanishing(optimizer: Any, max_grad_norm: float = 0.0) -> None:
    """Refuse numbers of an optimizer that are 0, or infinite, where it computes with them.

    Args:
        optimizer: ``torch.optim``'s or one like it.
        max_grad_norm: that the gradient is cut to, >= 0; 0 for none.

    Raises:
        ConfigError: CP103 for an ``eps`` that is 0, negative, or not finite in a weight's
            precision, since 0 / 0 would be the update of a weight whose gradient is 0; for a
            rate, decay or norm above 0 that is 0 or infinite in float32 (float64 for weights of
            float64): nothing would move, or everything would be lost.
    """
    for group in optimizer.param_groups:
        eps = group.get("eps")
        for dtype in {weight.dtype for weight in group["params"]}:
            if isinstance(eps, int | float):
                _refuse_epsilon(float(eps), dtype)
            computing = dtype if dtype == torch.float64 else torch.float32
            for name, value in (
                ("learning_rate", group.get("lr")),
                ("weight_decay", group.get("weight_decay")),
                ("max_grad_norm", max_grad_norm),
            ):
                if isinstance(value, int | float) and value > 0:
                    _refuse_number(name, float(value), computing)


def _refuse_epsilon(eps: float, dtype: torch.dtype) -> None:
    held = _held(eps, dtype)
    if not 0 < held < math.inf:
        raise ConfigError(
            "CP103",
            f"adam_epsilon={eps:g} is {held:g} in {_short(dtype)}, the precision of the weights, "
            "so that a weight whose gradient is 0 would become NaN. Set it above "
            f"{torch.finfo(dtype).tiny:g}; 1e-08 is usual in float32.",
        )


def _refuse_number(name: str, value: float, dtype: torch.dtype) -> None:
    held = _held(value, dtype)
    if not 0 < held < math.inf:
        limits = torch.finfo(dtype)
        raise ConfigError(
            "CP103",
            f"{name}={value:g} is {held:g} in {_short(dtype)}, in which updates are computed. "
            f"Set it to 0, or between {limits.tiny:g} and {limits.max:g}.",
        )


def _held(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bad_weights(model: nn.Module) -> Iterator[str]:
    found = [(name, _odd_values(weight)) for name, weight in model.named_parameters()]
    bad = [(name, count) for name, count in found if count]
    for name, count in bad[:SHOWN]:
        yield f"{count:,} values of {name} are not finite"
    if len(bad) > SHOWN:
        yield f"and values of {len(bad) - SHOWN} more tensors"


def _state(optimizer: Any) -> Iterator[Tensor]:
    for kept in optimizer.state.values():
        yield from (value for value in kept.values() if isinstance(value, Tensor))


def _last_checkpoint(run: Path) -> str:
    left = finished(run)
    if not left:
        return "There is no checkpoint to resume from."
    return f"The last checkpoint is {left[-1]}; resume from it."
