"""Claim: sharing prompts gains 90 % of what it can, over our own path without sharing.

With P, C and R tokens of prompt, chosen and rejected, sharing runs P + C + R tokens through the
trunk where 2P + C + R would run: at most 1 + sum P / sum (P + C + R) times faster.

The path it is compared with differs in nothing else. Pairs lie in one row without padding, with
the same attention function and the same head, but each completion has a copy of the prompt of its
own: in the terms of ``PairSegments``, a prompt of 0 tokens and completions of P + C and P + R. Our
padded layout would be slower than that by its padding, and the comparison kinder to us.

The limit is one of the trunk, so the trunk is measured alone (forward and backward, up to the
head's input) and is what the 90 % are asked of. The head sees the completions' tokens, once in
both, and the cast of weights to bfloat16 is paid once in both: the whole (trunk, head, objective)
has less to gain. Both are shown. No optimizer, which sharing does not touch.

    python benchmarks/sharing.py [--rounds 5]    into results/sharing.json: 15 minutes
    python benchmarks/sharing.py --docs          write the table of docs/speed.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import step
import torch
from torch import Tensor, nn

from counterpoint.data.pair_columns import to_pair
from counterpoint.data.prepare import prepare
from counterpoint.forward.head import Head, find_head
from counterpoint.forward.layouts import SHARED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.shared_attention import shared_attention
from counterpoint.losses.objective import Objective
from counterpoint.records import PairBatch, TokenPair

SIZES = (4, 8, 16)
PRECISIONS = ("fp32", "bf16")
BATCHES = 4
GOAL = 0.9


def collate_unshared(pairs: Sequence[TokenPair]) -> PairBatch:
    """Lay pairs into one row without padding, each completion after its own copy of the prompt.

    Args:
        pairs: at least one; no prompt is empty.
    """
    whole = [
        replace(p, prompt=[], chosen=[*p.prompt, *p.chosen], rejected=[*p.prompt, *p.rejected])
        for p in pairs
    ]
    row = SHARED.collate(whole)
    # of each completion: where its copy of the prompt begins, its prompt, its own tokens
    lengths = [n for p in whole for n in (len(p.chosen), len(p.rejected))]
    starts = [0, *accumulate(lengths)]
    chosen = [(starts[2 * n], p.prompt, p.chosen) for n, p in enumerate(pairs)]
    rejected = [(starts[2 * n + 1], p.prompt, p.rejected) for n, p in enumerate(pairs)]
    sources, targets = [], []
    for start, prompt, completion in [*chosen, *rejected]:
        first = start + len(prompt) - 1
        sources.append(torch.arange(first, first + len(completion)))
        targets.append(torch.as_tensor(completion))
    return replace(
        row,
        target_source=torch.cat(sources),
        target_ids=torch.cat(targets),
        target_counts=torch.tensor([len(ids) for ids in targets]),
    )


class TrunkOnly(Head):
    """A head that costs nothing: one number of each row instead of its log-probability."""

    def token_logps(self, hidden: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The row's mean, for gradients to flow through."""
        wide = hidden.float().mean(-1)
        return wide, wide.detach()


def limit(pairs: Sequence[TokenPair]) -> float:
    """How many times the tokens of the shared row the other has."""
    prompts = sum(len(p.prompt) for p in pairs)
    return 1 + prompts / sum(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)


def seconds_of(model: nn.Module, head: Head, batch: PairBatch, *, bf16: bool) -> float:
    """Forward and backward of one batch."""
    objective = Objective()
    start = time.perf_counter()
    with shared_attention(model):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = pair_forward(model, head, batch)
        terms = objective(output.logps, batch.margin)
        objective.share(terms, batch.weight, objective.totals(batch)).backward()
    seconds = time.perf_counter() - start
    model.zero_grad()
    return seconds


def measure(precision: str, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Both rows in turns, batch by batch, in this process; round 0 warms up."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config = dict(step.SMALL)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config.pop("model_type")](**config))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    rows = Dataset.from_list(step.rows_of("hh", size * BATCHES))
    pairs = [to_pair(row) for row in prepare(rows, tokenizer).pairs]
    whole = find_head(model)
    heads = {"trunk": TrunkOnly(whole.module), "whole": whole}
    layouts: dict[str, Callable[..., PairBatch]] = {
        "unshared": collate_unshared,
        "shared": SHARED.collate,
    }
    batches = {
        layout: [lay(pairs[n : n + size]) for n in range(0, len(pairs), size)]
        for layout, lay in layouts.items()
    }
    run = partial(seconds_of, model, bf16=precision == "bf16")
    result: dict[str, Any] = {"precision": precision, "pairs": size, "limit": limit(pairs)}
    for part, head in heads.items():
        totals: dict[str, list[float]] = {layout: [0.0] * (rounds + 1) for layout in layouts}
        for turn in range(rounds + 1):
            for number in range(BATCHES):
                for layout in layouts:
                    totals[layout][turn] += run(head, batches[layout][number])
        ratios = [a / b for a, b in zip(totals["unshared"][1:], totals["shared"][1:], strict=True)]
        result[part] = {
            "unshared_seconds": statistics.median(totals["unshared"][1:]),
            "shared_seconds": statistics.median(totals["shared"][1:]),
            "ratio": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "share_of_limit": statistics.median(ratios) / result["limit"],
        }
    return result


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as docs/speed.md shows them."""
    lines = [
        "| hh-rlhf, Qwen3-shaped 34M | limit | trunk | of the limit | trunk, head, objective |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        trunk, whole = row["trunk"], row["whole"]
        share = f"{100 * trunk['share_of_limit']:.0f} %"
        cells = [
            f"{row['pairs']} pairs, {row['precision']}",
            f"{row['limit']:.2f} ×",
            *(
                f"{part['ratio']:.2f} × ({part['min']:.2f} to {part['max']:.2f})"
                for part in (trunk, whole)
            ),
        ]
        cells.insert(
            3, f"{share} ({step.against(100 * trunk['share_of_limit'], 100 * GOAL, unit=' %')})"
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="pairs a batch")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=4, metavar=("PRECISION", "PAIRS", "ROUNDS", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        precision, size, rounds, folder = options.worker
        print(json.dumps(measure(precision, int(size), int(rounds), Path(folder))))
        return
    if options.docs:
        results = json.loads((step.RESULTS / "sharing.json").read_text())
        step.put_between(step.ROOT / "docs" / "speed.md", "sharing", table(results["rows"]))
        return
    step.need_data()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for precision in options.precisions:
            for size in options.sizes:
                arguments = (precision, str(size), str(options.rounds), folder)
                rows.append(step.in_own_process(__file__, *arguments))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    content = {"machine": step.machine(), "rounds": options.rounds, "rows": rows}
    step.write_results(options.into / "sharing.json", content)


if __name__ == "__main__":
    main()
