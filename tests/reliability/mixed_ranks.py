"""One rank of a run on several sets, that goes on after its second step. A script of test_mixtures.

python -m tests.reliability.mixed_ranks made|real|killed FOLDER [DATA]
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from counterpoint.data.listed import ListedSet
from counterpoint.data.mixture import Mixture, Part, open_sets
from counterpoint.data.pair_rules import PairRules
from counterpoint.data.scored import pairs_from_scored
from counterpoint.data.sources import load
from tests.reliability.scenarios import SCENARIOS, three_sets, tokenizer, trainer_of

MADE, REAL, KILLED = "made", "real", "killed"

MADE_RUN: dict[str, Any] = SCENARIOS["three sets with weights"]

WEIGHTS = ("1", "2", "1/2")
"""Of the dialogues, the Chinese chat and the translations."""

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def heavier() -> Mixture:
    """The made rows with another weight."""
    made = three_sets()
    first, second, third = made.parts
    other = Part(second.name, Fraction(3), second.rows, second.data)
    return Mixture(made.rows, [first, other, third])


def real_sets(data: Path, folder: Path) -> Mixture:
    """Three published files, each in its own shape; scored translations as pairs."""
    scored = load(data / "ted-mqm-zhen-scored.jsonl.gz")
    rules = PairRules(
        score="mqm",
        lower_is_better=True,
        prompt_template="Chinese: {source}\nEnglish:",
        completion_prefix=" ",
    )
    pairs = folder / "translations.parquet"
    Dataset.from_list(pairs_from_scored(scored, rules).pairs).to_parquet(str(pairs))
    files = [
        data / "hh-rlhf-harmless-base-test.jsonl.gz",
        data / "llamafactory-dpo-zh-demo.json.gz",
        pairs,
    ]
    weights = map(Fraction, WEIGHTS)
    return open_sets([ListedSet((str(f),), w) for f, w in zip(files, weights, strict=True)])


def shares_of_real(shares: list[dict[str, Any]]) -> None:
    """Refuse shares that are not what weights and known sizes make."""
    hh, zh, ted = shares
    assert (hh["rows"], hh["pairs"], hh["epoch"]) == (2312, 2303, 2303)
    assert (zh["rows"], zh["pairs"], zh["epoch"]) == (300, 300, 600)
    assert ted["pairs"] == ted["rows"] > 400
    assert ted["epoch"] == (ted["pairs"] + 1) // 2


def chatting() -> Any:
    """The tokenizer with a template."""
    made = tokenizer()
    made.chat_template = TEMPLATE
    return made


class Killed(TrainerCallback):
    """Ends the process within the fourth step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def main(kind: str, folder: Path, data: Path | None = None) -> None:
    """Be one rank."""
    warnings.filterwarnings("ignore")
    if kind == KILLED:
        trainer_of({**MADE_RUN, "callbacks": [Killed]}, folder / "again").train()
        return
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    run = dict(MADE_RUN)
    if data is not None:
        mine = folder / f"pairs-{rank}"
        mine.mkdir()
        run |= {
            "rows": partial(real_sets, data, mine),
            "tokenizer": chatting,
            "max_steps": 6,
            "max_length": 96,
            "truncation": "prompt_start",
            "invalid_rows": "drop",
        }
    run["per_device_train_batch_size"] = 4 // ranks
    if ranks > 1:
        run["ddp_backend"] = "gloo"
    trainer_of(run, folder / "whole").train()
    again = folder / "again"
    if rank == 0:
        shutil.copytree(folder / "whole", again)
        for later in range(3, 7):
            shutil.rmtree(again / f"checkpoint-{later}")
    if ranks > 1:
        torch.distributed.barrier()
    trainer_of(run, again, drawn=9).train(resume_from_checkpoint="auto")
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
