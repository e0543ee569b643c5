"""An optimizer's state by the names of its parameters, instead of their numbers.

Not here: files (``tree``), and what an optimizer's values mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.checkpoint.tensor_kinds import as_parts, from_parts
from counterpoint.errors import SetupError


def named_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The state of an optimizer as a tree of ``tree``.

    Args:
        optimizer: of any kind.
        model: whose parameters it trains; unwrapped.

    Returns:
        ``groups``: each group's values, with the names of its parameters; ``state``: what is
        kept of each parameter, by its name.
    """
    content = optimizer.state_dict()
    names = dict(zip(_numbers(content), _names(optimizer, model), strict=True))
    groups = [
        {**group, "params": [names[n] for n in group["params"]]}
        for group in content["param_groups"]
    ]
    state = {names[n]: _each(as_parts, kept) for n, kept in content["state"].items()}
    return {"groups": groups, "state": state}


def load_named_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]
) -> None:
    """Put an optimizer where it was.

    Args:
        optimizer: new, of the same kind.
        model: with parameters of the same names.
        saved: from ``named_state``.

    Raises:
        SetupError: CP514 where it trains other parameters, or in other groups.
    """
    content = optimizer.state_dict()
    names = dict(zip(_numbers(content), _names(optimizer, model), strict=True))
    now = [[names[n] for n in group["params"]] for group in content["param_groups"]]
    then = [group["params"] for group in saved["groups"]]
    if now != then:
        raise SetupError("CP514", _difference(then, now))
    numbers = {name: number for number, name in names.items()}
    strange = sorted(saved["state"].keys() - numbers.keys())
    if strange:
        raise SetupError("CP514", f"the optimizer's state has {strange[0]}, which is not trained.")
    state = {name: _each(from_parts, kept) for name, kept in saved["state"].items()}
    optimizer.load_state_dict(
        {
            "state": {numbers[name]: kept for name, kept in state.items()},
            "param_groups": [
                {**group, "params": [numbers[name] for name in group["params"]]}
                for group in saved["groups"]
            ],
        }
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, parameter in zip(_names(optimizer, model), parameters, strict=True):
        _keep_precision(optimizer.state.get(parameter, {}), state.get(name, {}))


def _each(change: Callable[[Any], Any], kept: Any) -> Any:
    """What is kept of a parameter, each value changed."""
    return {key: change(value) for key, value in kept.items()} if isinstance(kept, dict) else kept


def _keep_precision(live: dict[str, Any], saved: dict[str, Any]) -> None:
    """Torch brings a state to its parameter's dtype; what was kept wider stays so."""
    for key, value in saved.items():
        now = live.get(key)
        if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype != value.dtype:
            live[key] = value.to(now.device, copy=True)


def _numbers(content: dict[str, Any]) -> list[int]:
    return [number for group in content["param_groups"] for number in group["params"]]


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Names of an optimizer's parameters, in its order; those of no model by their number."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [known.get(id(p), f"parameter {number}") for number, p in enumerate(parameters)]


def _difference(then: list[list[str]], now: list[list[str]]) -> str:
    before, after = {n for group in then for n in group}, {n for group in now for n in group}
    if before == after:
        return "the optimizer groups its parameters differently than the one of the checkpoint did."
    parts = [
        f"{what} {len(names)}, {sorted(names)[0]} among them"
        for what, names in (("no longer", before - after), ("newly", after - before))
        if names
    ]
    return f"the optimizer trains other parameters than in the checkpoint: {'; '.join(parts)}."
