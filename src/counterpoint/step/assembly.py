"""From the pairs of a step to the batches a model takes, in the layout that suits it.

On the first pairs of a run the head is proved against the model's own logits, and the layout
against the reference; what fails its proof is replaced, with a word on why. On an accelerator the
layouts are timed as well, before the first step. What was found belongs to the run: it travels in
its checkpoints, so that a resumed run decides nothing anew.

Not here: which pairs make a step (``data.sampler``), the proofs themselves (``forward``), the clock
(``layout_trial``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from counterpoint import ranks
from counterpoint.console.phases import phase
from counterpoint.data.batching import cut, length
from counterpoint.engine.face import Engine, Pass
from counterpoint.engine.memory import is_out_of_memory
from counterpoint.errors import ModelError, SetupError, first_line
from counterpoint.forward import kernels
from counterpoint.forward.agreement import layouts_disagree
from counterpoint.forward.head import Head, prove_head
from counterpoint.forward.kernels import HEAD_KERNELS
from counterpoint.forward.layout_choice import first_choice, must_hold
from counterpoint.forward.layouts import AUTO, LAYOUTS, Layout, first_tokens
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.rotary import long_rows
from counterpoint.forward.routing import find_routers, prove_routers
from counterpoint.forward.rows import EmbeddingRows, check_ids, longest_row
from counterpoint.log import logger
from counterpoint.model_seams import attention_of, class_of
from counterpoint.models.family import Family
from counterpoint.records import PairBatch, TokenPair
from counterpoint.step.layout_trial import LayoutTimes, LayoutTrial, no_trace
from counterpoint.tensor_parts import device_of_products

PROOF_TOKENS = 16
"""Tokens of the first pair's prompt, and of its completion, on which the head is proved."""

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
        vocab_size: EmbeddingRows | int | None,
        pad_id: int,
        engine: Engine,
        family: Family,
        pins: bool = True,
        balanced: bool = False,
    ) -> None:
        self.routers = find_routers(model) if balanced else ()
        self.model, self.engine = model, engine
        self.look: Callable[[TokenPair], TokenPair] = _as_it_is
        """Makes a pair ready for the model: decodes its pictures, where no worker has."""
        self._wanted, self._pins = wanted, pins
        self._device = device_of_products(model)
        self._pad_id, self._vocab_size, self._family = pad_id, vocab_size, family
        self._long_rows = long_rows(model)
        self._head: Head | None = None
        self._layout: Layout | None = None
        self._reason: str | None = None
        self._times: LayoutTimes | None = None
        self._chosen = False
        self._saw = False  # whether the layout was proved on pictures
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
            "times": None if self._times is None else asdict(self._times),
            "pictures": self._saw,
            "head": {"dense": self._head.dense, "kernel": self._head.kernel},
            "kernels": kernels.state_dict(kernels.proofs_of(self.model)),
            "under": self.conditions(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go by what an earlier process of the run found.

        Args:
            state: from ``state_dict``; up to 0.4 the layout alone, and the rest is proved again.
        """
        self._known = dict(state)
        self._head = self._layout = self._times = None
        self._chosen = "layout" in self._known

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
        pairs = [self.look(pair) for pair in pairs]
        layout = self._settled(pairs)
        if not self._saw and any(pair.seen for pair in pairs):
            layout = self._seen_through(layout, pairs)
        return self._cut(layout, pairs, most_tokens, most_pairs)

    def _seen_through(self, layout: Layout, pairs: Sequence[TokenPair]) -> Layout:
        """The layout for pairs with pictures, where it was proved on text alone.

        Ranks do not meet here, so that none decides for itself: several go by the reference.
        """
        reference = self._family.layouts[-1]
        if layout is reference:
            return layout
        if not ranks.alone():
            return reference
        with phase("proving the layout on the first pictures"):
            reason = self._disproof(layout, self.head, pairs)
        self._saw = True
        if reason is not None:
            must_hold(reference, self._wanted, reason)
            self._use(reference, reason)
            return reference
        return layout

    def _cut(
        self,
        layout: Layout,
        pairs: Sequence[TokenPair],
        most_tokens: int | None,
        most_pairs: int,
    ) -> list[PairBatch]:
        cut_group = partial(
            cut,
            most_pairs=most_pairs,
            most_tokens=most_tokens,
            tokens_of=layout.tokens,
            common=layout.common,
        )
        parts = [part for group in self._groups(pairs) for part in cut_group(group)]
        parts.sort(key=layout.tokens, reverse=True)
        return [self._batch(layout, part) for part in parts]

    def choose(
        self, pairs: Sequence[TokenPair], most_tokens: int | None, *, most_pairs: int
    ) -> None:
        """Ask the clock for the layout, where that is to be done; once in a run, by every rank.

        Args:
            pairs: this rank's share of the first step; none: nothing is done.
            most_tokens: as for ``micro_batches``.
            most_pairs: as for ``micro_batches``.
        """
        if not pairs:
            return
        pairs = [self.look(pair) for pair in pairs]
        self.prove(pairs)
        if self._chosen:
            return
        self._chosen = True
        *others, reference = self._family.layouts
        timed = any(layout.is_timed(self._device.type) for layout in others)
        if self._wanted != AUTO or not timed:
            return
        layout = self._settled(pairs)
        proved = torch.tensor(layout is not reference, dtype=torch.long, device=self._device)
        if not ranks.least(proved):
            if layout is not reference:
                self._use(reference, "another rank has found that it differs")
            return
        rival = self._rival(layout, pairs)
        with phase("timing layouts on the first pairs"):
            times = self._timed((layout, rival), pairs, most_tokens, most_pairs)
        slower = times.is_slower(layout.name, rival.name)
        self._times = times
        self._use(rival if slower else layout, times.in_words())

    def _rival(self, layout: Layout, pairs: Sequence[TokenPair]) -> Layout:
        """The next one of the family that is right too; every rank must call it."""
        *_, reference = possible = self._family.layouts
        for other in possible[possible.index(layout) + 1 : -1]:
            own = other.why_not(self.model) or self._disproof(other, self.head, pairs)
            if not any(ranks.gathered(own)):
                return other
        return reference

    def _timed(
        self,
        layouts: tuple[Layout, Layout],
        pairs: Sequence[TokenPair],
        most_tokens: int | None,
        most_pairs: int,
    ) -> LayoutTimes:
        def one_pass(layout: Layout, batch: PairBatch) -> None:
            with layout.running(self.model):
                with self.engine.autocast():
                    logps = pair_forward(self.model, self.head, batch, routers=self.routers).logps
                # unlike ``backward`` it calls no hook of DDP, nor of an optimizer that steps in one
                self.engine.gradient((logps.chosen - logps.rejected).sum(), self.model)

        trial = LayoutTrial(
            layouts,
            partial(self._cut, most_pairs=most_pairs),
            one_pass,
            self._device,
            together=Pass.FORWARD in self.engine.collective_passes,
        )
        with no_trace(self.model):
            return trial.times(pairs, most_tokens)

    def prove(self, pairs: Sequence[TokenPair]) -> None:
        """Choose layout, head and kernels on the first rank's pairs; every rank must call it.

        Ranks that chose by their own might compute in different ways, and not meet again.

        Args:
            pairs: this rank's first ones; a rank may have none, but not all.
        """
        if self._layout is None and not ranks.alone():
            few = [pairs[0], *_to_prove_on(pairs)] if pairs else []
            few = [self.look(pair) for pair in few]
            found = sorted(ranks.gathered(few), key=lambda few: not any(pair.seen for pair in few))
            first = next((few for few in found if few), None)
            if first is not None:
                self._settled_together(first)

    def _settled_together(self, few: Sequence[TokenPair]) -> None:
        try:
            self._settled(few[:1], few[1:], together=True)
        except (RuntimeError, MemoryError) as error:
            if not self.engine.in_step or not is_out_of_memory(error):
                raise
            raise SetupError(
                "CP505",
                f"memory ran out while head and layout were proved on {len(few) - 1} pairs, in "
                f"which all ranks take part ({first_line(error)}). Cut pairs with a lower "
                "max_length, or spread the model over more ranks.",
            ) from error

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

    def _settled(
        self,
        pairs: Sequence[TokenPair],
        few: Sequence[TokenPair] | None = None,
        *,
        together: bool = False,
    ) -> Layout:
        """The layout, chosen once in a run.

        Args:
            pairs: on the first of which the head is proved.
            few: on which the layout is; None: on the shortest of the pairs.
            together: every rank does it, on the same pairs.
        """
        if self._layout is None:
            layout = self._found_before()
            if layout is None:
                with phase("proving head and layout on the first pairs"):
                    layout = self._proved(pairs, few or pairs, together)
            self._use(layout, self._reason)
            if self.head.dense:
                logger().warning(
                    "%s does something to its logits that could not be reproduced; it computes "
                    "them itself, which needs more memory.",
                    class_of(self.model).__name__,
                )
            return layout
        return self._layout

    def _use(self, layout: Layout, reason: str | None) -> None:
        self._layout, self._reason = layout, reason
        logger().info("layout: %s%s", layout.name, f" ({reason})" if reason else "")

    def conditions(self) -> dict[str, Any]:
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
        if layout is None or known.get("under") != self.conditions():
            return None
        if layout.why_not(self.model) or known["head"]["kernel"] not in (None, *HEAD_KERNELS):
            return None
        kernels.load_state_dict(known["kernels"], kernels.proofs_of(self.model))
        self._head = replace(self._as_configured(), **known["head"])
        self._reason, self._saw = known["reason"], known.get("pictures", False)
        times = known.get("times")  # up to 0.4 no layout was timed
        self._times = None if times is None else LayoutTimes(**times)
        return layout

    def _proved(
        self, pairs: Sequence[TokenPair], few: Sequence[TokenPair], together: bool
    ) -> Layout:
        agreed: Callable[[Any], list[Any]] = ranks.gathered if together else lambda mine: [mine]
        head = self._proved_head(pairs[0])
        heads = agreed((head.dense, head.kernel))
        alike = all(other == heads[0] for other in heads)
        dense = any(other[0] for other in heads)
        self._head = head = replace(head, dense=dense, kernel=head.kernel if alike else None)
        wanted, possible = self._wanted, self._family.layouts
        layout, reason = first_choice(self.model, wanted, possible=possible)
        before = self._known.get("layout") if wanted == AUTO else None
        while layout is not possible[-1]:
            other = before in [one.name for one in possible] and before != layout.name
            own = "as before the checkpoint" if other else self._disproof(layout, head, few)
            disproof = next((one for one in agreed(own) if one), None)
            if disproof is None:
                break
            later = None
            if wanted == AUTO:
                rest = possible[possible.index(layout) + 1 :]
                layout, later = first_choice(self.model, wanted, possible=rest)
            else:  # which has no other than the one that was asked for
                layout = possible[-1]
            reason = reason or disproof or later
        must_hold(layout, wanted, reason)
        self._reason, self._saw = reason, any(pair.seen for pair in few)
        return layout

    def _proved_head(self, pair: TokenPair) -> Head:
        if self._vocab_size is not None:
            check_ids([pair], self._vocab_size)
        reference = self._family.layouts[-1]
        few = self._on_device(first_tokens(reference, pair, PROOF_TOKENS))
        inputs = reference.inputs(few)
        with self.engine.autocast():
            head = prove_head(self.model, self._as_configured(), few.input_ids, inputs)
            if self.routers:
                prove_routers(self.model, self.routers, inputs)
        return head

    def _disproof(self, layout: Layout, head: Head, pairs: Sequence[TokenPair]) -> str | None:
        few = layout.to_prove(_to_prove_on(pairs), pairs)
        batch, truth = self._batch(layout, few), self._batch(self._family.layouts[-1], few)
        with self.engine.autocast():
            gradient = self.engine.gradient if self.engine.in_step else None
            return layouts_disagree(self.model, head, batch, truth, gradient)


def _as_it_is(pair: TokenPair) -> TokenPair:
    return pair


def _to_prove_on(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """The shortest of some pairs; those with pictures first, for they have more to be proved."""
    return sorted(pairs, key=lambda pair: (not (pair.seen or pair.pictures), length(pair)))[
        :PROOF_PAIRS
    ]
