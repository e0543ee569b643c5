"""Keeps the running step, and writes it down where it is not finite.

Nothing is copied while steps are finite, but for the state of the random generators where there
is dropout. What is written is small: the micro-batches to blame, no weights. The first
``MOST_FILES`` such steps of a run are kept; a run that skips hundreds needs no more to look at.

Not here: the file (``replay``), the verdict on a step (``guard``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.config import CPOConfig
from counterpoint.forward.head import Head
from counterpoint.forward.router import RouterSums
from counterpoint.losses.objective import Objective
from counterpoint.model_seams import attention_of, loaded_from
from counterpoint.records import PairBatch, StepTotals
from counterpoint.runlog import logger
from counterpoint.step.guard import NotFinite
from counterpoint.step.replay.file import Culprit, Origin, Replay, Settings, write_replay
from counterpoint.step.replay.recompute import culprits_of, generator_states, restore_generators

MOST_FILES = 3
"""Steps of a run that are kept."""


class StepRecorder:
    """The step that runs, until it is known to be finite.

    Args:
        args: the run's options.
        objective: of the run.
    """

    def __init__(self, args: CPOConfig, objective: Objective) -> None:
        """Nothing runs yet."""
        self.args, self.objective = args, objective
        self.written = 0
        self._batches: list[PairBatch] = []
        self._generators: list[dict[str, Tensor]] = []
        self._totals: StepTotals | None = None
        self._router: RouterSums | None = None

    def begin(self, totals: StepTotals | None, router: RouterSums | None) -> None:
        """A step begins, or begins again; what is known of one before it is forgotten.

        Args:
            totals: its denominators; None for a batch that is a step of its own.
            router: its load-balancing sums, if it has them.
        """
        self._batches, self._generators = [], []
        self._totals, self._router = totals, router

    def watch(self, batch: PairBatch) -> None:
        """A micro-batch begins; reads nothing back from the device."""
        self._batches.append(batch)
        if not self.args.disable_dropout:
            self._generators.append(generator_states(self.args.device))

    def keep(
        self,
        verdict: NotFinite,
        step: int,
        model: nn.Module,
        head: Head,
        *,
        balancing_weight: float,
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
            balancing_weight: of the load-balancing loss, 0 without experts.

        Returns:
            A sentence, the same on every rank.
        """
        if self.written >= MOST_FILES:
            return f"It is not kept: {MOST_FILES} steps of this run are."
        self.written += 1
        said = []
        kept = self._kept(verdict, step, model, balancing_weight)
        if kept is not None:
            kept = replace(kept, culprits=self._culprits(kept, model, head))
            path = self._path(step)
            try:
                write_replay(kept, path)
                said.append(f"counterpoint replay {path} shows what broke first.")
            except OSError as error:
                said.append(f"{path} could not be written ({error.strerror or error}).")
        return " ".join(ranks.everywhere(said))

    def _kept(
        self,
        verdict: NotFinite,
        step: int,
        model: nn.Module,
        balancing_weight: float,
    ) -> Replay | None:
        """The micro-batches to blame; None where they are another rank's."""
        args = self.args
        blamed = [
            number
            for number, batch in enumerate(self._batches)
            if verdict.gradient or not verdict.rows.isdisjoint(batch.row_ids.tolist())
        ]
        if not blamed:
            return None
        batches = [self._batches[number] for number in blamed]
        return Replay(
            step=step,
            seen=verdict.seen,
            culprits=(),
            micro_batches=tuple(batch.pairs for batch in batches),
            totals=self._totals or self.objective.totals(batches[0]),
            router=self._router,
            objective=self.objective,
            settings=Settings(
                layout=batches[0].layout,
                autocast="bfloat16" if args.bf16 else "float16" if args.fp16 else "",
                device=args.device.type,
                checkpointing=bool(args.gradient_checkpointing),
                dropout=bool(self._generators),
                micro_batches=len(self._batches),
                ranks=args.world_size,
                balancing_weight=balancing_weight,
            ),
            origin=_origin(model),
            generators=tuple(self._generators[n] for n in blamed) if self._generators else (),
        )

    def _culprits(self, kept: Replay, model: nn.Module, head: Head) -> tuple[Culprit, ...]:
        before = generator_states(self.args.device)
        try:
            return culprits_of(kept, model, head, device=self.args.device)
        except Exception as error:  # whatever happens to the autopsy, the verdict stands
            logger().warning(
                "the step could not be looked into: %s: %s", type(error).__name__, error
            )
            return ()
        finally:
            model.zero_grad(set_to_none=True)
            restore_generators(before)

    def _path(self, step: int) -> Path:
        several = "" if ranks.alone() else f"-rank-{ranks.rank()}"
        return Path(self.args.output_dir) / f"replay-{step}{several}.safetensors"


def _origin(model: nn.Module) -> Origin:
    return Origin(
        model=loaded_from(model),
        kind=type(model).__name__,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        attention=attention_of(model) or "",
    )
