"""Measure the quickstart over seeds and settings: the numbers of docs/quickstart.md.

    python benchmarks/quickstart.py                   all settings, into results/quickstart.json
    python benchmarks/quickstart.py --only "shipped"  only those whose name begins so
    python benchmarks/quickstart.py --both            the shipped setting, decoder against
                                                      encoder-decoder, into quickstart_both.json
    python benchmarks/quickstart.py --vision          the model that sees, and as a control the same
                                                      with blank pictures, into
                                                      quickstart_vision.json
    python benchmarks/quickstart.py --docs            write the tables of the pages from the results

Seeds 5 to 9: the settings were chosen on seeds 0 to 4. A seed decides the pairs, their order and
what is held out. Some twenty minutes on one core; both models on seeds 5 to 7, four; the model that
sees on the same seeds, ten.

Not here: the quickstart's own display, and how the base model is made.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import step
import torch
from transformers import PrinterCallback, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.console.alone import quiet
from counterpoint.models.trainable import freeze_parts
from counterpoint.quickstart.lessons import Lesson, Reading, Translating
from counterpoint.quickstart.run import HELD_OUT, STEP_PAIRS, STEPS, training_options
from counterpoint.quickstart.supervised import train_supervised
from counterpoint.quickstart.table import Outcome
from counterpoint.quickstart.tags import Tag, characters_right

SEEDS = range(5, 10)
SEEDS_OF_BOTH = range(5, 8)
RESULTS = Path(__file__).parent / "results" / "quickstart.json"
BOTH = RESULTS.with_name("quickstart_both.json")
VISION = RESULTS.with_name("quickstart_vision.json")
DOCS = Path(__file__).parents[1] / "docs"
PAGES_OF_BOTH = ("quickstart.md", "translation.md")
PAGES_OF_VISION = ("quickstart.md", "vision.md", "vision.zh-CN.md")

SUPERVISED, UNTRAINED = "supervised", "untrained"
SETTINGS: dict[str, dict[str, Any]] = {
    "base model": {"kind": UNTRAINED},
    "supervised on the chosen": {"kind": SUPERVISED},
    "supervised, learning rate 5e-4": {"kind": SUPERVISED, "learning_rate": 5e-4},
    "supervised, learning rate 1e-3": {"kind": SUPERVISED, "learning_rate": 1e-3},
    "supervised, four times the steps": {"kind": SUPERVISED, "steps": 4 * STEPS},
    "shipped: CPO, beta 2, alpha 0.03": {},
    "CPO, beta 2, alpha 0": {"cpo_alpha": 0.0},
    "CPO, beta 2, alpha 0.1": {"cpo_alpha": 0.1},
    "CPO, beta 2, alpha 1": {"cpo_alpha": 1.0},
    "CPO, beta 0.5, alpha 0.03": {"beta": 0.5},
    "CPO, beta 0.1, alpha 1 (TRL's)": {"beta": 0.1, "cpo_alpha": 1.0},
    "CPO, learning rate 1e-4": {"learning_rate": 1e-4},
    "CPO, learning rate 5e-4": {"learning_rate": 5e-4},
    "CPO, learning rate 1e-3": {"learning_rate": 1e-3},
    "CPO-SimPO, beta 5, gamma 2.5, alpha 0.03": {
        "loss_type": "simpo",
        "beta": 5.0,
        "simpo_gamma": 2.5,
    },
    "hinge, beta 1, alpha 0.03": {"loss_type": "hinge", "beta": 1.0},
    "ORPO, weight 1": {"loss_type": "orpo", "beta": 1.0, "cpo_alpha": 1.0},
}


def measure(
    setting: dict[str, Any], seed: int, lesson: Lesson | None = None, *, prefers: bool = False
) -> dict[str, float]:
    """How well a model does on what a seed holds out, and seconds to train.

    Args:
        setting: options, and under "kind" and "steps" what is trained and for how long.
        seed: of the pairs, their order and what is held out.
        lesson: what is learnt; None: the translation by a decoder.
        prefers: whether it is also found of CPO how often it prefers chosen in held-out pairs.
    """
    lesson = lesson or Translating()
    changes = dict(setting)
    kind, steps = changes.pop("kind", "cpo"), changes.pop("steps", STEPS)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place, quiet(logging.WARNING):
        folder = Path(place)
        rows = lesson.rows(lesson.pairs(steps * STEP_PAIRS, seed), folder)
        asked = lesson.held_out(HELD_OUT, seed)
        model, reader = lesson.load()
        freeze_parts(model, lesson.freeze)
        begun = time.perf_counter()
        options = training_options(folder, lesson, seed=seed, steps=steps) | changes
        if kind == SUPERVISED:
            train_supervised(model, reader, rows, options, TrainerCallback())
        elif kind == "cpo":
            args = CPOConfig(**options)
            trainer = CPOTrainer(model, args, train_dataset=rows, processing_class=reader)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        found["seconds"] = time.perf_counter() - begun
        if prefers:
            scores = trainer.evaluate(lesson.held_out_rows(asked, seed, folder))
            found["prefers"] = scores["eval_rewards/accuracies"]
        outcome = lesson.judge(asked, lesson.answers(model, reader, asked))
    return {**shares(outcome), **found}


def shares(outcome: Outcome) -> dict[str, float]:
    """An outcome's shares by their names, those that it has."""
    return {name: share for name, share in asdict(outcome).items() if share is not None}


