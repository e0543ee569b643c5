"""A step reads back from the device once: whether all of it is finite; the monitor's look, once.

Counted on a CPU, where a value that is read leaves the same trace as on an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from tests.steps import random_pairs

READS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,  # its result's shape is read
    torch.ops.aten.equal.default,
)
COPIES = ("tolist", "numpy", "cpu")


class Looks(TorchDispatchMode, TrainerCallback):
    """Counts how often each step reads a value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.of_steps: list[int] = []
        self.now = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.now += function in READS
        return function(*args, **(kwargs or {}))

    def counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.now += 1
            return method(tensor, *args, **kwargs)

        return counted

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.now = 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.of_steps.append(self.now)


@pytest.mark.parametrize(
    ("layout", "monitor_steps", "reads"),
    [
        ("shared", 0, 1),
        # without a mask transformers asks once a micro-batch whether positions jump
        ("padded", 0, 1 + 2),
        ("shared", 1, 1 + 1),
    ],
)
def test_a_step_reads_one_value_back(
    layout: str,
    monitor_steps: int,
    reads: int,
    models: Any,
    chatml_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    args = CPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=3,
        layout=layout,
        monitor_steps=monitor_steps,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=100,
        disable_tqdm=True,
    )
    looks = Looks()
    trainer = CPOTrainer(
        model=models(),
        args=args,
        train_dataset=random_pairs(12),
        processing_class=chatml_tokenizer,
        callbacks=[looks],
    )
    for name in COPIES:
        monkeypatch.setattr(torch.Tensor, name, looks.counting(getattr(torch.Tensor, name)))
    with looks:
        trainer.train()
    assert looks.of_steps == [reads] * 3
