"""What the routers of a mixture-of-experts model chose, as they said it themselves.

Routers choose in many ways: top-k of softmax or of sigmoid scores, plus a correction bias that no
gradient moves, within groups of experts, with noise. None of it is computed again here. Which
modules are routers is what transformers records of a model (``can_record_outputs``); while a
forward pass runs, each one hands over its scores and the experts that it sent each token to. A
router whose choice cannot be read is refused, never approximated.

Not here: the loss that is made of it (``router``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.errors import ModelError
from counterpoint.forward.modes import in_evaluation_mode

WAY_OUT = "router_aux_loss_coef=0 trains without a balancing loss."

WITHOUT_GRADIENT = (
    "it runs without gradient, as activation checkpointing does with use_reentrant=True, so that "
    "nothing would be balanced (gradient_checkpointing_kwargs={'use_reentrant': False} mends that)"
)

REFUSED = {
    "DogeCDMoE": "it chooses among pairs of keys, not among experts",
    "ZayaRouter": "a token may skip its experts, and its indices do not say so",
}
"""Routers, by the name of their class, whose choice cannot be counted, and why."""

PROBABILITIES = {"Gemma4TextRouter", "DiffusionGemmaTextRouter"}
"""Routers whose scores are probabilities already, where others hand over logits."""

KEYS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
"""What configurations call the weight of their balancing loss."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What one router did in one forward pass.

    Args:
        scores: of each expert, logits unless ``normalized``; with gradient.
        chosen: the experts each token was sent to.
        normalized: whether the scores are probabilities.
    """

    scores: Float[Tensor, "tokens experts"]
    chosen: Int[Tensor, "tokens choices"]
    normalized: bool = False

    def probabilities(self) -> Float[Tensor, "tokens experts"]:
        """Of each expert, in float32."""
        scores = self.scores.float()
        return scores if self.normalized else F.softmax(scores, dim=-1)


@dataclass(frozen=True, slots=True)
class Router:
    """One router of a model.

    Args:
        name: its class.
        module: that chooses.
        experts: that it chooses among, where the choice is told to them alone.
    """

    name: str
    module: nn.Module
    experts: nn.Module | None = None


def find_routers(model: nn.Module) -> tuple[Router, ...]:
    """The routers of a model, plain or wrapped; none for a dense one.

    Args:
        model: a transformers model.

    Raises:
        ModelError: CP313 for a router whose choice cannot be counted.
    """
    kinds = _kinds(model)
    named = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    inner = {n: m for n, m in named.items() if not any(o.startswith(f"{n}.") for o in named)}
    found = []
    for place, module in inner.items():
        name = type(module).__name__
        reason = next((REFUSED[n] for n in _names(module) if n in REFUSED), None)
        if reason:
            raise _refused(name, reason)
        found.append(Router(name, module, _experts_beside(model, place)))
    return tuple(found)


def own_coefficient(config: Any) -> float | None:
    """The weight of the balancing loss that a model's configuration names, if it names one.

    Args:
        config: of the model.
    """
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for owner in (config, getattr(config, "ffn_config", None)):
        for key in KEYS:
            value = getattr(owner, key, None)
            if isinstance(value, int | float):
                return float(value)
    return None


@contextmanager
def choices(routers: tuple[Router, ...]) -> Iterator[list[Choice]]:
    """While open, every router that runs adds what it chose to the list.

    Open it around a forward pass alone: a layer that is computed again in the backward pass
    must not be counted twice.
    """
    found: list[Choice] = []
    graph = torch.is_grad_enabled()
    with ExitStack() as stack:
        for router in routers:
            for handle in _listen(router, found, graph):
                stack.callback(handle.remove)
        yield found
        if routers and not found:
            raise _refused(routers[0].name, "it was not called in a forward pass")


def prove_routers(model: nn.Module, routers: tuple[Router, ...], inputs: Mapping[str, Any]) -> None:
    """Check on a short input that what the routers hand over is what it is taken for.

    Args:
        model: unwrapped, on the device of its inputs.
        routers: of it.
        inputs: what the model is called with, by keyword: a few real tokens.

    Raises:
        ModelError: CP313 where it is not.
    """
    sent: list[Tensor] = []
    with ExitStack() as stack:
        for experts in {id(r.experts): r.experts for r in routers if r.experts}.values():
            hook = experts.register_forward_pre_hook(
                lambda _, args, named: sent.extend(_indices((*args, *named.values()))),
                with_kwargs=True,
            )
            stack.callback(hook.remove)
        with in_evaluation_mode(model), torch.no_grad(), choices(routers) as found:
            model(**inputs, use_cache=False)
    name = routers[0].name
    for choice in found:
        _check_scores(name, choice)
    if sent and not _same(sent, [choice.chosen for choice in found]):
        raise _refused(name, "its experts were sent other tokens than it says")


def _same(sent: list[Tensor], said: list[Tensor]) -> bool:
    """Whether what reached the experts is among what the routers say."""
    return all(any(one.shape == two.shape and one.equal(two) for two in said) for one in sent)


def _check_scores(name: str, choice: Choice) -> None:
    scores, experts = choice.scores.float(), choice.scores.shape[-1]
    if bool((choice.chosen < 0).any()) or bool((choice.chosen >= experts).any()):
        raise _refused(name, f"it chose an expert that is none of its {experts}")
    ones = torch.ones_like(scores[:, 0])
    sums_to_one = torch.allclose(scores.sum(-1), ones, atol=1e-2) and bool((scores >= 0).all())
    if sums_to_one and not choice.normalized and experts > 1:
        raise _refused(name, "its logits are probabilities")


def _kinds(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Classes that transformers records as routers, in a model and the models within it."""
    recorded: list[Any] = []
    for module in model.modules():
        can: Any = getattr(module, "can_record_outputs", None)
        named = can.get("router_logits", ()) if isinstance(can, Mapping) else ()
        recorded += named if isinstance(named, list | tuple) else [named]
    kinds = (getattr(spec, "target_class", spec) for spec in recorded)
    # older recorders name nn.Linear and a place: such a layer hands over nothing but logits
    return tuple({kind for kind in kinds if isinstance(kind, type) and kind is not nn.Linear})


