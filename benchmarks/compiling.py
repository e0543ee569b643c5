"""Claim: torch.compile does not pay on a CPU, which is why it is off by default.

The same steps, their pairs of many lengths, with ``torch_compile`` off and then on, in processes of
their own. After some steps to warm up, time and compilations are counted.

    python benchmarks/compiling.py [--steps 100] [--warm_up 20]
                                                 into results/compiling.json: 15 minutes
    python benchmarks/compiling.py --docs        write the table of docs/speed.md

Not here: GPUs, where it may pay (``gpu.py``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import step

SIDES = {"off": False, "on": True}
PAIRS = 8


def measure(compiled: bool, steps: int, warm_up: int, folder: Path) -> dict[str, Any]:
    """Train in this process; seconds of each step, and how many graphs were compiled in it."""
    from torch._dynamo.utils import counters
    from transformers import TrainerCallback

    graphs: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            graphs.append(counters["stats"]["unique_graphs"])

    work = {
        "model": step.SMALL,
        "pairs": PAIRS,
        "bf16": True,
        "data": "hh",
        "steps": steps + warm_up,
        "options": {"torch_compile": compiled},
    }
    trainer = step.trainer_of("counterpoint", work, folder)
    trainer.add_callback(Count())
    seconds = step.train(trainer)["seconds"]
    # the first step's seconds are not timed: its graphs are
    return {
        "graphs": graphs[-1],
        "graphs_after": graphs[-1] - graphs[-steps - 1],
        "warm_up_seconds": sum(seconds[:-steps]),
        "seconds": seconds[-steps:],
    }


def table(results: dict[str, Any]) -> str:
    """The results as docs/speed.md shows them."""
    steps, warm_up = results["steps"], results["warm_up"]
    lines = [
        f"| torch_compile, bf16 | first {warm_up} steps | graphs compiled "
        f"| in the {steps} steps after | seconds of one of those |",
        "|---|---|---|---|---|",
    ]
    for side in SIDES:
        run = results["sides"][side]
        lines.append(
            f"| {side} | {run['warm_up_seconds']:.0f} s | {run['graphs']} | {run['graphs_after']} "
            f"| {run['median']:.2f} ({run['min']:.2f} to {run['max']:.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warm_up", type=int, default=20)
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=4, metavar=("SIDE", "STEPS", "WARM_UP", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        side, steps, warm_up, folder = options.worker
        print(json.dumps(measure(SIDES[side], int(steps), int(warm_up), Path(folder))))
        return
    if options.docs:
        results = json.loads((step.RESULTS / "compiling.json").read_text())
        step.put_between(step.ROOT / "docs" / "speed.md", "compiling", table(results))
        return
    step.need_data()
    sides: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for side in SIDES:
            run = step.in_own_process(
                __file__, side, str(options.steps), str(options.warm_up), folder
            )
            seconds = run.pop("seconds")
            run |= {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
            sides[side] = run
            print(side, run, flush=True)
    results = {
        "machine": step.machine(),
        "steps": options.steps,
        "warm_up": options.warm_up,
        "sides": sides,
    }
    options.into.mkdir(parents=True, exist_ok=True)
    (options.into / "compiling.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
