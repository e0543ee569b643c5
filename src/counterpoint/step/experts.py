"""Where the experts of a step's tokens are: sums over all of its micro-batches, on all ranks.

The load-balancing loss is a product of two means over tokens, and so no sum of micro-batch values:
the shares of tokens, which carry no gradient, are found before the first backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from counterpoint import ranks
from counterpoint.engine.face import Engine
from counterpoint.forward.router import RouterSums, add_sums
from counterpoint.forward.trunk import trunk
from counterpoint.step.assembly import Assembly
from counterpoint.step.random_states import generators_kept
from counterpoint.step.share import Share


class ExpertBalance:
    """The load of a model's experts over a step.

    Args:
        engine: where it runs.
        assembly: head, layout and routers of the model that trains, as they are now.
        device: of the model.
    """

    def __init__(
        self, engine: Engine, assembly: Callable[[], Assembly], device: torch.device
    ) -> None:
        self._engine, self._assembly, self._device = engine, assembly, device

    def over_step(self, share: Share) -> RouterSums | None:
        """The sums of a step on all ranks.

        Args:
            share: this rank's part of it.

        Returns:
            None where its one micro-batch is the whole step, which then finds them itself, and
            for models without experts.
        """
        if not self._assembly().routers or (len(share) == 1 and ranks.alone()):
            return None
        sums = share.fitted(partial(self._sums, share))
        flat = ranks.add_up(torch.cat([sums.sent, sums.tokens[None]]))
        return RouterSums(flat[:-1], sums.probability, flat[-1])

    def over_share(self, share: Share) -> RouterSums | None:
        """The sums of a step of one rank that was to be one micro-batch and is several now."""
        return self._sums(share) if self._assembly().routers and len(share) > 1 else None

    def _sums(self, share: Share) -> RouterSums:
        """A pass through the trunk without gradient, in which routers choose as in the step.

        Some draw: they draw here what they will draw there.
        """
        assembly = self._assembly()
        assembly.model.train()
        alike = generators_kept(self._device)
        with alike, self._engine.autocast(), assembly.running(), torch.no_grad():
            found = [
                trunk(assembly.model, assembly.head, batch, assembly.routers)[1] for batch in share
            ]
        return add_sums([sums for sums in found if sums is not None])