def _experts_beside(model: nn.Module, place: str) -> nn.Module | None:
    """The experts in the block that a router is in, or in the nearest block around it."""
    parts = place.split(".")
    for end in range(len(parts) - 1, -1, -1):
        experts = getattr(model.get_submodule(".".join(parts[:end])), "experts", None)
        if isinstance(experts, nn.Module):
            return experts
    return None


def _listen(router: Router, found: list[Choice], graph: bool) -> list[Any]:
    """Hooks that add what a router chose; refused where a graph is wanted and there is none."""
    read = next((READERS[n] for n in _names(router.module) if n in READERS), _of_indices)
    waiting: list[Tensor] = []

    def routed(module: nn.Module, args: Any, output: Any) -> None:
        if graph and not torch.is_grad_enabled():
            raise _refused(router.name, WITHOUT_GRADIENT)
        if isinstance(output, Tensor):  # its block chooses, and tells the experts
            waiting.append(output)
            return
        choice = read(module, output)
        if choice is None:
            raise _refused(router.name, "what it returns does not say which experts it chose")
        found.append(choice)

    def sent(_: nn.Module, args: Any, named: Any) -> None:
        if not waiting:
            return
        indices = _indices((*args, *named.values()))
        if len(indices) != 1:
            raise _refused(router.name, "its experts are not told which tokens they get")
        scores = waiting.pop()
        found.append(Choice(scores.reshape(-1, scores.shape[-1]), indices[0]))

    handles = [router.module.register_forward_hook(routed)]
    if router.experts is not None:
        handles.append(router.experts.register_forward_pre_hook(sent, with_kwargs=True))
    return handles


def _names(module: nn.Module) -> list[str]:
    return [kind.__name__ for kind in type(module).__mro__]


def _indices(values: tuple[Any, ...]) -> list[Tensor]:
    """Those that are indices of experts, some for each token."""
    return [
        value.detach()
        for value in values
        if isinstance(value, Tensor) and value.dim() == 2 and not _is_real(value)
    ]


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point() or value.dtype == torch.bool


def _of_indices(module: nn.Module, output: Any) -> Choice | None:
    """Scores first, and somewhere the indices that the experts get."""
    if not isinstance(output, tuple) or not output or not isinstance(output[0], Tensor):
        return None
    chosen, scores = _indices(output), output[0]
    if len(chosen) != 1 or not scores.is_floating_point():
        return None
    scores = scores.reshape(-1, scores.shape[-1])
    if len(scores) != len(chosen[0]):
        return None
    normalized = not PROBABILITIES.isdisjoint(_names(module))
    return Choice(scores, chosen[0], normalized)


def _of_sorted_tokens(module: nn.Module, output: Any) -> Choice | None:
    """JetMoE sorts its choices by expert: undo it."""
    order, _, _, sizes, logits = output
    experts = torch.arange(len(sizes), device=order.device)
    by_expert = experts.repeat_interleave(torch.as_tensor(sizes, device=order.device))
    chosen = torch.empty_like(order).scatter_(0, order, by_expert)
    return Choice(logits, chosen.view(len(logits), -1))


def _of_weights(module: nn.Module, output: Any) -> Choice | None:
    """Llama 4 weighs every expert, with 0 where a token is not sent."""
    weights, logits = output
    top_k: Any = module.top_k
    return Choice(logits, weights.detach().topk(top_k, dim=-1).indices)


READERS: dict[str, Callable[[nn.Module, Any], Choice | None]] = {
    "JetMoeTopKGating": _of_sorted_tokens,
    "Llama4Router": _of_weights,
}
"""How what a router returns is read where it is not scores and indices, by its class."""


def _refused(name: str, reason: str) -> ModelError:
    return ModelError(
        "CP313", f"the experts that {name} chose cannot be counted: {reason}. {WAY_OUT}"
    )
