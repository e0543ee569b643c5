"""Claim: a start on 1e9 pairs costs a rank less than 100 MB and a minute, where 0.4 took 40 GB.

No data are on disk for the first six: what is measured is what a rank holds and does beside the
pairs themselves.
Each measurement runs in a process of its own; time is processor time, memory the most that the
process held beyond what it had before.

1. **order**: the first steps of an epoch. 0.4's is ``torch.randperm(n).tolist()``. It is measured
   at 1e6 and 1e7 pairs, and predicted at 1e9 from the latter, since it grows with n; the computed
   one is measured at 1e9.
2. **resuming**: the last steps of an epoch of 1e9 pairs.
3. **dealing**: one step of 8 pairs a rank on many ranks.
4. **digest**: pairs that are digested for the first time, now and in 0.4.
5. **start**: what a later start does instead. The accounts of 954 parts, with real lengths in them,
   lie in the cache; they are read, added up and joined. 0.4 digested all pairs again.
6. **interval**: the interval of an evaluation's accuracy; 0.4 drew each prompt 1,000 times.

7. **rows**, if asked for: short rows that are really there, more than one part of them. A file of
   JSON lines is saved as a set of ``datasets`` once, prepared the first time, and prepared again by
   a later start. The process's own memory is looked at every 20 ms; the rest of what it held
   is files that are mapped, whose pages the system takes back when it needs them.

    python benchmarks/data_at_size.py                  into results/data_at_size.json: 2 minutes
    python benchmarks/data_at_size.py --rows 1200000   the last alone: 3 minutes, and 1 GB on disk
    python benchmarks/data_at_size.py --docs           write the table of docs/data.md

Not here: how fast rows of real lengths are tokenized (``preparing.py``).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import step

PAIRS = 10**9
STEP, STEPS = 512, 20
LISTED = {"1e6": 10**6, "1e7": 10**7}
DEALT_TO = (8, 512, 4096)
DIGESTED = 200_000
TOKENS = 200
"""Tokens of each part of a simulated pair."""
PROMPTS = 100_000
GOALS = {"mb": 100.0, "seconds": 60.0}


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Processor time of some work, and the most that the process held beyond what it had."""
    step.peak_from_here()
    before, start = step.held(), time.process_time()
    work()
    return {
        "seconds": time.process_time() - start,
        "mb": max(0, step.most_held() - before) / 2**20,
    }


def watched(work: Callable[[], Any]) -> dict[str, float]:
    """The same, and the most of it that was the process's own and not mapped from files."""
    step.held()  # which imports torch, and gives back what is free
    done, seen = Event(), [_own()]

    def look() -> None:
        while not done.wait(0.02):
            seen.append(_own())

    watcher = Thread(target=look)
    watcher.start()
    try:
        found = measured(work)
    finally:
        done.set()
        watcher.join()
    return {**found, "own_mb": (max(seen) - seen[0]) / 2**20}


def _own() -> int:
    return step.status_bytes("RssAnon")


def order(pairs: int) -> dict[str, float]:
    """The first steps of an epoch, as they are dealt now."""
    from counterpoint.data.order import orders_of
    from counterpoint.data.sampler import StepSampler

    def deal() -> None:
        sampler = StepSampler(pairs, micro_batch=STEP, step_pairs=STEP, orders=orders_of(pairs, 0))
        sampler.set_epoch(1)
        windows = iter(sampler)
        for _ in range(STEPS):
            next(windows)

    return measured(deal)


def listed(pairs: int) -> dict[str, float]:
    """The order of 0.4."""
    import torch

    kept = []

    def draw() -> None:
        kept.append(torch.randperm(pairs, generator=torch.Generator().manual_seed(1)).tolist())

    return measured(draw)


