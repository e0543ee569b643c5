"""``run_smoke``: the whole run in miniature, everything it shows in one report.

    twin and a few pairs ──▶ trained and saved ──▶ three checks of the training
                             gradients of other layouts and splits ──▶ two checks
                             loaded again; resumed from a checkpoint ──▶ two checks
    (if asked) some steps of the real model ──▶ time, memory

All files lie in a temporary folder that vanishes; the run's own folder is not touched.

Not here: loading by name (the command does), what a check asks (``checks``).
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from counterpoint import ranks
from counterpoint.config import CPOConfig
from counterpoint.console.alone import one_thread, quiet
from counterpoint.console.phases import phase
from counterpoint.doctor.of_batch import steps_of
from counterpoint.errors import SetupError
from counterpoint.models.preparing import encoder_of, prepare_tokenizer
from counterpoint.models.tiny_twin import TOWER, tiny_twin, weights_outside_vocabulary
from counterpoint.models.trainable import freeze_parts
from counterpoint.models.weights import WeightsPolicy
from counterpoint.smoke import checks
from counterpoint.smoke.miniature import LEARNING_RATE, Miniature, Trained
from counterpoint.smoke.real import MeasuredSteps, measure
from counterpoint.smoke.report import Check, SmokeReport
from counterpoint.smoke.rows import own_pairs, shortened
from counterpoint.smoke.thumbnails import SIDE, looked_at

PAIRS = 24
"""Rows that a miniature trains on."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The run that is tried.

    Args:
        args: its options; ``output_dir`` is not touched.
        source: hub id or folder of the model, for messages.
        config: the model's configuration.
        tokenizer: of the run.
        rows: raw rows to train on, in any shape that the trainer takes.
        peft_config: of its adapter, or None.
        freeze: parts of a model that sees which do not train, of ``seeing.PARTS_THAT_SEE``.
    """

    args: CPOConfig
    source: str
    config: PretrainedConfig
    tokenizer: Any
    rows: Any
    peft_config: Any = None
    freeze: Sequence[str] = ()


def run_smoke(
    run: Subject,
    *,
    real_steps: int = 0,
    load: Callable[[], nn.Module] | None = None,
    begun: Callable[[str], None] = lambda twin: None,
    told: Callable[[Check], None] = lambda check: None,
) -> SmokeReport:
    """Try a run in miniature.

    Args:
        run: what to try.
        real_steps: steps of the real model to measure afterwards; 0: none.
        load: loads the real model; needed where ``real_steps`` is above 0.
        begun: called with what the miniature is made of.
        told: called with each check as soon as it is made.

    Raises:
        CounterpointError: with the code of what cannot be done, CP309 for a model without a
            twin and CP503 for several processes among them.
    """
    if ranks.launched() > 1:
        raise SetupError(
            "CP503",
            "a smoke run is one process, but several were launched (WORLD_SIZE). Start it without "
            "torchrun or accelerate launch.",
        )
    started = time.perf_counter()
    with quiet(logging.ERROR), tempfile.TemporaryDirectory(prefix="counterpoint-smoke-") as place:
        folder = Path(place)
        mini = _miniature(run, folder)
        twin = _in_words(mini)
        begun(twin)
        made = []
        with one_thread():
            for check in _checks(mini):
                made.append(check)
                told(check)
        real = None
        if real_steps and load is not None:
            real = _real(run, load(), folder / "real", real_steps)
    return SmokeReport(twin, tuple(made), real, time.perf_counter() - started)


def _miniature(run: Subject, folder: Path) -> Miniature:
    tokenizer = prepare_tokenizer(run.tokenizer)
    encoder = encoder_of(run.config, tokenizer, run.args)
    pairs = own_pairs(run.rows, encoder, run.args, PAIRS)
    policy = WeightsPolicy.of(run.args, adapter=run.peft_config is not None)
    model = tiny_twin(run.source, run.args, run.config, policy)
    freeze_parts(model, run.freeze)
    return Miniature(
        args=run.args,
        model=model,
        tokenizer=tokenizer,
        peft_config=run.peft_config,
        pairs=looked_at([shortened(pair) for pair in pairs], encoder),
        folder=folder,
    )


def _checks(mini: Miniature) -> Iterator[Check]:
    trained: list[Trained] = []

    def trains() -> checks.Judgement:
        trained.append(mini.train("trained", judged=True))
        return checks.loss_falls(mini, trained[0])

    def on_trained(check: Callable[..., checks.Judgement], *facts: Any) -> checks.Judgement:
        if not trained:
            return "not applicable", "the training did not come to its end"
        return check(*facts, trained[0])

    def judged(name: str, *work: Any) -> Check:
        with phase(f"trying: {name}"):
            return checks.make_check(name, *work)

    yield judged(checks.LOSS, trains)
    yield judged(checks.MOVE, on_trained, checks.weights_move)
    yield judged(checks.STAY, on_trained, checks.frozen_stay)
    yield judged(checks.LAYOUTS_AGREE, checks.layouts_agree, mini)
    yield judged(checks.SPLITS_AGREE, checks.splits_agree, mini)
    yield judged(checks.RELOAD, on_trained, checks.save_reloads, mini)
    yield judged(checks.RESUME, on_trained, checks.resume_goes_on, mini)


def _in_words(mini: Miniature) -> str:
    model = mini.model
    config: Any = model.config.get_text_config()
    outside = weights_outside_vocabulary(model)
    split, tower = mini.split(), getattr(model.config, TOWER, None)
    sees = f"and {tower.num_hidden_layers} of the tower, " if tower is not None else ""
    small = f", pictures to {SIDE} pixels a side" if any(p.pictures for p in mini.pairs) else ""
    return (
        f"A twin of {type(model).__name__}: {config.num_hidden_layers} layers, {sees}"
        f"{outside:,} weights and {model.num_parameters() - outside:,} of the vocabulary, at "
        f"random. {len(mini.pairs)} of the run's rows, cut to a few tokens{small}; {mini.steps} "
        "steps of "
        f"{split['per_device_train_batch_size']} x {split['gradient_accumulation_steps']} pairs. "
        f"Learning rate {LEARNING_RATE:g}, constant; else the run's own options."
    )


def _real(run: Subject, model: nn.Module, folder: Path, steps: int) -> MeasuredSteps:
    args = run.args
    rows = len(run.rows) if hasattr(run.rows, "__len__") else None
    plan = steps_of(args, rows, args.world_size)
    return measure(
        model,
        args,
        own_pairs(run.rows, encoder_of(run.config, run.tokenizer, args), args, steps * plan.pairs),
        run.tokenizer,
        peft_config=run.peft_config,
        folder=folder,
        steps=steps,
        run_steps=plan.total,
    )
