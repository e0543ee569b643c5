"""Claim: the doctor looks at 100,000 rows in less than a minute on two cores.

    python benchmarks/doctor.py                into results/doctor.json: some two minutes
    python benchmarks/doctor.py --rows 10000   printed, nothing written

Rows are hh-rlhf's, a word of each changed so that none is another's copy; the tokenizer is a
byte-level BPE of 16,000 tokens made of real text. No cache is used. Texts alone, texts with MinHash
against an evaluation set, and texts with tokens are measured apart; the tokens are those that
training then finds in its cache.

Not here: the model's checks, which do not grow with the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import step
from datasets import Dataset, disable_progress_bars

from counterpoint import CPOConfig
from counterpoint.doctor import examine

RESULTS = Path(__file__).parent / "results" / "doctor.json"
ROWS, EVALUATED, VOCABULARY = 100_000, 2_000, 16_000


def varied(rows: list[dict[str, str]], count: int) -> Dataset:
    """So many rows, each different from all others."""
    rng = random.Random(0)

    def changed(text: str, number: int) -> str:
        words = text.split(" ")
        words[rng.randrange(len(words))] += str(number)
        return " ".join(words)

    return Dataset.from_list(
        [
            {
                "prompt": changed(row["prompt"], number),
                "chosen": changed(row["chosen"], number),
                "rejected": row["rejected"],
            }
            for number in range(count)
            for row in [rows[number % len(rows)]]
        ]
    )


def seconds(**parts: Any) -> float:
    """Wall time of an examination."""
    start = time.perf_counter()
    report = examine(CPOConfig(output_dir="unused", use_cpu=True, bf16=False), **parts)
    took = time.perf_counter() - start
    assert report.exit_code < 2, report.as_table(100)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--docs", action="store_true", help="no page has a table: do nothing")
    options = parser.parse_args()
    if options.docs:
        return
    count = options.rows
    os.environ["COUNTERPOINT_CACHE"] = "off"
    disable_progress_bars()
    train = varied(step.rows_of("hh", 2000), count)
    few = train.select(range(min(EVALUATED, count)))
    tokenizer = step.tokenizer_for(VOCABULARY)
    measured = {
        "texts": seconds(train_dataset=train),
        f"texts, and MinHash against {len(few):,} evaluation rows": seconds(
            train_dataset=train, eval_dataset=few
        ),
        "texts and tokens": seconds(train_dataset=train, tokenizer=tokenizer),
    }
    for name, took in measured.items():
        print(f"{name}: {took:.1f} s, {count / took:,.0f} rows/s")
    if count == ROWS:
        result = {"rows": count, "seconds": measured, "machine": step.machine()}
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