def as_table(settings: dict[str, list[dict[str, float]]]) -> str:
    """The page's table: least, median and most of the exact matches; median of the rest."""
    lines = [
        "| what | exact match: least | median | most | right number, median |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, runs in settings.items():
        exact = [run["exact"] for run in runs]
        right = median(run["number"] for run in runs)
        cells = [f"{value:.1%}" for value in (min(exact), median(exact), max(exact), right)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_both(seed: int) -> list[dict[str, Any]]:
    """Either model with what is shipped: a row each, with the share of perfect chosen."""
    lessons = {"decoder": Translating(), "encoder-decoder": Translating(encoder_decoder=True)}
    return [
        {
            "model": name,
            "seed": seed,
            "chosen": lesson.of_chosen(lesson.pairs(STEPS * STEP_PAIRS, seed)).exact,
            "base": measure({"kind": UNTRAINED}, seed, lesson),
            "supervised": measure({"kind": SUPERVISED}, seed, lesson),
            "cpo": measure({}, seed, lesson),
        }
        for name, lesson in lessons.items()
    ]


def table_of_both(rows: list[dict[str, Any]]) -> str:
    """Exact matches, a row for each model and seed."""
    lines = [
        "| model | seed | perfect among the chosen | base | supervised on the chosen | CPO |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row["model"], row["seed"])):
        shares = [row["chosen"], *(row[name]["exact"] for name in ("base", "supervised", "cpo"))]
        cells = " | ".join(f"{share:.1%}" for share in shares)
        lines.append(f"| {row['model']} | {row['seed']} | {cells} |")
    return "\n".join(lines)


def measure_vision(seed: int) -> list[dict[str, Any]]:
    """The model that sees, with pictures and with blank ones: a row each."""
    rows = []
    for pictures in ("tags", "blank"):
        lesson = Reading(blank=pictures == "blank")
        asked = lesson.held_out(HELD_OUT, seed)
        chosen = lesson.of_chosen(lesson.pairs(STEPS * STEP_PAIRS, seed))
        rows.append(
            {
                "pictures": pictures,
                "seed": seed,
                "chosen": shares(chosen),
                "fixed": shares(best_fixed_answer(lesson, asked)),
                "base": measure({"kind": UNTRAINED}, seed, lesson),
                "supervised": measure({"kind": SUPERVISED}, seed, lesson),
                "cpo": measure({}, seed, lesson, prefers=True),
            }
        )
    return rows


def best_fixed_answer(lesson: Lesson, asked: list[Tag]) -> Outcome:
    """Of the codes as the one answer for all tags, the best: as far as one gets without looking."""
    codes = [tag.code for tag in asked]
    best = max(codes, key=lambda text: sum(characters_right(code, text) for code in codes))
    return lesson.judge(asked, [best] * len(asked))


def table_of_vision(rows: list[dict[str, Any]]) -> str:
    """Exact matches and characters, a row for each kind of pictures and seed."""
    lines = [
        "| pictures | seed | chosen references | best fixed answer | base "
        "| supervised on the chosen | CPO | CPO prefers chosen |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row["pictures"] == "blank", row["seed"])):
        cells = [
            f"{row[name]['exact']:.1%}, {row[name]['characters']:.1%}"
            for name in ("chosen", "fixed", "base", "supervised", "cpo")
        ]
        prefers = f"{row['cpo']['prefers']:.1%}"
        lines.append(f"| {row['pictures']} | {row['seed']} | {' | '.join([*cells, prefers])} |")
    return "\n".join(lines)


def write_pages() -> None:
    """Put the tables of the results where the pages have room for them."""
    settings = json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]
    step.put_between(DOCS / "quickstart.md", "settings", as_table(settings))
    rows = json.loads(BOTH.read_text(encoding="utf-8"))["rows"]
    for page in PAGES_OF_BOTH:
        step.put_between(DOCS / page, "quickstart_both", table_of_both(rows))
    rows = json.loads(VISION.read_text(encoding="utf-8"))["rows"]
    for page in PAGES_OF_VISION:
        step.put_between(DOCS / page, "quickstart_vision", table_of_vision(rows))


def machine() -> dict[str, Any]:
    """What the numbers were measured with."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "counterpoint")},
    }


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """The results of ``SEEDS_OF_BOTH``, with what they were measured with."""
    content = {"machine": machine(), "seeds": list(SEEDS_OF_BOTH), "rows": rows}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="settings whose name begins so")
    parser.add_argument("--both", action="store_true", help="decoder against encoder-decoder")
    parser.add_argument("--vision", action="store_true", help="the model that sees")
    parser.add_argument("--docs", action="store_true", help="write the pages' tables, no more")
    arguments = parser.parse_args()
    if arguments.docs:
        write_pages()
        return 0
    torch.set_num_threads(1)
    if arguments.both:
        rows = [row for seed in SEEDS_OF_BOTH for row in measure_both(seed)]
        print(table_of_both(rows))
        write_rows(BOTH, rows)
        return 0
    if arguments.vision:
        rows = [row for seed in SEEDS_OF_BOTH for row in measure_vision(seed)]
        print(table_of_vision(rows))
        write_rows(VISION, rows)
        return 0
    found: dict[str, list[dict[str, float]]] = {}
    if arguments.only and RESULTS.exists():
        found = json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]
    for name, setting in SETTINGS.items():
        if name.startswith(arguments.only):
            found[name] = [measure(setting, seed) for seed in SEEDS]
            print(as_table({name: found[name]}).splitlines()[-1], flush=True)
    ordered = {name: found[name] for name in SETTINGS if name in found}
    content = {"machine": machine(), "seeds": list(SEEDS), "settings": ordered}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
