"""The comparison: supervised training on the chosen references alone.

transformers' own ``Trainer``, with the options of the CPO run that are not about preferences:
the same pairs, each once, steps, batch, optimizer and schedule. The loss is the NLL of the
chosen tokens, mean over those of the step.

Not here: anything about the rejected references, which this training never sees.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from counterpoint.data.processors import is_processor
from counterpoint.picture import seen_as_rgb
from counterpoint.quickstart.read import asked

IGNORED = -100
"""The label that transformers leaves out of the loss."""


def train_supervised(
    model: PreTrainedModel,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    options: dict[str, Any],
    progress: TrainerCallback,
) -> None:
    """Train the model in place on the chosen references.

    Args:
        model: what to train.
        tokenizer: of the model, or its processor if it sees.
        rows: preference rows; only "prompt", "source" or "images", and "chosen", are read.
        options: of the CPO run; those that ``TrainingArguments`` lacks are left out.
        progress: shows how far it is.
    """
    # transformers has renamed gradient_checkpointing, and its default is off, as here
    known = {field.name for field in fields(TrainingArguments)} - {"gradient_checkpointing"}
    args = TrainingArguments(**{name: value for name, value in options.items() if name in known})
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None
    examples: Any = (
        _Shown(tokenizer, rows, Path(options["image_folder"]))
        if is_processor(tokenizer)
        else [_example(tokenizer, row, start) for row in rows]
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=examples,
        data_collator=_collate,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _example(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, str], start: int | None
) -> dict[str, list[int]]:
    """A row's ids; ``start`` is what a decoder behind an encoder begins with."""
    before: list[int] = tokenizer(row["prompt" if start is None else "source"]).input_ids
    after: list[int] = tokenizer(row["chosen"], add_special_tokens=False).input_ids
    after = [*after, tokenizer.eos_token_id]
    if start is not None:
        return {"input_ids": before, "decoder_input_ids": [start, *after[:-1]], "labels": after}
    return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}


class _Shown(Dataset[dict[str, Any]]):
    """Rows about pictures, each decoded when it is asked for.

    Args:
        processor: of the model.
        rows: with one picture each.
        folder: where these lie.
    """

    def __init__(self, processor: Any, rows: list[dict[str, Any]], folder: Path) -> None:
        self._processor, self._rows, self._folder = processor, rows, folder
        self._question = asked(processor)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        from PIL import Image

        row = self._rows[place]
        with Image.open(self._folder / row["images"][0]) as image:
            seen = self._processor(
                text=[self._question], images=[[seen_as_rgb(image)]], return_tensors="pt"
            )
        tokenizer = self._processor.tokenizer
        before: list[int] = seen["input_ids"][0].tolist()
        after = [*tokenizer(row["chosen"], add_special_tokens=False).input_ids]
        after.append(tokenizer.eos_token_id)
        labels = [IGNORED] * len(before) + after
        pixels = seen["pixel_values"][0]
        return {"input_ids": before + after, "labels": labels, "pixel_values": pixels}


def _collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    # what fills the rows up is never read: its mask is 0 and its labels are ignored
    tensors = {
        name: torch.stack([example[name] for example in examples])
        if isinstance(examples[0][name], Tensor)
        else _padded([example[name] for example in examples], IGNORED if name == "labels" else 0)
        for name in examples[0]
    }
    width = tensors["input_ids"].shape[1]
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    return {**tensors, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])
