"""From the pairs of a step to the batches a model takes, in the layout that suits it.

On the first pairs of a run the head is proved against the model's own logits, and the layout
against the reference; what fails its proof is replaced, with a word on why. What was found belongs
to the run: it travels in its checkpoints, so that a resumed run decides nothing anew.

Not here: which pairs make a step (``data.sampler``), the proofs themselves (``forward``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from counterpoint.console.phases import phase
from counterpoint.data.batching import cut, length
from counterpoint.engine.face import Engine
from counterpoint.errors import ModelError
from counterpoint.forward import kernels
from counterpoint.forward.agreement import layouts_disagree
from counterpoint.forward.head import Head, prove_head
from counterpoint.forward.kernels import HEAD_KERNELS
from counterpoint.forward.layouts import AUTO, LAYOUTS, Layout, first_choice, must_hold
from counterpoint.forward.rotary import long_rows
from counterpoint.forward.routing import find_routers, prove_routers
from counterpoint.forward.rows import check_ids
from counterpoint.log import logger
from counterpoint.model_seams import attention_of
from counterpoint.models.family import Family
from counterpoint.records import PairBatch, TokenPair

PROOF_TOKENS = 16
"""Tokens of the first pair on which the head is proved."""

PROOF_PAIRS = 2
"""Pairs on which the layout is proved: enough to see that one does not see the other."""


class Assembly:
    """Head and layout of one model, and the batches that go with them.

    Args:
        model: unwrapped from distributed training.
        wanted: the option ``layout``.
        vocab_size: rows of the model's embedding; None leaves ids unchecked.
        pad_id: id that fills the ends of padded rows; any will do.
        engine: where it runs, and in which precision.
        family: of the model.
        pins: whether batches are put into page-locked memory on their way to CUDA.
        balanced: whether the load of the model's experts is.

    Raises:
        ModelError: CP313 for routers whose choice cannot be counted.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        wanted: str,
        vocab_size: int | None,
        pad_id: int,
        engine: Engine,
        family: Family,
        pins: bool = True,
        balanced: bool = False,
    ) -> None:
        self.routers = find_routers(model) if balanced else ()
        self.model, self.engine = model, engine
        self._wanted, self._pins = wanted, pins
        self._device = next(model.parameters()).device
        self._pad_id, self._vocab_size, self._family = pad_id, vocab_size, family
        self._long_rows = long_rows(model)
        self._head: Head | None = None
        self._layout: Layout | None = None
        self._reason: str | None = None
        self._known: Mapping[str, Any] = {}

    @property
    def layout(self) -> str | None:
        """Name of what the run uses; None before the first pairs."""
        return None if self._layout is None else self._layout.name

    @property
    def head(self) -> Head:
        """The head; proved once there were pairs."""
        return self._head or self._as_configured()

    def _as_configured(self) -> Head:
        return self._family.find_head(self.model, self.engine.whole_weight)

    def state_dict(self) -> dict[str, Any]:
        """What was found of layout, head and kernels, and under which conditions; plain values."""
        if self._layout is None or self._head is None:
            return dict(self._known)
        return {
            "layout": self._layout.name,
            "reason": self._reason,
            "head": {"dense": self._head.dense, "kernel": self._head.kernel},
            "kernels": kernels.state_dict(),
            "under": self._conditions(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go by what an earlier process of the run found.

        Args:
            state: from ``state_dict``; up to 0.4 the layout alone, and the rest is proved again.
        """
        self._known = dict(state)
        self._head = self._layout = None

    def micro_batches(
        self, pairs: Sequence[TokenPair], most_tokens: int | None, *, most_pairs: int
    ) -> list[PairBatch]:
        """One rank's share of a step as batches on the device, those of most tokens first.

        Args:
            pairs: at least one.
            most_tokens: most input tokens of a batch, or None.
            most_pairs: most pairs of a batch where ``most_tokens`` is None.

        Raises:
            ModelError: CP306 for a pair that would change what its neighbours are worth.
        """
        layout = self._settled(pairs)
        cut_group = partial(
            cut, most_pairs=most_pairs, most_tokens=most_tokens, tokens_of=layout.tokens
        )
        parts = [part for group in self._groups(pairs) for part in cut_group(group)]
        parts.sort(key=layout.tokens, reverse=True)
        return [self._batch(layout, part) for part in parts]

    def _groups(self, pairs: Sequence[TokenPair]) -> list[list[TokenPair]]:
        """Pairs that may share a batch; all those of a set, with nearly all models."""
        sets = dict.fromkeys(pair.of for pair in pairs)
        return [group for of in sets for group in self._lengths([p for p in pairs if p.of == of])]

    def _lengths(self, pairs: Sequence[TokenPair]) -> list[list[TokenPair]]:
        rows = self._long_rows
        if rows is None:
            return [list(pairs)]
        short = [pair for pair in pairs if pair.longest_row <= rows.context]
        long = [pair for pair in pairs if pair.longest_row > rows.context]
        if long and not rows.separable:
            raise ModelError(
                "CP306",
                f"row {long[0].row} has {long[0].longest_row} tokens, and past {rows.context} "
                "this model's dynamic rotary positions depend on the longest row so far: a step "
                f"would not be a function of its pairs. Set max_length={rows.context} or lower, or "
                "another rope_type (yarn, linear) in the model's config.",
            )
        return [group for group in (short, long) if group]

    def running(self) -> AbstractContextManager[None]:
        """To be open around forward and backward of ``micro_batches``."""
        return nullcontext() if self._layout is None else self._layout.running(self.model)

    def _batch(self, layout: Layout, pairs: Sequence[TokenPair]) -> PairBatch:
        return self._on_device(
            layout.collate(pairs, pad_id=self._pad_id, vocab_size=self._vocab_size)
        )

    def _on_device(self, batch: PairBatch) -> PairBatch:
        # only from page-locked memory does a copy to CUDA let the host go on
        if self._device.type == "cuda" and self._pins:
            batch = batch.pin_memory()
        return batch.to(self._device, non_blocking=True)

    def _settled(self, pairs: Sequence[TokenPair]) -> Layout:
        """The layout, chosen once in a run."""
        if self._layout is None:
            layout = self._found_before()
            if layout is None:
                with phase("proving head and layout on the first pairs"):
                    layout = self._proved(pairs)
            self._layout, why = layout, f" ({self._reason})" if self._reason else ""
            logger().info("layout: %s%s", layout.name, why)
            if self.head.dense:
                logger().warning(
                    "%s does something to its logits that could not be reproduced; it computes "
                    "them itself, which needs more memory.",
                    type(self.model).__name__,
                )
        return self._layout

    def _conditions(self) -> dict[str, Any]:
        """What a proof holds under: the same weights on another device are another matter."""
        device = self._device.type
        with self.engine.autocast():
            mixed = torch.is_autocast_enabled(device)
            running = torch.get_autocast_dtype(device) if mixed else None
        return {
            "wanted": self._wanted,
            "device": device,
            "weights": str(next(self.model.parameters()).dtype),
            "products": str(running),
            "attention": attention_of(self.model),
            "balanced": bool(self.routers),
        }

    def _found_before(self) -> Layout | None:
        """What the checkpoint says, if it was found under the same conditions."""
        known = self._known
        layout = LAYOUTS.get(known.get("layout", ""))
        if layout is None or known.get("under") != self._conditions():
            return None
        if layout.why_not(self.model) or known["head"]["kernel"] not in (None, *HEAD_KERNELS):
            return None
        kernels.load_state_dict(known["kernels"])
        self._head = replace(self._as_configured(), **known["head"])
        self._reason = known["reason"]
        return layout

    def _proved(self, pairs: Sequence[TokenPair]) -> Layout:
        self._head = head = self._proved_head(pairs[0])
        wanted, reference = self._wanted, self._family.layouts[-1]
        layout, reason = first_choice(
            self.model, wanted, self._device.type, possible=self._family.layouts
        )
        if layout is not reference:
            if wanted == AUTO and self._known.get("layout") == reference.name:
                reason = "as before the checkpoint"
            reason = reason or self._disproof(layout, head, pairs)
            layout = reference if reason else layout
        must_hold(layout, wanted, reason)
        self._reason = reason
        return layout

    def _proved_head(self, pair: TokenPair) -> Head:
        if self._vocab_size is not None:
            check_ids([pair], self._vocab_size)
        few = [*pair.prompt, *pair.chosen][:PROOF_TOKENS]
        ids = torch.tensor([few], device=self._device)
        with self.engine.autocast():
            head = prove_head(self.model, self._as_configured(), ids)
            if self.routers:
                prove_routers(self.model, self.routers, ids)
        return head

    def _disproof(self, layout: Layout, head: Head, pairs: Sequence[TokenPair]) -> str | None:
        few = sorted(pairs, key=length)[:PROOF_PAIRS]
        batch, truth = self._batch(layout, few), self._batch(self._family.layouts[-1], few)
        with self.engine.autocast():
            return layouts_disagree(self.model, head, batch, truth)
