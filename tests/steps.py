"""One optimizer step of the real trainer, watched: what the tests of law 1 compare."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.data.pair_columns import GOLD_IDS
from counterpoint.objectives import DEFAULT_LOSS, LOSSES

Gradients = list[dict[str, Tensor]]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss_type": "sigmoid"},
    "sigmoid, smoothed": {"loss_type": "sigmoid", "label_smoothing": 0.1},
    "sigmoid, paper's NLL": {"loss_type": "sigmoid", "nll_reduction": "sequence_sum"},
    "hinge": {"loss_type": "hinge"},
    "ipo": {"loss_type": "ipo"},
    "simpo": {"loss_type": "simpo", "beta": 2.0, "gamma_beta_ratio": 0.5, "cpo_alpha": 0.0},
    "cpo-simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
    "alphapo": {"loss_type": "alphapo", "beta": 2.0, "alpha": 0.25},
    "orpo": {"loss_type": "orpo"},
    "repo": {"loss_type": "repo"},
    "simper": {"loss_type": "simper"},
    "sigmoid, weighed": {"loss_type": "sigmoid", "use_weighting": True},
    "simpo, weighed": {"loss_type": "simpo", "beta": 2.0, "use_weighting": True},
    "sigmoid, shorter": {"loss_type": "sigmoid", "ld_alpha": 0.3},
    "hinge, shorter and weighed": {"loss_type": "hinge", "ld_alpha": 0.0, "use_weighting": True},
    "tpo": {"loss_type": "tpo", "cpo_alpha": 0.7},
    "tpo, paper's NLL": {"loss_type": "tpo", "nll_reduction": "sequence_sum", "ld_alpha": 0.3},
    "tpo_l": {"loss_type": "tpo_l", "beta": 2.0, "simpo_gamma": 1.0, "use_weighting": True},
    "arpo": {"loss_type": "arpo"},
    "arpo, the paper's": {"loss_type": "arpo", "arpo_scale": 1.0, "arpo_eta": 1.5},
    "dpo": {"loss_type": "dpo"},
    "hypo": {"loss_type": "hypo", "rpo_alpha": 0.5},
    "dpo_hinge": {"loss_type": "dpo_hinge"},
    "dpo_ipo": {"loss_type": "dpo_ipo", "rpo_alpha": 0.2},
    "dpop": {"loss_type": "dpop", "beta": 0.3, "label_smoothing": 0.1},
    "apo_zero": {"loss_type": "apo_zero"},
    "apo_down": {"loss_type": "apo_down", "rpo_alpha": 0.5},
    "nca_pair": {"loss_type": "nca_pair", "beta": 0.3},
    "apo_zero, shorter and weighed": {
        "loss_type": "apo_zero",
        "ld_alpha": 0.3,
        "use_weighting": True,
    },
    "dpo, shorter": {"loss_type": "dpo", "ld_alpha": 0.3},
    "dpop, shorter and weighed": {
        "loss_type": "dpop",
        "beta": 0.3,
        "ld_alpha": 0.0,
        "use_weighting": True,
    },
}
"""Every loss type, and what else changes a step's denominators."""


def random_pairs(count: int, *, seed: int = 0, weighted: bool = True) -> Dataset:
    """Prepared pairs of random ids, lengths 1 to 12, with weights and margins."""
    rng = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [rng.randrange(3, 384) for _ in range(rng.randint(1, most))]

    rows = [
        {
            "prompt_ids": [1, *ids(12)],
            "chosen_ids": ids(12),
            "rejected_ids": ids(12),
            "weight": rng.choice([0.3, 1.0, 1.7]) if weighted else 1.0,
            "margin": rng.choice([0.0, 0.2]) if weighted else 0.0,
            "row": number,
        }
        for number in range(count)
    ]
    return Dataset.from_list(rows)


def with_gold(pairs: Dataset) -> Dataset:
    """The same pairs, each with a gold completion that follows from its row's number."""

    def ids(row: int) -> list[int]:
        rng = random.Random(1000 + row)
        return [rng.randrange(3, 384) for _ in range(rng.randint(1, 12))]

    features = Features({**pairs.features, **dict.fromkeys(GOLD_IDS, List(Value("int32")))})
    return pairs.map(lambda row: {"gold_ids": ids(row["row"]), "gold_given": []}, features=features)


def reads_gold(options: Mapping[str, Any]) -> bool:
    """Whether the loss that these options name reads gold completions."""
    return LOSSES[options.get("loss_type", DEFAULT_LOSS)].gold


TIMING = ("runtime", "per_second", "step_seconds", "memory_mb", "pictures_kept")
"""What a name has that tells of the machine and not of the step."""


def untimed(line: dict[str, Any]) -> dict[str, Any]:
    """A log line without what differs from run to run."""
    return {k: v for k, v in line.items() if not any(word in k for word in TIMING)}


class GradientCamera(TrainerCallback):
    """Takes a picture of the gradient of every step, just before the weights move."""

    def __init__(self) -> None:
        self.pictures: Gradients = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = getattr(kwargs["model"], "module", kwargs["model"])
        self.pictures.append(
            {n: whole(p.grad) for n, p in model.named_parameters() if p.grad is not None}
        )


def whole(tensor: Tensor) -> Tensor:
    """A copy of all of a tensor, of which ranks may have parts; every rank must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def train_watched(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    folder: Path,
    constraint_datasets: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Gradients, CPOTrainer]:
    """Train in the data set's order without clipping; the gradient of each step."""
    defaults: dict[str, Any] = {
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
    }
    if reads_gold(options) and isinstance(pairs, Dataset) and "gold_ids" not in pairs.column_names:
        pairs = with_gold(pairs)
    args = CPOConfig(output_dir=str(folder), **{**defaults, **options})
    if not LOSSES[args.loss_type].has_gap:  # it refuses margins
        pairs = pairs.map(lambda row: {"margin": 0.0})
    camera = GradientCamera()
    trainer = CPOTrainer(
        model=model,
        args=args,
        train_dataset=pairs,
        processing_class=tokenizer,
        callbacks=[camera],
        constraint_datasets=constraint_datasets,
    )
    trainer.train()
    return camera.pictures, trainer


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the first."""
    assert one.keys() == other.keys()
    difference = sum((one[n].double() - other[n].double()).square().sum() for n in one)
    size = sum(one[n].double().square().sum() for n in one)
    return float((difference / size).sqrt())
