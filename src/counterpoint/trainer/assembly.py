"""From the pairs of a step to the batches a model takes, in the layout that suits it.

On the first pairs of a run the head is proved against the model's own logits, and the shared
layout against the padded one; what fails its proof is replaced, with a word on why.

Not here: which pairs make a step (``data.sampler``), the proofs themselves (``forward``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from counterpoint.config import CPOConfig
from counterpoint.console.phases import phase
from counterpoint.data.batching import cut, length, longest_row, padded_tokens, shared_tokens
from counterpoint.data.collate import collate_padded, collate_shared
from counterpoint.errors import ConfigError, ModelError
from counterpoint.forward.head import Head, find_head, prove_head
from counterpoint.forward.layout import layouts_disagree, why_padded
from counterpoint.forward.rotary import long_rows
from counterpoint.forward.routing import find_routers, prove_routers
from counterpoint.forward.shared_attention import shared_attention
from counterpoint.records import PairBatch, TokenPair
from counterpoint.runlog import logger
from counterpoint.trainer.setup import embedding_rows

PROOF_TOKENS = 16
"""Tokens of the first pair on which the head is proved."""

PROOF_PAIRS = 2
"""Pairs on which the layout is proved: enough to see that one does not see the other."""


class Assembly:
    """Head and layout of one model, and the batches that go with them.

    Args:
        model: unwrapped from distributed training.
        args: the run's options.
        pad_id: id that fills the ends of padded rows; any will do.
        autocast: the run's precision, as a context.
        known_layout: what a run that is gone on with has used, if it has used one.
        balanced: whether the load of the model's experts is.

    Raises:
        ModelError: CP313 for routers whose choice cannot be counted.
    """

    def __init__(
        self,
        model: nn.Module,
        args: CPOConfig,
        *,
        pad_id: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        known_layout: str | None = None,
        balanced: bool = False,
    ) -> None:
        """Nothing is proved before there are pairs."""
        self.routers = find_routers(model) if balanced else ()
        self.model, self.args, self.autocast = model, args, autocast
        self._known_layout = known_layout
        vocab_size = embedding_rows(model)
        self._padded = partial(collate_padded, pad_id=pad_id, vocab_size=vocab_size)
        self._shared = partial(collate_shared, vocab_size=vocab_size)
        self._long_rows = long_rows(model)
        self._head: Head | None = None
        self._layout: str | None = None

    @property
    def layout(self) -> str | None:
        """What the run uses, shared or padded; None before the first pairs."""
        return self._layout

    @property
    def head(self) -> Head:
        """The head; proved once there were pairs."""
        return self._head or find_head(self.model)

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
        self._settle(pairs)
        shared = self._layout == "shared"
        tokens_of = shared_tokens if shared else padded_tokens
        cut_group = partial(
            cut, most_pairs=most_pairs, most_tokens=most_tokens, tokens_of=tokens_of
        )
        parts = [part for group in self._groups(pairs) for part in cut_group(group)]
        parts.sort(key=tokens_of, reverse=True)
        collate = self._shared if shared else self._padded
        return [self._on_device(replace(collate(part), of=part[0].of)) for part in parts]

    def _groups(self, pairs: Sequence[TokenPair]) -> list[list[TokenPair]]:
        """Pairs that may share a batch; all those of a set, with nearly all models."""
        sets = dict.fromkeys(pair.of for pair in pairs)
        return [group for of in sets for group in self._lengths([p for p in pairs if p.of == of])]

    def _lengths(self, pairs: Sequence[TokenPair]) -> list[list[TokenPair]]:
        rows = self._long_rows
        if rows is None:
            return [list(pairs)]
        short = [pair for pair in pairs if longest_row(pair) <= rows.context]
        long = [pair for pair in pairs if longest_row(pair) > rows.context]
        if long and not rows.separable:
            raise ModelError(
                "CP306",
                f"row {long[0].row} has {longest_row(long[0])} tokens, and past {rows.context} "
                "this model's dynamic rotary positions depend on the longest row so far: a step "
                f"would not be a function of its pairs. Set max_length={rows.context} or lower, or "
                "another rope_type (yarn, linear) in the model's config.",
            )
        return [group for group in (short, long) if group]

    def running(self) -> AbstractContextManager[None]:
        """To be open around forward and backward of ``micro_batches``."""
        return shared_attention(self.model) if self._layout == "shared" else nullcontext()

    def _on_device(self, batch: PairBatch) -> PairBatch:
        # only from page-locked memory does a copy to CUDA let the host go on
        if self.args.device.type == "cuda" and self.args.dataloader_pin_memory:
            batch = batch.pin_memory()
        return batch.to(self.args.device, non_blocking=True)

    def _settle(self, pairs: Sequence[TokenPair]) -> None:
        """Choose the layout, once."""
        if self._layout is not None:
            return
        with phase("proving head and layout on the first pairs"):
            self._prove(pairs)

    def _prove(self, pairs: Sequence[TokenPair]) -> None:
        self._head = head = self._proved_head(pairs[0])
        wanted = self.args.layout
        reason = why_padded(self.model, wanted, self.args.device.type)
        if reason is None and wanted == "auto" and self._known_layout == "padded":
            reason = "as before the checkpoint"
        reason = reason or self._disproof(head, pairs)
        if reason and wanted == "shared":
            raise ConfigError("CP104", f"layout='shared' is not possible: {reason}.")
        self._layout = "padded" if reason else "shared"
        logger().info("layout: %s%s", self._layout, f" ({reason})" if reason else "")

    def _proved_head(self, pair: TokenPair) -> Head:
        self._padded([pair])  # refuses ids that the embedding does not have
        few = [*pair.prompt, *pair.chosen][:PROOF_TOKENS]
        ids = torch.tensor([few], device=self.args.device)
        with self.autocast():
            head = prove_head(self.model, find_head(self.model), ids)
            if self.routers:
                prove_routers(self.model, self.routers, ids)
        if head.dense:
            logger().warning(
                "%s does something to its logits that could not be reproduced; it computes them "
                "itself, which needs more memory.",
                type(self.model).__name__,
            )
        return head

    def _disproof(self, head: Head, pairs: Sequence[TokenPair]) -> str | None:
        few = sorted(pairs, key=length)[:PROOF_PAIRS]
        shared, padded = self._on_device(self._shared(few)), self._on_device(self._padded(few))
        with self.autocast():
            return layouts_disagree(self.model, head, shared, padded)
