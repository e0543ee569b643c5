"""A model without its head: what the head is given at every token.

Not here: what the head makes of it (``head``), sums over completions (``pair_forward``).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from counterpoint.forward.head import Head, head_input, own_tokens
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.forward.router import RouterSums, router_sums
from counterpoint.forward.routing import Router, choices
from counterpoint.records import PairBatch


def trunk(
    model: nn.Module, head: Head, batch: PairBatch, routers: tuple[Router, ...] = ()
) -> tuple[Float[Tensor, "rows tokens features"], RouterSums | None]:
    """The head's input (of a dense head, its logits) at every token, and the routers' sums.

    Args:
        model: as for ``pair_forward``.
        head: its head.
        batch: the pairs.
        routers: of the model, to have their sums as well; none without.
    """
    layout = LAYOUTS[batch.layout]
    with head_input(head) as taken, choices(routers) as chosen:
        # a cache would be wasted, and some models mistake packed rows for continued ones with it
        outputs = model(**layout.inputs(batch), use_cache=False)
    router = router_sums(chosen, layout.times_counted(batch)) if routers else None
    states = outputs.logits if head.dense else taken[0]
    return own_tokens(states, batch.input_ids), router


def initial_rows(
    initial: InitialPolicy, head: Head, batch: PairBatch
) -> Float[Tensor, "targets features"]:
    """What the initial policy's head has as its input at each target.

    Args:
        initial: the policy.
        head: of the model as it is now.
        batch: the pairs.
    """
    with initial.as_it_was():
        states, _ = trunk(initial.model, head, batch)
        return states.flatten(0, 1).index_select(0, batch.target_source)
