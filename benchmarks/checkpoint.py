"""Claim: what a checkpoint that cannot be half there costs, against transformers' own.

    python benchmarks/checkpoint.py            into results/checkpoint.json: some two minutes, 2 GB
    python benchmarks/checkpoint.py --docs     the table of docs/reliability.md, no more

One trainer of each kind, after one step, saves the same state in turns: transformers' own way,
the same with each file brought to the disk (which transformers leaves to the system, so that a
checkpoint may be lost long after it was written), and ours: brought to the disk, SHA-256 of each
file, renamed. Weights and moments of AdamW in float32. Then each is read back: transformers'
``torch.load`` and safetensors, ours verified first.

Not here: whether a run goes on exactly (``tests/reliability``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import step
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.checkpoint.manifest import verify

RESULTS = step.RESULTS / "checkpoint.json"
PAGE = step.ROOT / "docs" / "reliability.md"
ROUNDS = 5
OWN, DURABLE, OURS = "transformers", "transformers, brought to the disk", "Counterpoint"


class Theirs(CPOTrainer):
    """Saves as transformers does."""

    _save = Trainer._save
    _save_checkpoint = Trainer._save_checkpoint


def trainer_of(kind: type[CPOTrainer], folder: Path) -> CPOTrainer:
    """A trainer after one step."""
    from tokenizers import Tokenizer, models

    options = dict(step.SMALL)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[options.pop("model_type")](**options)
    row = {"prompt_ids": [1, 5], "chosen_ids": [6, 2], "rejected_ids": [7, 2]}
    rows = [{**row, "weight": 1.0, "margin": 0.0, "row": number} for number in range(2)]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={"</s>": 0}, merges=[])), eos_token="</s>"
    )
    trainer = kind(
        model=AutoModelForCausalLM.from_config(config),
        args=CPOConfig(
            output_dir=str(folder), use_cpu=True, max_steps=1, save_strategy="no", disable_tqdm=True
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def timed(work: Callable[[], Any]) -> float:
    """Seconds of wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def save(trainer: CPOTrainer, folder: Path, *, durable: bool = False) -> None:
    """One checkpoint into an empty folder."""
    trainer._save_checkpoint(trainer.model, None)
    if durable:
        for path in [*folder.rglob("*"), folder]:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def measure(place: Path) -> dict[str, Any]:
    """Each way in turns, each checkpoint removed before the next."""
    sides = {
        OWN: (trainer_of(Theirs, place / "a"), False),
        DURABLE: (trainer_of(Theirs, place / "b"), True),
        OURS: (trainer_of(CPOTrainer, place / "c"), False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    sizes: dict[str, int] = {}
    verified: list[float] = []
    for round_number in range(ROUNDS + 1):
        for name, (trainer, durable) in sides.items():
            folder = Path(trainer.args.output_dir)
            os.sync()  # what the last one left to the system is not this one's to pay
            took = timed(lambda: save(trainer, folder, durable=durable))  # noqa: B023 - called now
            saved = folder / "checkpoint-1"
            sizes[name] = sum(p.stat().st_size for p in saved.rglob("*") if p.is_file())
            if round_number:  # the first of each is to warm up
                seconds[name].append(took)
                if name == OURS:
                    verified.append(timed(lambda: verify(saved)))  # noqa: B023 - called now
            shutil.rmtree(saved)
    weights = sum(p.numel() for p in sides[OURS][0].model.parameters())
    return {
        "weights": weights,
        "rounds": ROUNDS,
        "seconds": seconds,
        "bytes": sizes,
        "verified": verified,
        "machine": step.machine(),
    }


def table(found: dict[str, Any]) -> str:
    """What the page shows."""
    base = statistics.median(found["seconds"][OWN])
    lines = [
        f"| one checkpoint of {found['weights'] / 1e6:.0f}M weights in fp32 with AdamW | bytes | "
        "seconds, median (least to most) | of transformers' |",
        "|---|---:|---:|---:|",
    ]
    for name, seconds in found["seconds"].items():
        middle = statistics.median(seconds)
        lines.append(
            f"| {name} | {found['bytes'][name]:,} | {middle:.2f} ({min(seconds):.2f} to "
            f"{max(seconds):.2f}) | {100 * middle / base:.0f} % |"
        )
    verified = statistics.median(found["verified"])
    return "\n".join(
        [
            *lines,
            "",
            f"Verifying it before a run resumes takes {verified:.2f} s. {found['rounds']} rounds "
            f"in turns on {found['machine']['cores']} cores, {found['machine']['cpu']}. "
            "`python benchmarks/checkpoint.py`",
        ]
    )


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the page's table, no more")
    if parser.parse_args().docs:
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
        step.put_between(PAGE, "checkpoint", table(found))
        return
    with tempfile.TemporaryDirectory(prefix="counterpoint-checkpoint-") as place:
        found = measure(Path(place))
    step.write_results(RESULTS, found)
    print(table(found))


if __name__ == "__main__":
    main()
