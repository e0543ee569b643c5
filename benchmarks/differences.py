"""Measure every difference between TRL's CPO and Counterpoint that docs/from-trl.md lists.

    python benchmarks/differences.py                      all of them, into results/differences.json
    python benchmarks/differences.py --only end_of_turn   one or several, printed, nothing written
    python benchmarks/differences.py --docs               write the table of docs/from-trl.md from
                                                          the results, measuring nothing

Both sides run in the same process or in turn, on the same models, rows and options. Timings are
medians of runs in turn, least and most beside them.

Not here: what is equal on both sides (tests/parity).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the small models and tokenizers of the tests
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch  # noqa: E402
from against_trl import arithmetic, cost, rows, running  # noqa: E402
from against_trl.setting import Finding  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "differences.json"
PAGE = ROOT / "docs" / "from-trl.md"
BEGIN, END = "<!-- differences: begin -->", "<!-- differences: end -->"

MEASUREMENTS: dict[str, Callable[[], Finding]] = {
    measure.__name__: measure
    for measure in (
        arithmetic.split_of_the_step,
        arithmetic.short_last_step,
        arithmetic.alpha_on_sums,
        rows.prompt_fills_the_budget,
        rows.completion_limit,
        rows.cuts_are_reported,
        running.non_finite_gradient,
        running.bfloat16_weights,
        cost.large_vocabulary,
        cost.preparing,
        rows.end_of_turn,
        arithmetic.attention_dropout,
        arithmetic.experts,
        running.no_accelerator,
        running.eval_sets,
        running.streams,
        arithmetic.evaluation_batch_size,
        arithmetic.logged_nll,
        arithmetic.logged_logits,
        arithmetic.ignored_smoothing,
        arithmetic.encoder_decoder,
    )
}
"""In the order of the table: what harms a model first, what is only a nuisance last."""


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average_1min": os.getloadavg()[0],
        "system": platform.system(),
        "python": platform.python_version(),
        **{
            name: metadata.version(name)
            for name in ("torch", "transformers", "trl", "datasets", "tokenizers", "counterpoint")
        },
    }


def measure(names: list[str]) -> dict[str, dict[str, Any]]:
    """Run the named measurements, printing each as it is done."""
    found = {}
    for name in names:
        start = time.perf_counter()
        finding = MEASUREMENTS[name]()
        found[name] = {**asdict(finding), "seconds": round(time.perf_counter() - start, 1)}
        print(f"\n{name} ({found[name]['seconds']} s)")
        print(f"  a user        {finding.what}")
        print(f"  TRL           {finding.trl}")
        print(f"  Counterpoint  {finding.ours}", flush=True)
    return found


def table(findings: dict[str, dict[str, Any]]) -> str:
    """The findings as the table of docs/from-trl.md."""
    lines = ["| A user ... | TRL 1.16 | Counterpoint | `--only` |", "| --- | --- | --- | --- |"]
    lines += [
        "| " + " | ".join(_cell(f[key]) for key in ("what", "trl", "ours")) + f" | `{name}` |"
        for name, f in findings.items()
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    # a bar ends a cell, even within code
    return text.replace("|", "\\|")


def write_docs(results: dict[str, Any]) -> None:
    """Put the table into the page, between its two marks."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    new = f"{head}{BEGIN}\n\n{table(results['findings'])}\n\n{END}{tail}"
    PAGE.write_text(new, encoding="utf-8")


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME")
    parser.add_argument("--docs", action="store_true", help="write docs/from-trl.md's table")
    options = parser.parse_args()
    if options.docs:
        write_docs(json.loads(RESULTS.read_text()))
        return
    about = machine()
    findings = measure(options.only or list(MEASUREMENTS))
    print("\n" + ", ".join(f"{key} {value}" for key, value in about.items()))
    if options.only is None:
        RESULTS.parent.mkdir(exist_ok=True)
        content = {"machine": about, "findings": findings}
        RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        print(f"written to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
