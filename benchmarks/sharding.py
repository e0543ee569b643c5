"""Claim: none, a price: what a step in shards costs against DDP on CPUs, and what memory it saves.

Two gloo processes train the same pairs, model and options twice: under FSDP2, with a model that
was loaded in shards, and under DDP, where each rank has the whole model.

Time: within one run of two processes the engines take turns, each with a trainer of its own, and
the one that was first in a round is second in the next. A round's ratio is FSDP2's median step over
DDP's; shown are the median of the rounds' ratios, the least and the most. Gloo exchanges through
the memory of one machine, and nothing hides an exchange on a CPU. So FSDP2 is expected to lose, and
by how much depends on the tokens of a micro-batch and not on the network of a real run.

Memory, of one rank:

- **state**: bytes of weights, gradients and moments, read off the tensors after training.
- **peak**: what ``plan_sharded.py`` has measured of the same row, whose results must be there,
  against half of DDP's state and what the planner says for the rest: what a micro-batch needs, and
  what is whole for a moment.

    python benchmarks/plan_sharded.py              first
    python benchmarks/sharding.py [--rows fp32 lora ...] [--rounds 3]
    python benchmarks/sharding.py --docs           write the table of docs/scaling.md

A row takes three minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import plan_sharded as sharded
import planner as single
import step

ROOT = Path(__file__).parents[1]
SIDES = {"fsdp2": sharded.RANKS, "ddp": 1}
"""Engine -> ranks that share a weight."""
ROWS = ("few", "fp32", "checkpointing", "share", "lora")
"""Of ``plan_sharded.WORK``."""
STEPS = 2


def state_bytes(trainer: Any) -> int:
    """Bytes of this rank's part of weights, gradients and moments, after training."""
    # a gradient is as its weight; those of the last step are given back already
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    gradients = sum(trainer.engine.own_part(w).nbytes for w in weights if w.grad is None)
    return single.state_of(trainer) + gradients


def timed(row: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Steps of both engines in turns, on this rank: seconds of each, by round; and their state."""
    seconds: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    state = {}
    for number in range(rounds):
        for side in sorted(SIDES, reverse=bool(number % 2)):
            trainer = sharded.trainer_of(
                row,
                folder,
                shards=SIDES[side],
                steps=STEPS + step.WARM_UP,
                run=f"{side}-{number}",
            )
            if trainer.engine.name != side:
                raise SystemExit(f"{trainer.engine.name} runs where {side} was asked for")
            seconds[side].append(step.train(trainer)["seconds"])
            state[side] = state_bytes(trainer)
    return {"seconds": seconds, "state": state}


def on_ranks(row: str, rounds: int, memory: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row's times and memory.

    Args:
        row: of ``plan_sharded.WORK``.
        rounds: in which each engine has a turn.
        memory: of the same row, as ``plan_sharded`` measured and predicted it.
        folder: for models and runs; has the tokenizer.
    """
    sharded.save_model(row, folder)
    found = sharded.launched(__file__, row, str(rounds), str(folder))
    # a step is over when the last rank is done with it
    seconds = {
        side: [
            [max(steps) for steps in zip(*ranks, strict=True)]
            for ranks in zip(*(one["seconds"][side] for one in found), strict=True)
        ]
        for side in SIDES
    }
    medians = {side: [*map(statistics.median, rows)] for side, rows in seconds.items()}
    ratios = [ours / ddp for ours, ddp in zip(medians["fsdp2"], medians["ddp"], strict=True)]
    return {
        "row": row,
        "rounds": rounds,
        "seconds": {side: statistics.median(times) for side, times in medians.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "state": {side: max(one["state"][side] for one in found) for side in SIDES},
        "rest": memory["peak"] - memory["held"],
        "peak": memory["measured"],
    }


def expected(result: dict[str, Any]) -> float:
    """Bytes of a rank's peak: its part of what DDP's holds, and the planner's rest."""
    part: float = result["state"]["ddp"] / sharded.RANKS + result["rest"]
    return part


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as docs/scaling.md shows them."""
    lines = [
        "| two gloo ranks on a CPU | a step under FSDP2, DDP's = 1 | state a rank: DDP, FSDP2 "
        "| half of DDP's state and the planner's rest | peak a rank, measured |",
        "|---|---|---|---|---|",
    ]
    for one in rows:
        ratio, state = one["ratio"], one["state"]
        lost = " **loses**" if ratio["median"] > 1 else ""
        sizes = [
            f"{size / 2**20:,.0f}"
            for size in (state["ddp"], state["fsdp2"], expected(one), one["peak"])
        ]
        lines.append(
            f"| {sharded.WORK[one['row']]['name']} | {ratio['median']:.2f} ({ratio['min']:.2f} to "
            f"{ratio['max']:.2f}){lost} | {sizes[0]} MiB, {sizes[1]} MiB | {sizes[2]} MiB, "
            f"{expected(one) / one['peak']:.2f} of the measured | {sizes[3]} MiB |"
        )
    lines.append("\n`python benchmarks/sharding.py`")
    return "\n".join(lines)


def remembered(row: str) -> dict[str, Any]:
    """What ``plan_sharded`` has kept of a row."""
    found = json.loads((step.RESULTS / "plan_sharded.json").read_text())["rows"]
    for one in found:
        if one["row"] == row:
            return dict(one)
    raise SystemExit(f"no memory was measured: python benchmarks/plan_sharded.py --rows {row}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("ROW", "ROUNDS", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        row, rounds, folder = options.worker
        print(json.dumps(timed(row, int(rounds), Path(folder))))
        return
    results = step.RESULTS / "sharding.json"
    if options.docs:
        rows = json.loads(results.read_text())["rows"]
        step.put_between(ROOT / "docs" / "scaling.md", "sharding", table(rows))
        return
    step.need_data()
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for row in options.rows:
            found = on_ranks(row, options.rounds, remembered(row), Path(folder))
            step.keep({**found, "machine": step.machine()}, results, ROWS)
            print(table([found]), flush=True)


if __name__ == "__main__":
    main()
