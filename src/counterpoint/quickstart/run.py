"""``counterpoint quickstart``: the five steps of a run, and what preferences add.

Model and tokenizer, options, data, trainer, train; then a table of exact matches on held-out
numbers for the base model, for supervised training on the chosen translations, and for CPO.
Everything comes from the package and runs on the CPU; nothing is fetched. The model is a decoder,
or an encoder-decoder that is told the languages instead of reading a prompt.

Not here: the task (``task``), the comparison (``supervised``), the table (``table``).
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
from collections.abc import Iterable
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
from counterpoint.objectives import DEFAULT_LOSS, SIMPO
from counterpoint.quickstart.display import Progress, say_step, tell
from counterpoint.quickstart.supervised import train_supervised
from counterpoint.quickstart.table import Outcome, examples, judge_translations, outcome_table
from counterpoint.quickstart.task import (
    PERFECT,
    Pair,
    german,
    held_out_numbers,
    held_out_pairs,
    preference_pairs,
)
from counterpoint.quickstart.translate import BASES, load_base, translate
from counterpoint.runlog import check_writable, versions
from counterpoint.strict import strict_json
from counterpoint.trainer.trainer import CPOTrainer
from counterpoint.wrap import padded

STEPS = 120
STEP_PAIRS = 32
ENCODER_DECODER: dict[str, Any] = {
    "max_length": 32,
    "source_lang": "en_XX",
    "target_lang": "de_DE",
}
"""Options that an encoder-decoder's run has beside a decoder's, or in their place."""
HELD_OUT = 400
"""Numbers that are translated to see how well a model does."""

BASE_FOLDER, RUN_FOLDER = "base", "cpo"
DATA_FILE, CONFIG_FILE, RESULT_FILE = "pairs.jsonl", "train.yaml", "result.json"
HELD_OUT_FILE = "held-out.jsonl"
"""Pairs for held-out numbers, each with the right spelling as its reference."""

INTRODUCTION = """\
Counterpoint's quickstart: English number words into German, learnt from pairs
of translations of which even the better one is seldom right.
"""


@dataclass(frozen=True, slots=True)
class QuickstartResult:
    """What the quickstart found; ``result.json`` holds the same.

    Args:
        folder: where everything was written.
        model: folder of the model that CPO made, with its run's log.
        seed: of the pairs, their order, and the held-out numbers.
        encoder_decoder: whether the model is one.
        perfect_chosen: share of the chosen references without a flaw, in [0, 1].
        base: of the shipped model.
        supervised: of supervised training on the chosen.
        cpo: of CPO on the pairs.
    """

    folder: Path
    model: Path
    seed: int
    encoder_decoder: bool
    perfect_chosen: float
    base: Outcome
    supervised: Outcome
    cpo: Outcome


def run(
    output_dir: str | Path = "counterpoint-quickstart",
    *,
    seed: int = 0,
    steps: int = STEPS,
    held_out: int = HELD_OUT,
    encoder_decoder: bool = False,
) -> QuickstartResult:
    """Train, compare, and say what comes of it.

    Args:
        output_dir: where to write; if it holds anything, the first free "output_dir-2", -3, ...
        seed: of the pairs, their order, and the held-out numbers; at least 0.
        steps: optimizer steps of either training, ``STEP_PAIRS`` pairs each; at least 1.
        held_out: numbers to evaluate on, in [1, 500].
        encoder_decoder: whether to train the small model like mBART, instead of the decoder.

    Returns:
        The numbers of the table.

    Raises:
        SetupError: CP501 for a folder that cannot be written, CP504 for "." or ".." that holds
            anything, since no numbered folder can lie beside it.
    """
    check_writable(output_dir)
    folder = _vacant(Path(output_dir))
    options = training_options(folder, seed=seed, steps=steps, encoder_decoder=encoder_decoder)
    with shown_on(on_stderr(_write)), quiet(logging.WARNING), one_thread():
        tell(phrase(INTRODUCTION))
        model, tokenizer = load_base(encoder_decoder)
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
        pairs = preference_pairs(steps * STEP_PAIRS, seed)
        perfect_chosen = sum(pair.chosen.flaws == PERFECT for pair in pairs) / len(pairs)
        rows = pair_rows(pairs, encoder_decoder)
        _write_inputs(folder, options, rows, BASES[encoder_decoder])
        _show_pairs(pairs, rows, perfect_chosen)
        trainer = CPOTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
        say_step(4, "trainer", "CPOTrainer; it minimises")
        for line in trainer.objective.formula().splitlines():
            tell(f"     {line}")
        numbers = held_out_numbers(held_out, seed)
        _write_held_out(folder, numbers, seed, encoder_decoder)
        translations = {"base": translate(model, tokenizer, numbers)}
        say_step(5, "train", "twice from the same model, the same pairs and steps")
        supervised, _ = load_base(encoder_decoder)
        train_supervised(supervised, tokenizer, rows, options, Progress("supervised"))
        translations["supervised"] = translate(supervised, tokenizer, numbers)
        _train_cpo(trainer)
        translations["CPO"] = translate(model, tokenizer, numbers)
        result = QuickstartResult(
            folder,
            Path(args.output_dir),
            seed,
            encoder_decoder,
            perfect_chosen,
            *(judge_translations(numbers, texts) for texts in translations.values()),
        )
        _write_result(result, steps)
        _show_result(result, steps, held_out, examples(numbers, translations))
    return result


def training_options(
    folder: Path, *, seed: int, steps: int, encoder_decoder: bool = False
) -> dict[str, Any]:
    """The options of the CPO run, for ``CPOConfig`` as for ``counterpoint train``.

    Args:
        folder: the quickstart's folder.
        seed: of the order of the pairs.
        steps: optimizer steps, at least 1.
        encoder_decoder: whether the model is one.
    """
    options = {
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
    return options | ENCODER_DECODER if encoder_decoder else options


def pair_rows(pairs: Iterable[Pair], encoder_decoder: bool) -> list[dict[str, str]]:
    """The pairs as rows: an encoder-decoder reads a source, a decoder a prompt."""
    return [pair.translation if encoder_decoder else pair.row for pair in pairs]


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
    folder: Path, options: dict[str, Any], rows: list[dict[str, str]], base: Path
) -> None:
    """All that ``counterpoint train`` needs to repeat the run."""
    (folder / BASE_FOLDER).mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        shutil.copyfile(file, folder / BASE_FOLDER / file.name)
    with (folder / DATA_FILE).open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    given = {"model": str(folder / BASE_FOLDER), "dataset": str(folder / DATA_FILE), **options}
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")


def _write_held_out(folder: Path, numbers: list[int], seed: int, encoder_decoder: bool) -> None:
    """What ``counterpoint evaluate`` needs, which the run itself does not read."""
    pairs = held_out_pairs(numbers, seed)
    with (folder / HELD_OUT_FILE).open("w", encoding="utf-8") as stream:
        for pair, row in zip(pairs, pair_rows(pairs, encoder_decoder), strict=True):
            whole = {**row, "reference": german(pair.chosen.number)}
            stream.write(json.dumps(whole, ensure_ascii=False) + "\n")


def _train_cpo(trainer: CPOTrainer) -> None:
    trainer.add_callback(Progress("CPO"))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()


def _write_result(result: QuickstartResult, steps: int) -> None:
    content = {**asdict(result), "steps": steps, "versions": versions()}
    text = strict_json(content, indent=2, default=str)
    (result.folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")


def _show_pairs(pairs: list[Pair], rows: list[dict[str, str]], perfect_chosen: float) -> None:
    text = "{count} pairs; chosen has fewer flaws than rejected"
    say_step(3, "data", text, count=f"{len(pairs):,}")
    text = "and has none in {share} of them. For example"
    tell(f"{'':<25}{phrase(text, share=f'{perfect_chosen:.1%}')}")
    # a usual one: chosen has two flaws, and the text fits on a line
    places = range(len(pairs))
    usual = [(len(pair.chosen.flaws) != 2, len(pair.rejected.text)) for pair in pairs]
    for name, text in rows[min(places, key=usual.__getitem__)].items():
        tell(f"     {name:<9} {text}")


def _show_result(result: QuickstartResult, steps: int, held_out: int, shown: list[str]) -> None:
    tell()
    tell(phrase("{count} numbers that no training has seen, translated", count=held_out))
    rows = {
        phrase("base model"): result.base,
        phrase("supervised on the chosen, {steps} steps", steps=steps): result.supervised,
        phrase("CPO on the pairs, {steps} steps", steps=steps): result.cpo,
    }
    for line in outcome_table(rows, result.perfect_chosen):
        tell(line)
    tell(phrase("(right number: exact, or wrong only in ways that the references are)"))
    tell()
    for line in shown:
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
