"""``counterpoint quickstart``: the five steps of a run, and what preferences add.

Model and tokenizer, options, data, trainer, train; then a table of exact matches on what was held
out for the base model, for supervised training on the chosen references, and for CPO. Everything
comes from the package and runs on the CPU; nothing is fetched.

Not here: what is learnt and by which model (``lessons``), the comparison (``supervised``), the
table (``table``).
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from transformers import PrinterCallback

from counterpoint.config import CPOConfig
from counterpoint.console.alone import one_thread, quiet
from counterpoint.console.phases import on_stderr, shown_on
from counterpoint.errors import SetupError
from counterpoint.invocation import EXTRAS, command, installing
from counterpoint.language import phrase
from counterpoint.models.trainable import freeze_parts
from counterpoint.objectives import DEFAULT_LOSS, SIMPO
from counterpoint.quickstart.display import Progress, say_step, tell
from counterpoint.quickstart.lessons import Lesson, lesson_of
from counterpoint.quickstart.supervised import train_supervised
from counterpoint.quickstart.table import Outcome
from counterpoint.runlog import check_writable, versions
from counterpoint.strict import strict_json
from counterpoint.trainer.trainer import CPOTrainer
from counterpoint.wrap import padded

STEPS = 120
STEP_PAIRS = 32
HELD_OUT = 400
"""Numbers that are translated, or tags that are read, to see how well a model does."""

BASE_FOLDER, RUN_FOLDER = "base", "cpo"
DATA_FILE, CONFIG_FILE, RESULT_FILE = "pairs.jsonl", "train.yaml", "result.json"
HELD_OUT_FILE = "held-out.jsonl"
"""Pairs for what was held out, each with the right text as its reference."""


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """What the quickstart found; ``result.json`` holds the same.

    Args:
        folder: where everything was written.
        model: folder of the model that CPO made, with its run's log.
        seed: of the pairs, their order, and what is held out.
        encoder_decoder: whether the model is one.
        vision: whether the model sees, and reads tags.
        chosen: of the chosen references, as if they were a model's.
        base: of the shipped model.
        supervised: of supervised training on the chosen.
        cpo: of CPO on the pairs.
    """

    folder: Path
    model: Path
    seed: int
    encoder_decoder: bool
    vision: bool
    chosen: Outcome
    base: Outcome
    supervised: Outcome
    cpo: Outcome

    @property
    def perfect_chosen(self) -> float:
        """Share of the chosen references without a flaw, in [0, 1]."""
        return self.chosen.exact


def run(
    output_dir: str | Path = "counterpoint-quickstart",
    *,
    seed: int = 0,
    steps: int = STEPS,
    held_out: int = HELD_OUT,
    encoder_decoder: bool = False,
    vision: bool = False,
) -> QuickstartResult:
    """Train, compare, and say what comes of it.

    Args:
        output_dir: where to write; if it holds anything, the first free "output_dir-2", -3, ...
        seed: of the pairs, their order, and what is held out; at least 0.
        steps: optimizer steps of either training, ``STEP_PAIRS`` pairs each; at least 1.
        held_out: numbers or tags to evaluate on, in [1, 500].
        encoder_decoder: whether to train the small model like mBART, instead of the decoder.
        vision: whether to train the small model that sees, to read tags.

    Returns:
        The numbers of the table.

    Raises:
        SetupError: CP501 for a folder that cannot be written, CP504 for "." or ".." that holds
            anything, since no numbered folder can lie beside it; CP502 for ``vision`` without
            Pillow.
        ConfigError: CP104 for two models.
    """
    lesson = lesson_of(encoder_decoder=encoder_decoder, vision=vision)
    check_writable(output_dir)
    folder = _vacant(Path(output_dir))
    options = training_options(folder, lesson, seed=seed, steps=steps)
    with shown_on(on_stderr(_write)), quiet(logging.WARNING), one_thread():
        tell(phrase(lesson.introduction))
        model, reader = lesson.load()
        count = f"{model.num_parameters():,}"
        say_step(1, "model and tokenizer", "{count} parameters, in the package", count=count)
        args = CPOConfig(**options)
        say_step(
            2,
            "options",
            "{steps} steps of {pairs} pairs, learning rate {rate}",
            steps=args.max_steps,
            pairs=args.per_device_train_batch_size,
            rate=f"{args.learning_rate:g}",
        )
        pairs = lesson.pairs(steps * STEP_PAIRS, seed)
        rows, chosen = lesson.rows(pairs, folder), lesson.of_chosen(pairs)
        _write_inputs(folder, lesson, options, rows)
        _show_pairs(pairs, rows, chosen.exact)
        freeze_parts(model, lesson.freeze)
        trainer = CPOTrainer(model, args, train_dataset=rows, processing_class=reader)
        say_step(4, "trainer", "CPOTrainer; it minimises")
        for line in trainer.objective.formula().splitlines():
            tell(f"     {line}")
        asked = lesson.held_out(held_out, seed)
        _write_rows(folder / HELD_OUT_FILE, lesson.held_out_rows(asked, seed, folder))
        answers = {"base": lesson.answers(model, reader, asked)}
        say_step(5, "train", "twice from the same model, the same pairs and steps")
        supervised, _ = lesson.load()
        freeze_parts(supervised, lesson.freeze)
        train_supervised(supervised, reader, rows, options, Progress("supervised"))
        answers["supervised"] = lesson.answers(supervised, reader, asked)
        _train_cpo(trainer)
        answers["CPO"] = lesson.answers(model, reader, asked)
        result = QuickstartResult(
            folder,
            Path(args.output_dir),
            seed,
            encoder_decoder,
            vision,
            chosen,
            *(lesson.judge(asked, texts) for texts in answers.values()),
        )
        _write_result(result, steps)
        _show_result(result, steps, held_out, lesson, lesson.examples(asked, answers))
    return result


def training_options(
    folder: Path, lesson: Lesson | None = None, *, seed: int, steps: int
) -> dict[str, Any]:
    """The options of the CPO run, for ``CPOConfig`` as for ``counterpoint train``.

    Args:
        folder: the quickstart's folder.
        lesson: what is learnt; None: the translation by a decoder.
        seed: of the order of the pairs.
        steps: optimizer steps, at least 1.
    """
    options: dict[str, Any] = {
        "output_dir": str(folder / RUN_FOLDER),
        "loss_type": DEFAULT_LOSS,
        "beta": 2.0,
        "cpo_alpha": 0.03,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": min(10, steps // 2),
        "max_steps": steps,
        "per_device_train_batch_size": STEP_PAIRS,
        "max_length": 64,
        "gradient_checkpointing": False,
        "logging_steps": max(1, steps // 6),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seed,
    }
    return options | (lesson.options(folder) if lesson else {})


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _vacant(wanted: Path) -> Path:
    """The folder itself, or a numbered one beside it if it holds anything."""
    if _is_free(wanted):
        return wanted
    if wanted.name in ("", ".."):
        raise SetupError("CP504", f"{wanted.resolve()} holds files already. Name a new folder.")
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))
    return next(folder for folder in numbered if _is_free(folder))


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _write_inputs(
    folder: Path, lesson: Lesson, options: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """All that ``counterpoint train`` needs to repeat the run."""
    (folder / BASE_FOLDER).mkdir(parents=True, exist_ok=True)
    for file in lesson.base.iterdir():
        shutil.copyfile(file, folder / BASE_FOLDER / file.name)
    _write_rows(folder / DATA_FILE, rows)
    given = {"model": str(folder / BASE_FOLDER), "dataset": str(folder / DATA_FILE), **options}
    if lesson.freeze:
        given["freeze"] = list(lesson.freeze)
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _train_cpo(trainer: CPOTrainer) -> None:
    trainer.add_callback(Progress("CPO"))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()


def _write_result(result: QuickstartResult, steps: int) -> None:
    perfect = {"perfect_chosen": result.perfect_chosen}
    content = {**asdict(result), **perfect, "steps": steps, "versions": versions()}
    text = strict_json(content, indent=2, default=str)
    (result.folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")


def _show_pairs(pairs: list[Any], rows: list[dict[str, Any]], perfect_chosen: float) -> None:
    text = "{count} pairs; chosen has fewer flaws than rejected"
    say_step(3, "data", text, count=f"{len(pairs):,}")
    text = "and has none in {share} of them. For example"
    tell(f"{'':<25}{phrase(text, share=f'{perfect_chosen:.1%}')}")
    # a usual one: chosen has two flaws, and the text fits on a line
    places = range(len(pairs))
    usual = [(len(pair.chosen.flaws) != 2, len(pair.rejected.text)) for pair in pairs]
    for name, cell in rows[min(places, key=usual.__getitem__)].items():
        tell(f"     {name:<9} {cell if isinstance(cell, str) else ', '.join(cell)}")


def _show_result(
    result: QuickstartResult, steps: int, held_out: int, lesson: Lesson, shown: list[str]
) -> None:
    rows = {
        phrase("base model"): result.base,
        phrase("supervised on the chosen, {steps} steps", steps=steps): result.supervised,
        phrase("CPO on the pairs, {steps} steps", steps=steps): result.cpo,
    }
    title, table = lesson.shown(result.chosen, rows, held_out)
    tell()
    for line in (title, *table, "", *shown):
        tell(line)
    tell()
    folder = shlex.quote(str(result.folder))
    here = command()
    for label, text in (
        (phrase("model and run"), str(result.model)),
        (phrase("data, config"), str(result.folder)),
        (phrase("look at it"), f"{here} report {shlex.quote(str(result.model))}"),
    ):
        tell(f"{padded(label, 15)}{text}", folded=False)
    if find_spec("bokeh") is None:
        tell(f"{padded(phrase('that needs'), 15)}{installing(EXTRAS['report'])}", folded=False)
    tell(phrase("next, the same run with another loss"))
    tell(f"  {here} train {folder}/{CONFIG_FILE} \\", folded=False)
    tell(f"    --loss_type {SIMPO.name} --beta 5 --simpo_gamma 2.5 \\", folded=False)
    tell(f"    --output_dir {folder}/simpo", folded=False)
