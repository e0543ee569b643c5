"""Which settings of the quickstart raise alarms, and which of them do damage.

    python benchmarks/alarms.py           all settings, into results/alarms.json
    python benchmarks/alarms.py --docs    write the table of docs/alarms.md from the results

One run a setting, of seed 5: the quickstart's base, pairs and steps, a log line a step, and 200
pairs with the right labels to evaluate on every twenty steps. Some two minutes on one core.

Not here: how well settings do over seeds (``quickstart``).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from step import put_between
from transformers import PrinterCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.console.alone import quiet
from counterpoint.quickstart.run import HELD_OUT, STEP_PAIRS, STEPS, training_options
from counterpoint.quickstart.table import judge_translations
from counterpoint.quickstart.task import held_out_numbers, preference_pairs
from counterpoint.quickstart.translate import load_base, translate
from counterpoint.runlog import read_run

SEED, EVALUATED = 5, 200
RESULTS = Path(__file__).parent / "results" / "alarms.json"
PAGE = Path(__file__).parents[1] / "docs" / "alarms.md"

SETTINGS: dict[str, dict[str, Any]] = {
    "shipped: CPO, beta 2, alpha 0.03": {},
    "alpha 0": {"cpo_alpha": 0.0},
    "beta 0.1, alpha 1 (TRL's)": {"beta": 0.1, "cpo_alpha": 1.0},
    "beta 0.1, alpha 0": {"beta": 0.1, "cpo_alpha": 0.0},
    "hinge, beta 1": {"loss_type": "hinge", "beta": 1.0},
    "CPO-SimPO, beta 5, gamma 2.5": {"loss_type": "simpo", "beta": 5.0, "simpo_gamma": 2.5},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "learning rate 1e-3, alpha 0": {"learning_rate": 1e-3, "cpo_alpha": 0.0},
    "chosen and rejected swapped": {"swapped": True},
}


def measure(setting: dict[str, Any]) -> dict[str, Any]:
    """Alarms of a run, its evaluated log-likelihoods, and its exact matches afterwards."""
    changes = dict(setting)
    pairs = preference_pairs(STEPS * STEP_PAIRS, SEED)
    if changes.pop("swapped", False):
        pairs = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
    watched = {
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 20,
        "eval_on_start": True,
    }
    with tempfile.TemporaryDirectory() as folder, quiet(50):
        model, tokenizer = load_base()
        options = training_options(Path(folder), seed=SEED, steps=STEPS)
        trainer = CPOTrainer(
            model,
            CPOConfig(**options | watched | changes),
            train_dataset=[pair.row for pair in pairs],
            eval_dataset=[pair.row for pair in preference_pairs(EVALUATED, SEED + 100)],
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        run = read_run(options["output_dir"])
    numbers = held_out_numbers(HELD_OUT, SEED)
    outcome = judge_translations(numbers, translate(model, tokenizer, numbers))
    return {
        "alarms": [f"{alarm['code']} at {alarm['step']}" for alarm in run.alarms],
        "nll": [line["eval_nll_loss"] for line in run.metrics if "eval_nll_loss" in line],
        "exact": outcome.exact,
        "number": outcome.number,
    }


def table(results: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| setting | chosen, nats a token: before | least | exact match | right number | alarms |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name, run in results["settings"].items():
        cells = [
            f"{-run['nll'][0]:.2f}",
            f"{-max(run['nll']):.2f}",
            f"{run['exact']:.1%}",
            f"{run['number']:.1%}",
            ", ".join(run["alarms"]) or "none",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the page's table, no more")
    if parser.parse_args().docs:
        put_between(PAGE, "alarms", table(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return 0
    torch.set_num_threads(1)
    found = {}
    for name, setting in SETTINGS.items():
        found[name] = measure(setting)
        print(table({"settings": {name: found[name]}}).splitlines()[-1], flush=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": 1,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "counterpoint")},
    }
    content = {"machine": machine, "seed": SEED, "settings": found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
