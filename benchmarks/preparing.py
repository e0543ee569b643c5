"""Claim: pairs are tokenized and laid out at 3,000 a second and core, four times TRL's rate.

The usable rows of hh-rlhf, from text to batches of 8 pairs: each side makes its trainer, which
prepares the data set, and reads its own loader to the end; ours lays the pairs out besides, which
for TRL its collator does. Counted is processor time of a process whose libraries are told to use
one thread, cache off. What a trainer of eight rows takes is subtracted: making a trainer is not
preparing pairs.

A second measurement starts twice with 100,000 rows, as a user would, threads and cache as they
come: the second start reads what the first one wrote. Counted is wall time.

    python benchmarks/preparing.py [--rounds 3]    into results/preparing.json: 3 minutes
    python benchmarks/preparing.py --docs          write the table of docs/speed.md

Not called tokenize.py, which would hide a module of Python's from every script beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import step

PAIRS = 8
MANY = 100_000
GOAL, GOAL_RATIO = 3000, 4.0
ONE_THREAD = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "COUNTERPOINT_CACHE": "off",
}


def rate(side: str, folder: Path) -> dict[str, float]:
    """Pairs a second of processor time, in this process."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    make = _trainer_maker(side, folder)
    rows = step.rows_of("hh", 10**6)
    few, every = Dataset.from_list(rows[:PAIRS]), Dataset.from_list(rows)
    seconds = []
    for dataset in (few, few, every):  # what is imported and made once is in the first
        start = time.process_time()
        laid_out = sum(_batches(side, make(train_dataset=dataset)))
        seconds.append(time.process_time() - start)
        if laid_out != len(dataset):
            raise SystemExit(f"{side} laid out {laid_out} of {len(dataset)} pairs")
    more = len(every) - len(few)
    return {"pairs": len(every), "pairs_per_second": more / (seconds[2] - seconds[1])}


def _trainer_maker(side: str, folder: Path) -> Callable[..., Any]:
    """What makes a trainer of a data set; model and tokenizer are there already."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if side == "trl":
        from trl.experimental.cpo import CPOConfig, CPOTrainer
    else:
        from counterpoint import CPOConfig, CPOTrainer

    config = {**step.WIDE, "vocab_size": step.SMALL["vocab_size"]}
    config = CONFIG_MAPPING[config.pop("model_type")](**config)
    args = CPOConfig(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=PAIRS,
        train_sampling_strategy="sequential",
        use_cpu=True,
        report_to="none",
    )
    return partial(
        CPOTrainer,
        AutoModelForCausalLM.from_config(config),
        args,
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
    )


def _batches(side: str, trainer: Any) -> Iterator[int]:
    """Pairs of each batch, laid out."""
    from counterpoint.forward.layouts import SHARED

    for batch in trainer.get_train_dataloader():
        yield len(batch["chosen_input_ids"]) if side == "trl" else len(SHARED.collate(batch))


def many_rows(number: int) -> Iterator[dict[str, str]]:
    """hh-rlhf again and again; no two rows are the same."""
    rows = step.rows_of("hh", 10**6)
    again = ({**row, "chosen": f"{row['chosen']} ({n})"} for n in count() for row in rows)
    return islice(again, number)


def start_seconds(number: int, folder: Path) -> dict[str, float]:
    """Wall time of preparing that many rows, in this process."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer

    from counterpoint.data.options import PrepareOptions
    from counterpoint.data.prepare import prepare

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    dataset = Dataset.from_list(list(many_rows(number)))
    start = time.perf_counter()
    prepared = prepare(dataset, tokenizer, PrepareOptions())
    return {"seconds": time.perf_counter() - start, "pairs": len(prepared.pairs)}


def measure(rounds: int, many: int, folder: Path) -> dict[str, Any]:
    """Both sides in turns, then the two starts."""
    sides: dict[str, list[float]] = {"trl": [], "counterpoint": []}
    alone = partial(step.in_own_process, __file__)
    for _ in range(rounds):
        for side, rates in sides.items():
            found = alone("rate", side, str(folder), env=ONE_THREAD)
            rates.append(found["pairs_per_second"])
    results: dict[str, Any] = {"rounds": rounds, "pairs": found["pairs"]}
    for side, rates in sides.items():
        results[side] = {
            "pairs_per_second": statistics.median(rates),
            "min": min(rates),
            "max": max(rates),
        }
    ours, theirs = results["counterpoint"], results["trl"]
    results["ratio"] = ours["pairs_per_second"] / theirs["pairs_per_second"]
    cache = {"COUNTERPOINT_CACHE": str(folder / "cache")}
    first, second = (alone("start", str(many), str(folder), env=cache) for _ in range(2))
    results["start"] = {"rows": many, "first": first["seconds"], "second": second["seconds"]}
    return results


def table(results: dict[str, Any]) -> str:
    """The results as docs/speed.md shows them."""
    cells = [
        f"{found['pairs_per_second']:,.0f} ({found['min']:,.0f} to {found['max']:,.0f})"
        for found in (results["trl"], results["counterpoint"])
    ]
    enough = step.against(results["counterpoint"]["pairs_per_second"], GOAL)
    more = step.against(results["ratio"], GOAL_RATIO)
    start = results["start"]
    return "\n".join(
        [
            "| from text to batches, one thread | TRL 1.16 | Counterpoint | faster |",
            "|---|---|---|---|",
            f"| {results['pairs']:,} pairs of hh-rlhf, pairs a second of processor time | "
            f"{cells[0]} | {cells[1]} ({enough}) | {results['ratio']:.1f} × ({more}) |",
            "",
            f"Preparing {start['rows']:,} rows took {start['first']:.1f} s at the first start and "
            f"{start['second']:.1f} s at the second, which read the cache.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=MANY, help="rows of the two starts")
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("WHAT", "OF", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        what, of, folder = options.worker
        with step.own_folder(folder) as own:
            print(json.dumps(rate(of, own) if what == "rate" else start_seconds(int(of), own)))
        return
    if options.docs:
        results = json.loads((step.RESULTS / "preparing.json").read_text())
        step.put_between(step.ROOT / "docs" / "speed.md", "preparing", table(results))
        return
    step.need_data()
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        results = measure(options.rounds, options.many, Path(folder))
    step.write_results(options.into / "preparing.json", {"machine": step.machine(), **results})
    print(table(results))


if __name__ == "__main__":
    main()
