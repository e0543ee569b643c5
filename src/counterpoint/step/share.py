"""Where memory runs out, pairs are cut into smaller micro-batches and done again.

Law 1 allows it: how a step is cut changes its gradient by rounding only. What was begun is thrown
away, the budget becomes half the tokens of the micro-batch that failed, and all of the step's
pairs are cut by it anew, until they fit. The budget is kept for the rest of the run, and one
warning names it.

Each rank does that alone, while the others wait for it where gradients are added up. That is in
the backward of a step's last micro-batch, which no rank can do again: some of its gradients may
have been added already. So the last one is always one that should fit: it has no more tokens than
another one of the same step, or than one that went through a whole step before; where there is no
such thing, a filler of the shortest pair goes last. Tokens stand for memory here, which is nearly
true and no promise: a rank that runs out even there stops the run.

Where ranks meet in every pass, as they do where each holds a part of the weights, none can begin
again, since the others wait for it in the middle of a forward. There a rank whose memory runs out
ends the run, and says which budget to set. Ranks also need as many micro-batches as each other;
those that have fewer are filled up with micro-batches of weight 0.

Not here: how a micro-batch is laid out (``assembly``), what must be thrown away (``runner``),
and memory that runs out elsewhere: for the optimizer, a checkpoint (``engine.memory``), or the
proofs of head and layout (``assembly``).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from counterpoint import ranks
from counterpoint.data.batching import filler, length
from counterpoint.engine.memory import is_out_of_memory
from counterpoint.errors import SetupError, first_line
from counterpoint.log import logger
from counterpoint.records import PairBatch, TokenPair

Result = TypeVar("Result")
Cut = Callable[[Sequence[TokenPair], int | None], list[PairBatch]]
"""Pairs and most tokens of a micro-batch -> micro-batches, those of most tokens first."""


class TokenBudget:
    """Most input tokens of a micro-batch, padding included; learnt by running out of memory.

    Args:
        tokens: to start with, at least 1; None: pairs are cut by their number until then.
        lowered: called after pairs have been done with a lower budget than before.
    """

    def __init__(self, tokens: int | None, lowered: Callable[[], None]) -> None:
        self.tokens, self.lowered = tokens, lowered
        self.proved = 0
        """Tokens of the largest micro-batch that went through a whole step."""

    def state_dict(self) -> dict[str, Any]:
        """What was learnt, for a checkpoint."""
        return {"tokens": self.tokens, "proved": self.proved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume with it."""
        self.tokens, self.proved = state["tokens"], state["proved"]

    @staticmethod
    def least(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What all of several ranks have learnt, for a rank that may be on any of their devices.

        Args:
            states: of ``state_dict``.
        """
        known = [state["tokens"] for state in states if state["tokens"] is not None]
        return {
            "tokens": min(known, default=None),
            "proved": min(state["proved"] for state in states),
        }

    @staticmethod
    def least_of_each(states: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """The same of several budgets, in the order in which each rank has its own."""
        return [TokenBudget.least(each) for each in zip(*states, strict=True)]

    def agree(self, device: torch.device) -> None:
        """Take the lowest of all ranks; every rank must call it."""
        unset = torch.iinfo(torch.long).max
        own = torch.tensor(unset if self.tokens is None else self.tokens, device=device)
        lowest = ranks.least(own)
        self.tokens = None if int(lowest) == unset else int(lowest)


class Share:
    """One rank's pairs of a step or of an evaluation's window, cut into micro-batches that fit.

    Args:
        pairs: of the share; none for a window whose pairs another one holds.
        cut: how they are cut.
        budget: shared by all shares of a kind.
        ranks: how many add up their gradients in the last micro-batch.
        in_step: ranks meet in every pass.
    """

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        cut: Cut,
        budget: TokenBudget,
        *,
        ranks: int = 1,
        in_step: bool = False,
    ) -> None:
        """Cut them by the budget as it stands."""
        self.pairs, self.budget = pairs, budget
        self._cut, self._ranks, self._in_step = cut, 1 if in_step else ranks, in_step
        self._running: PairBatch | None = None
        self._committed = False
        self.batches = self._batches()

    def __len__(self) -> int:
        """Number of micro-batches, as they are cut now."""
        return len(self.batches)

    def __iter__(self) -> Iterator[PairBatch]:
        """The micro-batches; within ``fitted``, the last one given is the one that fails."""
        for batch in self.batches:
            self._running = batch
            yield batch

    def fill_up(self, device: torch.device) -> Share:
        """Have as many micro-batches as the rank that has most; where ranks meet in every pass.

        Every rank must call it.

        Args:
            device: of the run.

        Returns:
            The share itself.
        """
        if not self._in_step:
            return self
        mine = torch.tensor([len(self.batches), not self.pairs], device=device)
        most, some_have_none = ranks.most(mine).tolist()
        spare = min(self.pairs, key=length) if self.pairs else None
        if some_have_none:
            spare = next((one for one in ranks.gathered(spare) if one is not None), None)
        missing = most - len(self.batches)
        if missing and spare is not None:
            self.batches += self._cut([filler(spare)], None) * missing
        return self

    def commit(self) -> None:
        """From here on other ranks have a part in the work, and it cannot be done again."""
        self._committed = True

    def prove(self) -> None:
        """All of the share went through a step, and would again."""
        self.budget.proved = max(self.budget.proved, *map(_tokens, self.batches), 0)

    def fitted(self, work: Callable[[], Result], undo: Callable[[], None] | None = None) -> Result:
        """Do the work; where memory runs out, undo it, cut again, and do all of it again.

        Args:
            work: goes through the share's micro-batches, by iterating it.
            undo: throws away what an unfinished ``work`` has left, if it leaves anything.

        Returns:
            What ``work`` returns.

        Raises:
            SetupError: CP505 for a pair that does not fit alone, and for memory that runs out
                after ``commit``.
        """
        first: PairBatch | None = None
        while True:
            self._running, self._committed = None, self._in_step
            try:
                result = work()
                break
            except (RuntimeError, MemoryError) as error:
                if self._running is None or not is_out_of_memory(error):
                    raise
                seen = first_line(error)
            # only here is the traceback gone, whose frames hold the graph of what failed
            failed, self._running = self._running, None
            if undo is not None:
                undo()
            free(failed.row_ids.device)
            self._refuse_hopeless(failed, seen)
            first = first or failed
            self.budget.tokens = _tokens(failed) // 2
            self.batches = self._batches()
        if first is not None:
            logger().warning(
                "a micro-batch of %d pairs and %d tokens did not fit in memory; its step was cut "
                "and done again, and micro-batches now hold at most %d tokens, which changes no "
                "gradient. max_micro_batch_tokens=%d starts the next run there.",
                len(first),
                _tokens(first),
                self.budget.tokens,
                self.budget.tokens,
            )
            self.budget.lowered()
        return result

    def _batches(self) -> list[PairBatch]:
        if not self.pairs:
            return []
        batches = self._cut(self.pairs, self.budget.tokens)
        if self._ranks > 1 and len(batches) == 1 and _tokens(batches[0]) > self.budget.proved:
            batches += self._cut([filler(min(self.pairs, key=length))], None)
        return batches

    def _refuse_hopeless(self, failed: PairBatch, seen: str) -> None:
        remedy = (
            "The weights are as they were before the step. Cut pairs with a lower max_length, or "
            "need less memory for each token: gradient_checkpointing, bf16, a LoRA adapter."
        )
        row, alone = int(failed.row_ids[0]), len(failed) == 1
        smaller_helps = not alone or not self._in_step or row < 0  # which is a filler's
        if self._committed and smaller_helps:
            largest = max(map(_tokens, self.batches))
            where = "take part in every pass" if self._in_step else "add up their gradients"
            raise SetupError(
                "CP505",
                f"memory ran out in the micro-batch of {_tokens(failed)} tokens in which ranks "
                f"{where}, where the others cannot go back ({seen}). Set "
                f"max_micro_batch_tokens={largest // 2} or lower. {remedy}",
            )
        if alone:
            raise SetupError(
                "CP505",
                f"row {row} does not fit in memory ({seen}), though its "
                f"{_tokens(failed)} input tokens were alone. {remedy}",
            )


def _tokens(batch: PairBatch) -> int:
    return batch.cost


def free(device: torch.device) -> None:
    """Give back what nothing holds any more: Python's cycles, then the device's cache."""
    gc.collect()
    empty = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty is not None:
        empty()
