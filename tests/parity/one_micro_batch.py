"""One step of four rows in one micro-batch, of a trainer of either package."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tests.steps import GradientCamera


def options_of_both(folder: Path) -> dict[str, Any]:
    """What TRL's configurations and ours are given alike, so that nothing but the loss differs."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def one_step(
    trainer_class: Any, args: Any, model: Any, tokenizer: Any, rows: Dataset, **more: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The gradient of every weight and the log line of a step; the model stays as it is."""
    camera = GradientCamera()
    trainer = trainer_class(
        model=copy.deepcopy(model),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[camera],
        **more,
    )
    trainer.train()
    return camera.pictures[0], trainer.state.log_history[0]
