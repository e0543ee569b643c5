"""The comparison: supervised training on the chosen translations alone.

transformers' own ``Trainer``, with the options of the CPO run that are not about preferences:
the same pairs, each once, steps, batch, optimizer and schedule. The loss is the NLL of the
chosen tokens, mean over those of the step.

Not here: anything about the rejected translations, which this training never sees.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

IGNORED = -100
"""The label that transformers leaves out of the loss."""


def train_supervised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, str]],
    options: dict[str, Any],
    progress: TrainerCallback,
) -> None:
    """Train the model in place on the chosen translations.

    Args:
        model: what to train.
        tokenizer: of the model.
        rows: preference rows; only "prompt" and "chosen" are read.
        options: of the CPO run; those that ``TrainingArguments`` lacks are left out.
        progress: shows how far it is.
    """
    # transformers has renamed gradient_checkpointing, and its default is off, as here
    known = {field.name for field in fields(TrainingArguments)} - {"gradient_checkpointing"}
    args = TrainingArguments(**{name: value for name, value in options.items() if name in known})
    examples: Any = [_example(tokenizer, row) for row in rows]
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=examples,
        data_collator=_collate,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _example(tokenizer: PreTrainedTokenizerBase, row: dict[str, str]) -> dict[str, list[int]]:
    before: list[int] = tokenizer(row["prompt"]).input_ids
    after: list[int] = tokenizer(row["chosen"], add_special_tokens=False).input_ids
    after = [*after, tokenizer.eos_token_id]
    return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}


def _collate(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    width = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, filler: int) -> Tensor:
        rows = [example[name] + [filler] * (width - len(example[name])) for example in examples]
        return torch.tensor(rows)

    labels = padded("labels", IGNORED)
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    # what fills the rows up is never read: its mask is 0 and its labels are ignored
    return {
        "input_ids": padded("input_ids", 0),
        "labels": labels,
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
    }
