"""Claim: looking whether all weights are finite after every update costs at most 1 % of a step.

In one run every second step is looked at and the others are not, so that both sides take turns on
the same model, machine and minute. Two figures a row:

1. ``look``: seconds inside the look itself, its verdict read at once, against the steps without.
2. ``whole``: the steps with a look against those without, ends of steps to ends of steps. It has
   the noise of the machine in it, which is larger than what is looked for; it is there to show
   that nothing is hidden outside the look.

    python benchmarks/finite.py [--rows weights ...]     into results/finite.json
    python benchmarks/finite.py --docs                   the table of docs/faults.md, no more

Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import monitor
import step

RESULTS = step.RESULTS / "finite.json"
PAGE = step.ROOT / "docs" / "faults.md"
GOAL = 1.0
"""Percent of a step."""
STEPS = {"quickstart": 40, "weights": 16, "weights-bf16": 16, "lora": 16}
WARM_UP = 3


def measured(row: str, folder: Path) -> dict[str, Any]:
    """A run in which every second step is looked at; the first ones only warm up."""
    from transformers import TrainerCallback

    trainer = monitor.trainer_of(row, folder, steps=STEPS[row] + WARM_UP, every=0)
    ends: list[float] = []
    inside: dict[int, float] = {}
    look = trainer.runner.updates.look

    def timed(model: Any, optimizer: Any, step: int, run: Path) -> None:
        if step % 2 == 0:
            return
        begun = time.perf_counter()
        look(model, optimizer, step, run)
        trainer.runner.updates.settle()
        inside[step] = time.perf_counter() - begun

    class Ends(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    trainer.runner.updates.look = timed
    trainer.add_callback(Ends())
    trainer.train()
    took = {number + 1: ends[number] - ends[number - 1] for number in range(WARM_UP, len(ends))}
    looked = {number: seconds for number, seconds in took.items() if number in inside}
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    return {
        "weights": sum(p.numel() for p in weights),
        "look": [inside[number] for number in looked],
        "with": list(looked.values()),
        "without": [seconds for number, seconds in took.items() if number not in inside],
    }


def table(found: dict[str, Any]) -> str:
    """What the page shows."""
    lines = [
        f"| every second step looked at; goal {GOAL:g} % | weights that train | step without, "
        "median (least to most) | the look | of a step | whole steps with / without |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row, one in found["rows"].items():
        base, look = statistics.median(one["without"]), statistics.median(one["look"])
        whole = statistics.median(one["with"]) / base
        lines.append(
            f"| {monitor.WORK[row]['name']} | {one['weights']:,} | {base:.3f} s "
            f"({min(one['without']):.3f} to {max(one['without']):.3f}) | {1e3 * look:.2f} ms "
            f"({1e3 * min(one['look']):.2f} to {1e3 * max(one['look']):.2f}) | "
            f"{100 * look / base:.2f} % | {whole:.3f} |"
        )
    machine = found["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"{machine['cores']} cores, {machine['cpu']}, load {machine['load_average_1min']:.1f}. "
            "`python benchmarks/finite.py`",
        ]
    )


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the page's table, no more")
    parser.add_argument("--rows", nargs="+", choices=list(STEPS), default=list(STEPS))
    asked = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": {}}
    if asked.docs:
        step.put_between(PAGE, "finite", table(found))
        return
    for row in asked.rows:
        with tempfile.TemporaryDirectory(prefix="counterpoint-finite-") as place:
            step.tokenizer_for(32000).save_pretrained(Path(place) / "tokenizer")
            found["rows"][row] = measured(row, Path(place))
    found["machine"] = step.machine()
    step.write_results(RESULTS, found)
    print(table(found))


if __name__ == "__main__":
    main()
