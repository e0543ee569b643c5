"""Measure the quickstart over seeds and settings: the numbers of docs/quickstart.md.

    python benchmarks/quickstart.py                   all settings, into results/quickstart.json
    python benchmarks/quickstart.py --only "shipped"  only those whose name begins so
    python benchmarks/quickstart.py --docs            write the table of the page from the results

Seeds 5 to 9: the settings were chosen on seeds 0 to 4. A seed decides the pairs, their order and
the held-out numbers. Some twenty minutes on one core.

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

import torch
from transformers import PrinterCallback, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.console.alone import quiet
from counterpoint.quickstart.run import HELD_OUT, STEP_PAIRS, STEPS, training_options
from counterpoint.quickstart.supervised import train_supervised
from counterpoint.quickstart.table import judge_translations
from counterpoint.quickstart.task import held_out_numbers, preference_pairs
from counterpoint.quickstart.translate import load_base, translate

SEEDS = range(5, 10)
RESULTS = Path(__file__).parent / "results" / "quickstart.json"
PAGE = Path(__file__).parents[1] / "docs" / "quickstart.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"

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


def measure(setting: dict[str, Any], seed: int) -> dict[str, float]:
    """Exact match and right numbers on the held-out numbers of a seed, and seconds to train."""
    changes = dict(setting)
    kind, steps = changes.pop("kind", "cpo"), changes.pop("steps", STEPS)
    rows = [pair.row for pair in preference_pairs(steps * STEP_PAIRS, seed)]
    numbers = held_out_numbers(HELD_OUT, seed)
    with tempfile.TemporaryDirectory() as folder, quiet(logging.WARNING):
        model, tokenizer = load_base()
        begun = time.perf_counter()
        options = training_options(Path(folder), seed=seed, steps=steps) | changes
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


def write_page() -> None:
    """Put the table of the results where the page has room for it."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = as_table(json.loads(RESULTS.read_text(encoding="utf-8"))["settings"])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="settings whose name begins so")
    parser.add_argument("--docs", action="store_true", help="write the page's table, no more")
    arguments = parser.parse_args()
    if arguments.docs:
        write_page()
        return 0
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {}
    if arguments.only and RESULTS.exists():
        found = json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]
    for name, setting in SETTINGS.items():
        if name.startswith(arguments.only):
            found[name] = [measure(setting, seed) for seed in SEEDS]
            print(as_table({name: found[name]}).splitlines()[-1], flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "counterpoint")},
    }
    ordered = {name: found[name] for name in SETTINGS if name in found}
    content = {"machine": machine, "seeds": list(SEEDS), "settings": ordered}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
