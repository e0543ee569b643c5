"""Claim: none, a prediction: what models of 8, 32 and 70 billion weights need on 8, 64, 512 ranks.

Nothing here is measured. The planner rehearses each model's code without data, all of its layers
and every weight of them, as ``counterpoint plan`` does, on the machines that it assumes.

    python benchmarks/scaling_table.py             plan, and keep the results: 2 minutes
    python benchmarks/scaling_table.py --docs      write the table of docs/scaling.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import step
import torch

ROOT = Path(__file__).parents[1]
RANKS = (8, 64, 512)
A_NODE = 8
MEMORY = 80 * 10**9
SIZES = (4096, 16384)
PROMPT, COMPLETION = 64, 64

LLAMA = {
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "8B": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "32B": {
        "model_type": "qwen3",
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
    "70B": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}


def predicted(name: str) -> list[dict[str, Any]]:
    """What is said of a model on each number of ranks."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from counterpoint import CPOConfig
    from counterpoint.planner.machine import SHARE
    from counterpoint.planner.plan import Planner
    from counterpoint.planner.scaling import Cluster, scaling_of
    from counterpoint.planner.shapes import Lengths

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[name]))
    # the layout that needs more memory, as a plan for a GPU takes where both may run
    args = CPOConfig(output_dir="unused", use_cpu=True, bf16=True, layout="padded")
    lengths = Lengths(np.asarray([[PROMPT, COMPLETION, COMPLETION]] * 8))
    first = Planner(model, args, lengths, ranks=RANKS[0], shards=RANKS[0], device="cuda")
    groups = first.groups
    rows = []
    for ranks in RANKS:
        planner = first.among(ranks, ranks)
        demand = planner.demand(planner.setting)
        cluster = Cluster(ranks, nodes=max(1, ranks // A_NODE))
        work = demand.large.work(whole=True)
        found = scaling_of(groups, work, cluster, {str(tokens): tokens for tokens in SIZES})
        rows.append(
            {
                "model": name,
                "weights": demand.holdings.parameters,
                "ranks": ranks,
                "nodes": cluster.nodes,
                "state": demand.holdings.least,
                "layer": groups.largest.weights,
                "peak": demand.peak(SIZES[-1]),
                "most": demand.budget(round(SHARE * MEMORY)),
                "traffic": found.traffic.total,
                "break_even": found.break_even,
                "mfu": {str(pace.tokens): pace.mfu for pace in found.paces[: len(SIZES)]},
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as docs/scaling.md shows them; all of them predicted."""
    lines = [
        "| predicted, not measured | ranks | state a device | exchanged a micro-batch | peak at "
        "16k tokens | most tokens in 80 GB | break-even | of peak at 4k | at 16k |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        fits = row["most"] >= SIZES[0]
        most = f"{row['most']:,}" if fits else "**does not fit**"
        low, high = (f"{row['mfu'][str(tokens)]:.0%}" for tokens in SIZES)
        lines.append(
            f"| {row['model']} ({row['weights'] / 1e9:.1f}e9 weights) | {row['ranks']} | "
            f"{row['state'] / 1e9:.1f} GB | {row['traffic'] / 1e9:.0f} GB | "
            f"{row['peak'] / 1e9:.1f} GB | {most} | {row['break_even']:,} | {low} | {high} |"
        )
    lines.append("\n`python benchmarks/scaling_table.py`")
    return "\n".join(lines)


def kept() -> list[dict[str, Any]]:
    """The rows as they were last predicted."""
    found: list[dict[str, Any]] = json.loads((step.RESULTS / "scaling.json").read_text())["rows"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="write the table, plan nothing")
    options = parser.parse_args()
    if not options.docs:
        rows: list[dict[str, Any]] = []
        for name in MODELS:
            rows += predicted(name)
            step.write_results(step.RESULTS / "scaling.json", {"predicted": True, "rows": rows})
            print(table(rows), flush=True)
        return
    step.put_between(ROOT / "docs" / "scaling.md", "scaling", table(kept()))


if __name__ == "__main__":
    main()
