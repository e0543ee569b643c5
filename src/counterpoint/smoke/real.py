"""A few steps of the real model: how long one takes, how much memory, how long the run would be.

The run's own options, rows, adapter and precision; nothing is kept of what is trained.

Not here: the miniature (``miniature``), and memory by arithmetic, without a step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from counterpoint.config import CPOConfig
from counterpoint.records import TokenPair
from counterpoint.smoke.rows import prepared
from counterpoint.trainer.trainer import CPOTrainer
from counterpoint.wrap import wrap

NOTHING_KEPT: dict[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": False,
    "do_eval": False,
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": "none",
    "resume_from_checkpoint": None,
    "hub_token": None,
    "model_init_kwargs": None,
    "monitor_steps": 0,
    "disable_tqdm": True,
    "on_alarm": "warn",
    "early_stopping_patience": None,
    "early_stopping_threshold": 0.0,
}
"""Options that leave of a run only its steps."""

_PEAK, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """What some steps of the real model cost.

    Args:
        pairs: of a step.
        seconds: of each step measured.
        peak_bytes: most memory in use: of the device, or of this process on a CPU; None where
            the system does not tell.
        steps: optimizer steps of the whole run; None for a stream without max_steps.
        loss: of the last step measured.
    """

    pairs: int
    seconds: tuple[float, ...]
    peak_bytes: int | None
    steps: int | None
    loss: float

    @property
    def step_seconds(self) -> float:
        """Of a usual step: the first one, which also warms up, counts only if it is alone."""
        later = self.seconds[1:] or self.seconds
        return sum(later) / len(later)

    @property
    def run_seconds(self) -> float | None:
        """Of the whole run, if every step takes as long."""
        return None if self.steps is None else self.steps * self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "step_pairs": self.pairs,
            "seconds": [round(one, 4) for one in self.seconds],
            "step_seconds": round(self.step_seconds, 4),
            "peak_bytes": self.peak_bytes,
            "run_steps": self.steps,
            "run_seconds": None if self.run_seconds is None else round(self.run_seconds, 1),
            "loss": self.loss,
            "assumptions": ASSUMPTIONS,
        }

    def as_lines(self, width: int) -> Iterator[str]:
        """For people, no wider than ``width`` columns."""
        took = ", ".join(time_in_words(one) for one in self.seconds)
        peak = self.peak_bytes
        memory = "" if peak is None else f"; peak memory {peak / 2**30:.2f} GiB"
        steps = f"{len(self.seconds)} step{'' if len(self.seconds) == 1 else 's'}"
        yield from wrap(
            f"{steps} of {self.pairs:,} pairs: {took}; loss {self.loss:.4g}{memory}",
            width,
            "real model      ",
            " " * 16,
        )
        if self.run_seconds is None:
            whole = "as long as the stream lasts: max_steps is not set"
        else:
            whole = (
                f"about {time_in_words(self.run_seconds)}: {self.steps:,} steps x "
                f"{time_in_words(self.step_seconds)}. {ASSUMPTIONS}"
            )
        yield from wrap(whole, width, "whole run       ", " " * 16)


ASSUMPTIONS = (
    "It assumes that every step costs what these cost after the first: pairs as long as these, "
    "taken evenly from the set, and nothing else on the machine. Evaluation, checkpoints and "
    "tokenizing come on top."
)


class StepClock(TrainerCallback):
    """How long each step takes, from its first forward pass to the moved weights."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        _finish(args.device)
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        _finish(args.device)
        self.seconds.append(time.perf_counter() - self._started)


def measure(
    model: nn.Module,
    args: CPOConfig,
    pairs: Sequence[TokenPair],
    tokenizer: PreTrainedTokenizerBase,
    *,
    peft_config: Any,
    folder: Path,
    steps: int,
    run_steps: int | None,
) -> MeasuredSteps:
    """Train a few steps and see what they cost.

    Args:
        model: the real one, loaded; it is changed.
        args: the run's options.
        pairs: of the run, uncut; repeated where they do not fill the steps.
        tokenizer: of the run.
        peft_config: of the adapter, or None.
        folder: for what the trainer writes.
        steps: how many, at least 1.
        run_steps: of the whole run, if that is known.

    Raises:
        CounterpointError: where the run itself would stop.
    """
    clock = StepClock()
    options: dict[str, Any] = {
        **NOTHING_KEPT,
        "output_dir": str(folder),
        "max_steps": steps,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    own = replace(args, **options)
    trainer = CPOTrainer(
        model=model,
        args=own,
        train_dataset=prepared(pairs),
        processing_class=tokenizer,
        # one that the run begins with is on the model
        peft_config=None if hasattr(model, "peft_config") else peft_config,
        callbacks=[clock],
    )
    trainer.examined = True  # its options are not those that were given
    trainer.remove_callback(PrinterCallback)
    _forget_peak(own.device)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return MeasuredSteps(
        pairs=min(len(pairs), args.step_pairs),
        seconds=tuple(clock.seconds),
        peak_bytes=_peak(own.device),
        steps=run_steps,
        loss=losses[-1] if losses else float("nan"),
    )


def time_in_words(seconds: float) -> str:
    """A time in the unit that suits it: "0.42 s", "38 s", "5.1 min", "3.2 h", "2.4 days"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    for most, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < most:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5", encoding="ascii")  # Linux begins the peak anew


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError):
        for line in _PEAK.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak: int | None = getattr(psutil.Process().memory_info(), "peak_wset", None)  # Windows
    return peak
