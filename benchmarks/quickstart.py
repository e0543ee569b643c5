"""Measure the quickstart over seeds and settings: the numbers of docs/quickstart.md.

    python benchmarks/quickstart.py                   all settings, into results/quickstart.json
    python benchmarks/quickstart.py --only "shipped"  only those whose name begins so
    python benchmarks/quickstart.py --both            the shipped setting, decoder against
                                                      encoder-decoder, into quickstart_both.json
    python benchmarks/quickstart.py --docs            write the tables of the pages from the results

Seeds 5 to 9: the settings were chosen on seeds 0 to 4. A seed decides the pairs, their order and
the held-out numbers. Some twenty minutes on one core; both models on seeds 5 to 7, four.

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
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import step
import torch
from transformers import PrinterCallback, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.console.alone import quiet
from counterpoint.quickstart.run import HELD_OUT, STEP_PAIRS, STEPS, pair_rows, training_options
from counterpoint.quickstart.supervised import train_supervised
from counterpoint.quickstart.table import judge_translations
from counterpoint.quickstart.task import PERFECT, held_out_numbers, preference_pairs
from counterpoint.quickstart.translate import load_base, translate

SEEDS = range(5, 10)
SEEDS_OF_BOTH = range(5, 8)
RESULTS = Path(__file__).parent / "results" / "quickstart.json"
BOTH = RESULTS.with_name("quickstart_both.json")
DOCS = Path(__file__).parents[1] / "docs"
PAGES_OF_BOTH = ("quickstart.md", "translation.md")

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


def measure(setting: dict[str, Any], seed: int, encoder_decoder: bool = False) -> dict[str, float]:
    """Exact match and right numbers on the held-out numbers of a seed, and seconds to train."""
    changes = dict(setting)
    kind, steps = changes.pop("kind", "cpo"), changes.pop("steps", STEPS)
    rows = pair_rows(preference_pairs(steps * STEP_PAIRS, seed), encoder_decoder)
    numbers = held_out_numbers(HELD_OUT, seed)
    with tempfile.TemporaryDirectory() as folder, quiet(logging.WARNING):
        model, tokenizer = load_base(encoder_decoder)
        begun = time.perf_counter()
        made = training_options(
            Path(folder), seed=seed, steps=steps, encoder_decoder=encoder_decoder
        )
        options = made | changes
        if kind == SUPERVISED:
            train_supervised(model, tokenizer, rows, options, TrainerCallback())
        elif kind == "cpo":
            args = CPOConfig(**options)
            trainer = CPOTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        seconds = time.perf_counter() - begun
        texts = translate(model, tokenizer, numbers)
    outcome = judge_translations(numbers, texts)
    return {"exact": outcome.exact, "number": outcome.number, "seconds": seconds}


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
    pairs = preference_pairs(STEPS * STEP_PAIRS, seed)
    perfect = sum(pair.chosen.flaws == PERFECT for pair in pairs) / len(pairs)
    return [
        {
            "model": "encoder-decoder" if encoder_decoder else "decoder",
            "seed": seed,
            "chosen": perfect,
            "base": measure({"kind": UNTRAINED}, seed, encoder_decoder),
            "supervised": measure({"kind": SUPERVISED}, seed, encoder_decoder),
            "cpo": measure({}, seed, encoder_decoder),
        }
        for encoder_decoder in (False, True)
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


def write_pages() -> None:
    """Put the tables of the results where the pages have room for them."""
    settings = json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]
    step.put_between(DOCS / "quickstart.md", "settings", as_table(settings))
    rows = json.loads(BOTH.read_text(encoding="utf-8"))["rows"]
    for page in PAGES_OF_BOTH:
        step.put_between(DOCS / page, "quickstart_both", table_of_both(rows))


def machine() -> dict[str, Any]:
    """What the numbers were measured with."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "counterpoint")},
    }


def main() -> int:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="settings whose name begins so")
    parser.add_argument("--both", action="store_true", help="decoder against encoder-decoder")
    parser.add_argument("--docs", action="store_true", help="write the pages' tables, no more")
    arguments = parser.parse_args()
    if arguments.docs:
        write_pages()
        return 0
    torch.set_num_threads(1)
    if arguments.both:
        rows = [row for seed in SEEDS_OF_BOTH for row in measure_both(seed)]
        print(table_of_both(rows))
        content = {"machine": machine(), "seeds": list(SEEDS_OF_BOTH), "rows": rows}
        BOTH.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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
