"""What an alarm does to a run: whether it ends it, on all ranks at once, and with which words.

Not here: when there is an alarm (``watch``), and saving the checkpoint (``CPOTrainer``).
"""

from __future__ import annotations

from pathlib import Path

import torch

from counterpoint import ranks
from counterpoint.alarms.remedies import Facts
from counterpoint.config import CPOConfig
from counterpoint.doctor.table import TABLE, severity_of
from counterpoint.errors import TrainingError
from counterpoint.runlog import Alarm, stream_file


def alarm_facts(args: CPOConfig, max_steps: int) -> Facts:
    """Of a run's options, what its alarms read.

    Args:
        args: the options.
        max_steps: optimizer steps of the run.
    """
    return Facts(
        step_pairs=args.step_pairs,
        warmup_steps=args.get_warmup_steps(max_steps),
        loss_type=args.loss_type,
        cpo_alpha=args.cpo_alpha,
        learning_rate=args.learning_rate,
        max_grad_norm=args.max_grad_norm,
        constrained=bool(args.constrained_by),
        steps=max_steps,
    )


def in_words(alarm: Alarm) -> str:
    """An alarm as a line for people, with what to try."""
    fix = f" Try: {'; '.join(alarm.fix.splitlines())}" if alarm.fix else ""
    return f"step {alarm.step}: {alarm.code} {alarm.seen}{fix}"


def ends_a_run(alarm: Alarm, args: CPOConfig) -> bool:
    """Whether the run ends after the step of this alarm; a note never ends one."""
    return args.on_alarm == "stop" and severity_of(alarm.code) != "note"


def agreed(alarm: Alarm | None, device: torch.device) -> Alarm | None:
    """The alarm that ends the run on every rank; of several, that of the lowest rank.

    Every rank must call it at the same step.

    Args:
        alarm: of this rank.
        device: of this rank.
    """
    raised = torch.tensor(alarm is not None, dtype=torch.int32, device=device)
    if not ranks.most(raised):
        return None
    return next(one for one in ranks.gathered(alarm) if one is not None)


def stopped_error(alarm: Alarm, step: int, folder: str) -> TrainingError:
    """The error with which a stopped run ends.

    Args:
        alarm: that stopped it.
        step: the last one.
        folder: the run directory.

    Returns:
        CP402, ready to raise.
    """
    checkpoint, alarms = Path(folder) / f"checkpoint-{step}", stream_file(folder, "alarms")
    return TrainingError(
        "CP402",
        f"stopped after step {step} by {alarm.code}, {TABLE[alarm.code].title}: {alarm.seen} The "
        f"checkpoint of the step is {checkpoint}, all alarms are in {alarms}. To resume from there "
        "all the same: resume_from_checkpoint with on_alarm='warn'.",
    )
