"""The golden numbers: losses and gradient norms of a seeded run in float64, for every objective.

A refactor leaves them alone. A change of numbers is recorded with ``make golden``, and the commit
says why; the difference then shows in review.

    python -m tests.house.golden
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tests.models_on_the_spot import make_model
from tests.steps import OBJECTIVES, random_pairs, train_watched
from tests.tokenizers_on_the_spot import byte_level

FILE = Path(__file__).with_name("golden.json")

Numbers = dict[str, list[float]]


def run(objective: str) -> Numbers:
    """Four steps of 2 x 2 pairs, the last of them short; in float64, so that machines agree.

    Phi has no RMSNorm, which transformers computes in float32 whatever the weights are.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>"], size=384), eos_token="<|endoftext|>"
    )
    with tempfile.TemporaryDirectory() as folder:
        _, trainer = train_watched(
            make_model("phi").double(),
            tokenizer,
            random_pairs(15),
            Path(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            **OBJECTIVES[objective],
        )
    steps = [line for line in trainer.state.log_history if "loss" in line]
    names = ("loss", "grad_norm", "rewards/margins", "nll_loss")
    return {name: [float(line[name]) for line in steps] for name in names}


def record() -> None:
    """Write the file."""
    numbers = {objective: run(objective) for objective in OBJECTIVES}
    FILE.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
