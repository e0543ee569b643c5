"""Differences in time and memory: the head with a large vocabulary, preparing a data set.

Each timing runs alone in a fresh process, the two sides in turn, so that neither finds the
other's memory or caches and a slow minute of the machine meets both. Shown are processor seconds
of all threads, which other work on the machine disturbs least; the results keep wall time too.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from against_trl.setting import SIDES, Finding, make_model, pairs, quiet, real_file, trainer
from counterpoint.data import sources
from counterpoint.data.formats import to_preference_row
from counterpoint.errors import DataError

VOCABULARY = 151_936
"""As Qwen's."""

LONG = 4096
"""Tokens beyond which nothing of hh-rlhf goes, so that neither side cuts."""

HH = "hh-rlhf-harmless-base-test.jsonl.gz"


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function of this module in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def in_turn(work: Callable[..., Any], rounds: int, *arguments: Any) -> dict[str, list[Any]]:
    """Both sides, one after the other, several times."""
    found: dict[str, list[Any]] = {side.name: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            found[side.name].append(alone(work, side.name, *arguments))
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


class Clock:
    """Wall time and processor time since it was made, in seconds."""

    def __init__(self) -> None:
        """Start."""
        self._start = time.perf_counter(), time.process_time()
        self.wall = self.cpu = 0.0

    def stop(self) -> None:
        """Read both clocks."""
        self.wall = time.perf_counter() - self._start[0]
        self.cpu = time.process_time() - self._start[1]


class _StepClock(TrainerCallback):
    """Time of each step, its update included."""

    def __init__(self) -> None:
        """No step yet."""
        self.clocks: list[Clock] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start a clock."""
        self.clocks.append(Clock())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.clocks[-1].stop()


def _status(name: str) -> float:
    """A line of this process's memory account, in GB; Linux only."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024 / 1e9


def _head_step(name: str) -> dict[str, float]:
    """Time of a step, and its peak of memory above what stood before training."""
    side = next(side for side in SIDES if side.name == name)
    torch.manual_seed(0)
    model = make_model(
        "qwen2_tied",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        head_dim=16,
    )
    clock = _StepClock()
    with quiet():
        made = trainer(
            side,
            model,
            pairs(12, longest=120),
            per_device_train_batch_size=4,
            callbacks=[clock],
            learning_rate=1e-6,
        )
        Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
        before = _status("VmRSS")
        made.train()
    peak = _status("VmHWM") - before
    timed = clock.clocks[1:]  # the first step makes AdamW's state
    return {
        "wall": statistics.median(step.wall for step in timed),
        "cpu": statistics.median(step.cpu for step in timed),
        "GB": peak,
    }


def large_vocabulary() -> Finding:
    """A step of 4 pairs with a vocabulary of 151,936."""
    if not Path("/proc/self/clear_refs").exists():
        return Finding("has a large vocabulary", "not measured: needs Linux", "not measured", {})
    found = in_turn(_head_step, 3)
    numbers = {
        name: {unit: spread([run[unit] for run in runs]) for unit in ("wall", "cpu", "GB")}
        for name, runs in found.items()
    }
    parameters = make_model(
        "qwen2_tied", vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, head_dim=16
    ).num_parameters()

    def said(name: str) -> str:
        seconds, memory = numbers[name]["cpu"], numbers[name]["GB"]
        return (
            f"{seconds['median']:.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f}) and "
            f"{memory['median']:.1f} GB a step"
        )

    return Finding(
        f"has a vocabulary of {VOCABULARY:,} (4 pairs a step, {parameters / 1e6:.1f}M parameters; "
        "processor time and memory above the weights, AdamW's included)",
        f"{said('TRL')}: logits of every token, prompt and padding included",
        f"{said('Counterpoint')}: logits of completion tokens only, in chunks",
        {**numbers, "parameters": parameters},
    )


def _prepare(name: str, folder: str, cache: str) -> dict[str, float]:
    """Pairs a second of each clock, from rows on disk to a trainer's prepared set."""
    # set before counterpoint's and datasets' caches are looked up
    os.environ["COUNTERPOINT_CACHE"] = cache
    side = next(side for side in SIDES if side.name == name)
    with quiet():
        rows = datasets.load_from_disk(str(Path(folder) / f"rows-{name}"))
        words = PreTrainedTokenizerFast.from_pretrained(folder)
        model = make_model("qwen2", vocab_size=len(words), max_position_embeddings=LONG)
        clock = Clock()
        made = trainer(side, model, rows, processing_class=words, max_length=LONG)
        clock.stop()
    pairs_made = len(made.train_dataset)
    return {"wall": pairs_made / clock.wall, "cpu": pairs_made / clock.cpu}


def _real_rows(file: Path, folder: Path) -> int:
    """Write the usable rows, a copy for each side and round, and a tokenizer trained on them."""
    kept = []
    for number, raw in enumerate(sources.load(file)):
        try:
            row = to_preference_row(raw, number)
        except DataError:
            continue
        kept.append({"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected})
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learn = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((text for row in kept for text in row.values()), learn)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>"
    ).save_pretrained(folder)
    for side in SIDES:
        datasets.Dataset.from_list(kept).save_to_disk(folder / f"rows-{side.name}")
    return len(kept)


def preparing() -> Finding:
    """hh-rlhf from text to tokens, the first time and the second."""
    what = "prepares the {} pairs of hh-rlhf's harmless-base test set (processor time)"
    file = real_file(HH)
    if file is None:
        return Finding(
            what.format("usable"), "not measured: no data", "not measured", {"skipped": f"no {HH}"}
        )
    numbers: dict[str, Any] = {side.name: {"first": [], "again": []} for side in SIDES}
    for turn in range(3):
        with tempfile.TemporaryDirectory() as name:
            with quiet():
                count = _real_rows(file, Path(name))
            for side in SIDES:
                for when in ("first", "again"):
                    cache = str(Path(name) / f"cache-{turn}")
                    numbers[side.name][when].append(alone(_prepare, side.name, name, cache))
    shown = {
        name: {
            f"{when}, {clock}": spread([rate[clock] for rate in rates])
            for when, rates in by.items()
            for clock in ("wall", "cpu")
        }
        for name, by in numbers.items()
    }

    def said(name: str) -> str:
        first, again = shown[name]["first, cpu"], shown[name]["again, cpu"]
        return (
            f"{first['median']:,.0f} pairs a second ({first['min']:,.0f} to {first['max']:,.0f}); "
            f"from the cache {again['median']:,.0f}"
        )

    return Finding(what.format(f"{count:,} usable"), said("TRL"), said("Counterpoint"), shown)