def resumed(pairs: int) -> dict[str, float]:
    """The last steps of an epoch, of which a resumed run leaves out those before."""
    from counterpoint.data.order import orders_of
    from counterpoint.data.sampler import StepSampler

    def deal() -> None:
        sampler = StepSampler(pairs, micro_batch=STEP, step_pairs=STEP, orders=orders_of(pairs, 0))
        sampler.done = pairs // STEP - STEPS
        found = [keys for keys in sampler if keys]
        if sum(map(len, found)) != pairs - sampler.step_pairs * (pairs // STEP - STEPS):
            raise SystemExit("other pairs are left than should be")

    return measured(deal)


def dealt(ranks: int) -> dict[str, float]:
    """A step of 8 pairs a rank; seconds and memory on one of them, the mean of 20."""
    from counterpoint.data.order import orders_of
    from counterpoint.data.sampler import StepSampler

    sampler = StepSampler(
        PAIRS,
        micro_batch=8,
        step_pairs=8 * ranks,
        ranks=ranks,
        rank=ranks - 1,
        orders=orders_of(PAIRS, 0),
    )

    def deal() -> None:
        windows = iter(sampler)
        for _ in range(STEPS):
            next(windows)

    found = measured(deal)
    return {**found, "seconds": found["seconds"] / STEPS}


def digested(pairs: int, how: str) -> dict[str, float]:
    """Pairs of random tokens, digested in one part; pairs a second."""
    import pyarrow as pa

    from counterpoint.data.pair_digest import JoinedDigest, PairDigest

    rng = np.random.default_rng(0)
    ids = pa.array(rng.integers(0, 50_000, pairs * TOKENS, dtype=np.int32))
    ends = pa.array(np.arange(0, (pairs + 1) * TOKENS, TOKENS, dtype=np.int32))
    column = pa.ListArray.from_arrays(ends, ids)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    table = pa.table(
        {**dict.fromkeys(names, column), "weight": np.ones(pairs), "margin": np.zeros(pairs)}
    )
    work = JoinedDigest.of_table if how == "now" else PairDigest().add_table
    found = measured(lambda: work(table))
    return {**found, "pairs_per_second": pairs / found["seconds"]}


def started(pairs: int) -> dict[str, float]:
    """What a later start reads of the parts of a set: key, account and digest of each."""
    from counterpoint.data import cache
    from counterpoint.data.account import as_json
    from counterpoint.data.counts import PARTS, PrepareCounts
    from counterpoint.data.pair_digest import JoinedDigest, digests_joined
    from counterpoint.data.parts import PART_ROWS

    parts = -(-pairs // PART_ROWS)
    lengths = np.random.default_rng(0).gamma(2, 100, PART_ROWS).astype(int) + 1
    one = PrepareCounts("part", rows=PART_ROWS, kept=PART_ROWS, digest=None)
    for part in PARTS:
        values, counts = np.unique(lengths, return_counts=True)
        one.lengths[part].update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    account = {"counts": as_json(one), "pairs": PART_ROWS, "digest": str(3**79)}
    for number in range(parts):
        cache.remembered(f"identity-{number}", lambda number=number: f"key-{number}")
        cache.remembered(f"key-{number}-account", lambda: account)
    total = PrepareCounts("all", digest=None)

    def read() -> None:
        digests = []
        for number in range(parts):
            key = cache.remembered(f"identity-{number}", lambda: None)
            found = cache.remembered(f"{key}-account", lambda: None)
            part = PrepareCounts("part")
            part.load_state_dict(found["counts"])
            total.add(part)
            digests.append(JoinedDigest(found["pairs"], int(found["digest"])))
        total.digest = digests_joined(digests)

    found = measured(read)
    if total.rows != parts * PART_ROWS:
        raise SystemExit("rows were lost")
    return {**found, "parts": parts}


def interval(prompts: int, how: str) -> dict[str, float]:
    """The interval of an accuracy over pairs of two a prompt."""
    from counterpoint.evaluation import preferences
    from counterpoint.evaluation.bootstrap import Bootstrap, mean

    rng = np.random.default_rng(0)
    numbers, won = np.repeat(rng.permutation(prompts), 2), rng.random(2 * prompts) < 0.6

    def now() -> None:
        preferences.accuracy_interval(preferences.outcomes_of(numbers, won))

    def before() -> None:
        wins = mean(won, is_share=True)
        Bootstrap(numbers, preferences.IN_TRAINING).estimates({"wins": wins})

    return measured(now if how == "now" else before)


def write_rows(path: Path, rows: int) -> None:
    """So many short rows as JSON lines, no two of them the same."""
    with path.open("w") as file:
        for number in range(rows):
            said = [" even.", " odd."]
            chosen, rejected = said if number % 2 == 0 else said[::-1]
            row = {"prompt": f"Number {number} is", "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(row) + "\n")


def saved(rows: int, folder: Path) -> dict[str, float]:
    """A file of JSON lines as a set on disk, as docs/data.md asks for of a large one."""
    from datasets import load_dataset

    def save() -> None:
        data = load_dataset(
            "json",
            data_files=str(folder / "rows.jsonl"),
            split="train",
            cache_dir=str(folder / "read"),
        )
        data.save_to_disk(folder / "set")

    return watched(save)


def prepared(rows: int, folder: Path) -> dict[str, float]:
    """Rows of a set on disk encoded into the cache, or found there."""
    from datasets import load_from_disk
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from counterpoint.data.parts import PART_ROWS
    from counterpoint.data.prepare import prepare

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate(["<pad>", "</s>", *letters])}
    inner = Tokenizer(models.BPE(words, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")
    kept = []
    found = watched(lambda: kept.append(prepare(load_from_disk(folder / "set"), tokenizer)))
    if len(kept[0].pairs) != rows:
        raise SystemExit(f"{len(kept[0].pairs)} of {rows} rows became pairs")
    return {**found, "parts": -(-rows // PART_ROWS)}


REAL = {"saved": saved, "prepared": prepared}
WORK: dict[str, Callable[..., dict[str, float]]] = {
    "order": order,
    "listed": listed,
    "resumed": resumed,
    "dealt": dealt,
    "digested": lambda number: digested(number, "now"),
    "digested in 0.4": lambda number: digested(number, "before"),
    "started": started,
    "interval": lambda number: interval(number, "now"),
    "interval of 0.4": lambda number: interval(number, "before"),
}


def measure_rows(rows: int) -> dict[str, Any]:
    """Rows that are on disk while this runs: saved, prepared, and prepared again."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl", rows)
        env = {"COUNTERPOINT_CACHE": f"{folder}/cache", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        results: dict[str, Any] = {"rows": rows}
        for name, what in (("saved", "saved"), ("first", "prepared"), ("later", "prepared")):
            results[name] = step.in_own_process(__file__, what, str(rows), folder, env=env)
            print(f"{name:16} {rows:13,} {results[name]}", flush=True)
        return results


def measure(pairs: int) -> dict[str, Any]:
    """Everything, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"COUNTERPOINT_CACHE": folder, "OMP_NUM_THREADS": "1"}

        def alone(what: str, number: int) -> dict[str, Any]:
            found = step.in_own_process(__file__, what, str(number), env=env)
            print(f"{what:16} {number:13,} {found}", flush=True)
            return found

        return {
            "pairs": pairs,
            "order": alone("order", pairs),
            "listed": {name: alone("listed", number) for name, number in LISTED.items()},
            "resumed": alone("resumed", pairs),
            "dealt": {str(ranks): alone("dealt", ranks) for ranks in DEALT_TO},
            "digested": {
                "now": alone("digested", DIGESTED),
                "0.4": alone("digested in 0.4", DIGESTED),
            },
            "started": alone("started", pairs),
            "interval": {
                "prompts": PROMPTS,
                "now": alone("interval", PROMPTS),
                "0.4": alone("interval of 0.4", PROMPTS),
            },
        }


def table(results: dict[str, Any]) -> str:
    """The results as docs/data.md shows them."""
    listed_, most = results["listed"]["1e7"], results["pairs"] / LISTED["1e7"]
    start, total = results["started"], results["order"]["mb"] + results["started"]["mb"]
    hours = {
        side: results["pairs"] / found["pairs_per_second"] / 3600
        for side, found in results["digested"].items()
    }
    spread = results["interval"]
    rows = [
        (
            f"order, the first {STEPS} steps of {STEP}",
            f"{listed_['seconds'] * most:,.0f} s, "
            f"{listed_['mb'] * most / 1024:,.0f} GB (predicted)",
            _cost(results["order"]),
        ),
        (
            f"resuming {STEPS} steps before an epoch's end",
            "all steps are dealt again",
            _cost(results["resumed"]),
        ),
        *(
            (f"one step dealt to {int(ranks):,} ranks", "not measured", _cost(found))
            for ranks, found in results["dealt"].items()
        ),
        (
            f"digest, the first time, {3 * TOKENS} tokens a pair",
            f"{hours['0.4']:,.1f} hours on every rank (predicted)",
            f"{hours['now']:,.1f} hours, shared out among ranks (predicted)",
        ),
        (
            f"digest and account of {start['parts']:,} parts, at a later start",
            f"{hours['0.4']:,.1f} hours on every rank (predicted)",
            _cost(start),
        ),
        (
            f"interval of the accuracy, {spread['prompts']:,} prompts",
            _cost(spread["0.4"]),
            _cost(spread["now"]),
        ),
    ]
    if (real := results.get("real")) is not None:
        count, parts = f"{real['rows']:,} short rows", real["first"]["parts"]
        rows += [
            (f"{count} of JSON lines saved as a set, once", "not needed", _own_cost(real["saved"])),
            (
                f"the same prepared the first time, in {parts} parts, on one rank",
                "not measured",
                _own_cost(real["first"]),
            ),
            ("the same at a later start", "not measured", _own_cost(real["later"])),
        ]
    reached = [
        f"{total:,.0f} MB ({step.against(total, GOALS['mb'], unit=' MB', at_most=True)})",
        f"{results['order']['seconds'] + start['seconds']:,.1f} s "
        f"({step.against(start['seconds'], GOALS['seconds'], unit=' s', at_most=True)})",
    ]
    lines = [
        f"| {results['pairs']:,} pairs, on each rank | 0.4 | now |",
        "| --- | --- | --- |",
        *(f"| {name} | {before} | {now} |" for name, before, now in rows),
        "",
        f"A later start: {' and '.join(reached)}, beside the pairs themselves.",
    ]
    return "\n".join(lines)


def _own_cost(found: dict[str, float]) -> str:
    return f"{_cost(found)}, of which {found['own_mb']:,.0f} MB its own"


def _cost(found: dict[str, float]) -> str:
    seconds = found["seconds"]
    shown = f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:,.0f} s"
    return f"{shown}, {found['mb']:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--rows", type=int, help="prepare so many rows, and measure nothing else")
    parser.add_argument("--worker", nargs="+", metavar="WHAT NUMBER FOLDER")
    options = parser.parse_args()
    if options.worker:
        what, number, *folder = options.worker
        print(json.dumps({**WORK, **REAL}[what](int(number), *map(Path, folder))))
        return
    path = options.into / "data_at_size.json"
    if options.docs:
        results = json.loads((step.RESULTS / "data_at_size.json").read_text())
        step.put_between(step.ROOT / "docs" / "data.md", "data_at_size", table(results))
        return
    before = json.loads(path.read_text()) if path.exists() else {}
    if options.rows:
        found = {"machine": step.machine(), **measure_rows(options.rows)}
        step.write_results(path, {**before, "real": found})
        return
    results = {**measure(options.pairs), "real": before.get("real")}
    step.write_results(path, {"machine": step.machine(), **results})
    print(table(results))


if __name__ == "__main__":
    main()
