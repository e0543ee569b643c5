"""Whether a long run stays as it is: memory, open files, threads, Python objects.

    python -m tests.reliability.steady [STEPS]

trains a tiny model for 10,000 steps with log lines, evaluations and checkpoints, looks at the
process now and then, and prints what a thousand steps add to each. The first tenth is left out:
allocators and caches fill up there.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs
from tests.tokenizers_on_the_spot import byte_level


class Looks(TrainerCallback):
    """What the process holds, as the run goes on."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        gc.collect()
        process = psutil.Process()
        self.seen.append(
            (
                state.global_step,
                {
                    "memory, MB": process.memory_info().rss / 1e6,
                    "open files": process.num_fds(),
                    "threads": process.num_threads(),
                    "Python objects": len(gc.get_objects()),
                },
            )
        )

    def slopes(self) -> dict[str, float]:
        """What a thousand steps add to each, by least squares."""
        late = [one for one in self.seen if one[0] > self.seen[-1][0] / 10]
        steps = np.array([step for step, _ in late]) / 1000
        return {
            name: float(np.polyfit(steps, [look[name] for _, look in late], 1)[0])
            for name in late[0][1]
        }


def train(folder: Path, steps: int, times: int = 40) -> Looks:
    """Train for some steps, and look some times; what was seen."""
    torch.set_num_threads(1)
    looks = Looks(max(1, steps // times))
    trainer = CPOTrainer(
        model=make_model("qwen2"),
        args=CPOConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=2,
            gradient_checkpointing=False,
            learning_rate=1e-5,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=max(1, steps // 20),
            save_steps=max(1, steps // 10),
            save_total_limit=2,
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=random_pairs(40),
        eval_dataset=random_pairs(4, seed=1),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=byte_level(["</s>"]), eos_token="</s>"
        ),
        callbacks=[looks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return looks


def main() -> None:
    """Print the slopes of a run."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        looks = train(Path(folder), steps)
    (begun, first), (ended, last) = looks.seen[0], looks.seen[-1]
    lines = [f"{'':<16}{f'step {begun}':>14}{f'step {ended}':>14}{'per 1,000':>12}"]
    for name, slope in looks.slopes().items():
        lines.append(f"{name:<16}{first[name]:>14,.1f}{last[name]:>14,.1f}{slope:>12.3f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
