"""Runs on rows that list rejected completions: what a list has in common is computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset

from counterpoint import CPOConfig, CPOTrainer
from tests.steps import distance

ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"What is {n} and {n}?",
        "chosen": f" It is {2 * n}.",
        "rejected": [f" Maybe {n}?", " No.", f" I do not know what {n} is."],
    }
    for n in range(8)
]


def run_on(rows: Any, models: Any, tokenizer: Any, folder: Path, **options: Any) -> CPOTrainer:
    args = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return CPOTrainer(
        model=models("qwen2"),
        args=CPOConfig(**args),
        processing_class=tokenizer,
        train_dataset=rows,
    )


def tokens_in_steps(trainer: CPOTrainer) -> int:
    """Ids that the model reads in its two steps, each of two micro-batches."""
    read: list[int] = []

    def count(module: torch.nn.Module, args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            read.append(args[0].numel())

    trainer.model.get_input_embeddings().register_forward_pre_hook(count)
    trainer.train()
    assert trainer.state.global_step == 2
    return sum(read[-4:])  # the proof of the layout reads before the first step


def test_a_list_costs_its_prompt_and_its_chosen_completion_once(
    models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    trainer = run_on(Dataset.from_list(ROWS), models, chatml_tokenizer, tmp_path)
    pairs = trainer.train_dataset
    once = sum(
        len(pair["prompt_ids"]) + len(pair["chosen_ids"])
        for pair in pairs.select(range(0, len(pairs), 3))
    )
    once += sum(len(pair["rejected_ids"]) for pair in pairs)
    assert tokens_in_steps(trainer) == once


@pytest.mark.parametrize("micro_batch", [1, 2, 6])
def test_a_run_is_what_it_is_without_sharing(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, micro_batch: int
) -> None:
    found = []
    share = {
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": 12 // micro_batch,
    }
    for layout in ("padded", "shared"):
        rows, folder = Dataset.from_list(ROWS), tmp_path / layout
        trainer = run_on(rows, models, chatml_tokenizer, folder, layout=layout, **share)
        trainer.train()
        found.append({n: p.detach().double() for n, p in trainer.model.named_parameters()})
    assert distance(*found) <= 1e-6


def test_a_stream_brings_the_pairs_of_a_list_together(
    models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    listed = tokens_in_steps(run_on(stream, models, chatml_tokenizer, tmp_path, max_steps=2))
    whole = run_on(Dataset.from_list(ROWS), models, chatml_tokenizer, tmp_path / "whole")
    assert listed == tokens_in_steps(whole)
