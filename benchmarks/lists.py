"""Claim: pairs of one list cost less together than as pairs that have nothing in common.

A list of k rejected completions is k pairs of one prompt and one chosen completion. Together, their
prompt and their chosen completion go through the trunk once. Beside it the same pairs lie in the
same layout in another order, in which no neighbours are of one list, so that nothing is shared
between pairs. Each pair still shares its prompt between its own two completions.

Lists are the best of human-scored translations of a source against those that were scored worse,
and prompts of hh-rlhf whose chosen answer stands against its rejected one and answers to others.
Forward and backward of the trunk alone, and of trunk, head and objective, in turns.

    python benchmarks/lists.py [--rounds 5]    into results/lists.json: five minutes
    python benchmarks/lists.py --docs          write the table of docs/speed.md
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sharing
import step
import torch

from counterpoint.data.pair_columns import to_pair
from counterpoint.data.prepare import prepare
from counterpoint.forward.head import find_head
from counterpoint.forward.layouts import SHARED
from counterpoint.records import TokenPair

LISTS, LONG = 4, 4
"""Lists of a micro-batch, and completions that each rejects."""

SETS = ("hh", "ted")


def listed(name: str) -> list[dict[str, Any]]:
    """A few rows that list ``LONG`` rejected completions."""
    if name == "hh":
        rows = step.rows_of("hh", LISTS * LONG)
        # answers to other prompts are as long as answers are
        return [
            {**row, "rejected": [row["rejected"], *(o["rejected"] for o in others)]}
            for row, *others in (rows[n : n + LONG] for n in range(0, len(rows), LONG))
        ]
    with gzip.open(step.DATA / "ted-mqm-zhen-scored.jsonl.gz", "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    found = []
    for row in raw:
        best, *others = sorted(row["candidates"], key=lambda one: one["mqm"])
        worse = [one["text"] for one in others if one["mqm"] > best["mqm"]][-LONG:]
        if len(worse) == LONG and best["text"] not in worse:
            prompt = f"Translate this from Chinese to English:\nChinese: {row['source']}\nEnglish:"
            rejected = [f" {text}" for text in worse]
            found.append({"prompt": prompt, "chosen": f" {best['text']}", "rejected": rejected})
    return found[:LISTS]


def apart(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """The same pairs, no two of one list beside each other."""
    return [pair for place in range(LONG) for pair in pairs[place::LONG]]


def measure(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Both orders in turns, in this process; round 0 warms up."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config = dict(step.SMALL)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config.pop("model_type")](**config))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    pairs = [to_pair(row) for row in prepare(Dataset.from_list(listed(name)), tokenizer).pairs]
    batches = {"apart": SHARED.collate(apart(pairs)), "together": SHARED.collate(pairs)}
    whole = find_head(model)
    found: dict[str, Any] = {"set": name, "pairs": len(pairs)}
    found["tokens"] = {order: batch.cost for order, batch in batches.items()}
    for part, head in (("trunk", sharing.TrunkOnly(whole.module)), ("whole", whole)):
        seconds: dict[str, list[float]] = {order: [] for order in batches}
        for _ in range(rounds + 1):
            for order, batch in batches.items():
                seconds[order].append(sharing.seconds_of(model, head, batch, bf16=False))
        ratios = [a / b for a, b in zip(*(times[1:] for times in seconds.values()), strict=True)]
        found[part] = {
            "ratio": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        }
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The results as docs/speed.md shows them."""
    lines = [
        "| 4 lists of 4 rejected, Qwen3-shaped 34M, fp32 | tokens | trunk "
        "| trunk, head, objective |",
        "|---|---|---|---|",
    ]
    for row in rows:
        tokens = row["tokens"]
        cells = [
            {"hh": "hh-rlhf", "ted": "TED zh-en"}[row["set"]],
            f"{tokens['apart']:,} apart, {tokens['together']:,} together",
            *(
                f"{part['ratio']:.2f} × ({part['min']:.2f} to {part['max']:.2f})"
                for part in (row["trunk"], row["whole"])
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("SET", "ROUNDS", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        name, rounds, folder = options.worker
        print(json.dumps(measure(name, int(rounds), Path(folder))))
        return
    if options.docs:
        results = json.loads((step.RESULTS / "lists.json").read_text())
        step.put_between(step.ROOT / "docs" / "speed.md", "lists", table(results["rows"]))
        return
    step.need_data()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for name in SETS:
            rows.append(step.in_own_process(__file__, name, str(options.rounds), folder))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    content = {"machine": step.machine(), "rounds": options.rounds, "rows": rows}
    step.write_results(step.RESULTS / "lists.json", content)


if __name__ == "__main__":
    main()
