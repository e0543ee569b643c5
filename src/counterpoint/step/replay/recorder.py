"""Keeps the running step, and writes it down where it is not finite.

Nothing is copied while steps are finite, but for the state of the random generators where there
is dropout. What is written is small: the micro-batches to blame, no weights. Their pictures are
written too, up to ``MOST_BYTES``. The first ``MOST_FILES`` such steps of a run are kept; a run that
skips hundreds needs no more to look at.

Not here: the file (``file``), the verdict on a step (``step.guard``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.forward.head import Head
from counterpoint.log import logger
from counterpoint.model_seams import attention_of, class_of, loaded_from
from counterpoint.records import PairBatch
from counterpoint.step.constraint_set import ConstraintSet
from counterpoint.step.guard import NotFinite
from counterpoint.step.loss import StepDenominators, StepLoss
from counterpoint.step.random_states import generator_states, generators_kept
from counterpoint.step.replay.file import Culprit, Held, Origin, Replay, Settings, write_replay
from counterpoint.step.replay.held import HeldSet, held_constraint
from counterpoint.step.replay.pictures import MOST_BYTES, bytes_of_pictures
from counterpoint.step.replay.recompute import culprits_of

MOST_FILES = 3
"""Steps of a run that are kept."""


class StepRecorder:
    """The step that runs, until it is known to be finite.

    Args:
        loss: of the run.
        constraints: of the run, perhaps none.
        settings: how its steps are computed; layout and micro-batches are those of each step.
        folder: of the run.
        device: of the model.
    """

    def __init__(
        self,
        loss: StepLoss,
        constraints: ConstraintSet,
        settings: Settings,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.loss, self.constraints, self.settings = loss, constraints, settings
        self._folder, self._device = folder, device
        self.written = 0
        self._batches: list[PairBatch] = []
        self._generators: list[dict[str, Tensor]] = []
        self._step: StepDenominators | None = None

    def begin(self, step: StepDenominators | None) -> None:
        """A step begins, or begins again; what is known of one before it is forgotten.

        Args:
            step: its denominators; None for a batch that is a step of its own.
        """
        self._batches, self._generators, self._step = [], [], step

    def watch(self, batch: PairBatch) -> None:
        """A micro-batch begins; reads nothing back from the device."""
        self._batches.append(batch)
        if self.settings.dropout:
            self._generators.append(generator_states(self._device))

    def keep(
        self,
        verdict: NotFinite,
        step: int,
        model: nn.Module,
        head: Head,
        *,
        in_step: bool = False,
    ) -> str:
        """Write the step down, and say where.

        Does it again first, on the weights that it failed on, so that the file holds what was
        not finite even where those weights are never saved. Every rank must call it. The random
        generators are left as they are.

        Args:
            verdict: of the step.
            step: its number, from 1.
            model: not wrapped for distributed training; loses its gradients.
            head: of the model.
            in_step: ranks meet in every pass, so that none can do a step again alone.

        Returns:
            A sentence, the same on every rank.
        """
        if self.written >= MOST_FILES:
            return f"It is not kept: {MOST_FILES} steps of this run are."
        self.written += 1
        said = []
        kept = self.replay(step, model, verdict)
        passes = _most_micro_batches(kept, self._device) if in_step else None
        done = self.replay(step, model) if kept is None and passes else kept
        culprits = () if done is None else self._culprits(done, model, head, passes)
        if kept is not None and (size := _size_of_pictures(kept)) > MOST_BYTES:
            said.append(
                f"It is not kept: its pictures take {size / 2**20:,.0f} MiB, and such a file holds "
                f"{MOST_BYTES // 2**20:,}."
            )
        elif kept is not None:
            kept = replace(kept, culprits=culprits)
            path = self._path(step)
            try:
                write_replay(kept, path)
                said.append(f"counterpoint replay {path} shows what broke first.")
            except OSError as error:
                said.append(f"{path} could not be written ({error.strerror or error}).")
        return " ".join(ranks.everywhere(said))

    def replay(
        self, step: int, model: nn.Module, verdict: NotFinite | None = None
    ) -> Replay | None:
        """The running step as a file keeps it.

        Args:
            step: its number, from 1.
            model: not wrapped for distributed training.
            verdict: of the step, to have the micro-batches to blame alone; None: all of them.

        Returns:
            None where those to blame are another rank's.
        """
        chosen = [n for n, batch in enumerate(self._batches) if _blamed(batch, verdict)]
        if not chosen:
            return None
        batches = [self._batches[number] for number in chosen]
        denominators = self._step or self.loss.denominators(batches[:1])
        return Replay(
            step=step,
            seen="" if verdict is None else verdict.seen,
            culprits=(),
            micro_batches=tuple(batch.pairs for batch in batches),
            totals=denominators.totals,
            router=denominators.router,
            objective=self.loss.objective,
            settings=replace(
                self.settings, layout=batches[0].layout, micro_batches=len(self._batches)
            ),
            origin=_origin(model),
            generators=tuple(self._generators[n] for n in chosen) if self._generators else (),
            held=Held(
                all=tuple(
                    held_constraint(one.asked, one.weight, one.bound)
                    for one in self.constraints.all
                ),
                totals=denominators.constraints,
                normalized=self.constraints.normalized,
                initial=self.constraints.initial_values(batches),
            ),
        )

    def _culprits(
        self, kept: Replay, model: nn.Module, head: Head, passes: int | None
    ) -> tuple[Culprit, ...]:
        own = {one.asked.name: one.asked for one in self.constraints.all}
        held = HeldSet(kept, own, self.constraints.policy)
        with generators_kept(self._device):
            try:
                return culprits_of(kept, model, head, device=self._device, held=held, passes=passes)
            except Exception as error:  # whatever happens to the autopsy, the verdict stands
                if passes is not None:  # the others are in a pass that only this rank can end
                    raise
                logger().warning(
                    "the step could not be looked into: %s: %s", type(error).__name__, error
                )
                return ()
            finally:
                model.zero_grad(set_to_none=True)

    def _path(self, step: int) -> Path:
        several = "" if ranks.alone() else f"-rank-{ranks.rank()}"
        return self._folder / f"replay-{step}{several}.safetensors"


def _size_of_pictures(kept: Replay) -> int:
    return bytes_of_pictures([pair for batch in kept.micro_batches for pair in batch])


def _most_micro_batches(kept: Replay | None, device: torch.device) -> int:
    """How many micro-batches of its own any rank does again."""
    own = 0 if kept is None else len(kept.micro_batches)
    return int(ranks.most(torch.tensor(own, device=device)))


def _blamed(batch: PairBatch, verdict: NotFinite | None) -> bool:
    if verdict is None or verdict.gradient:
        return True
    return not verdict.rows.isdisjoint(batch.row_ids.tolist())


def _origin(model: nn.Module) -> Origin:
    return Origin(
        model=loaded_from(model),
        kind=class_of(model).__name__,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=attention_of(model) or "",
    )
