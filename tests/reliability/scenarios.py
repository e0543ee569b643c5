"""Short runs of every kind that must go on exactly, and what is compared of two of them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load
from transformers import PreTrainedTokenizerFast, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.data.mixture import Mixture, Part
from counterpoint.runlog import STREAMS, read_run
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs, with_gold
from tests.tokenizers_on_the_spot import byte_level

TEXT = [
    {
        **{"prompt": f"What is {i} and {i}?", "chosen": f" It is {2 * i}."},
        **{"rejected": f" Maybe {i}?", "gold": f" {i} and {i} is {2 * i}."},
    }
    for i in range(5)
]

DROPPING = {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
"""Dropout of a GPT-2."""

TIMES = ("time", "runtime", "per_second", "seconds", "memory")
"""Words in the names of what no two runs have in common."""


class Counting(TrainerCallback):
    """A callback with a state of its own, numbers and a tensor."""

    def __init__(self) -> None:
        self.steps, self.norms = 0, torch.zeros(3)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        weights = next(kwargs["model"].parameters()).detach()
        self.norms = self.norms.roll(1)
        self.norms[0] = weights.norm()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.norms = state["steps"], state["norms"]


def three_sets() -> Mixture:
    """Eleven rows of three sets, of which an epoch takes twelve: 4 + 6 + 2."""
    rows = [*TEXT, *({**row, "prompt": f"{row['prompt']} Now?"} for row in TEXT), *TEXT[:1]]
    sizes = {"once": (4, 1), "twice": (3, 2), "by halves": (4, Fraction(1, 2))}
    parts = [Part(name, Fraction(w), n, Dataset.from_list(rows)) for name, (n, w) in sizes.items()]
    return Mixture(Dataset.from_list(rows), parts)


BEST: dict[str, Any] = {
    "evaluate": True,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "metric_for_best_model": "eval_loss",
    "load_best_model_at_end": True,
}

SCENARIOS: dict[str, dict[str, Any]] = {
    "dropout and a schedule": {
        "kind": "gpt2",
        "model": DROPPING,
        "disable_dropout": False,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
    },
    "dropout in an adapter": {"lora_dropout": 0.2, "disable_dropout": False},
    "an adapter and a norm beside it": {"lora_dropout": 0.0, "unfrozen": "norm"},
    "dropout and workers": {
        "kind": "gpt2",
        "model": DROPPING,
        "disable_dropout": False,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
    },
    "accumulation": {
        "loss_type": "tpo_l",
        "rows": lambda: with_gold(random_pairs(5)),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_micro_batch_tokens": 30,
    },
    "experts": {"kind": "qwen3_moe"},
    "experts with dropout": {
        "kind": "qwen3_moe",
        "model": {"attention_dropout": 0.1},
        "disable_dropout": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
    },
    "tied weights": {"kind": "qwen2_tied"},
    "an encoder-decoder with dropout": {
        "kind": "mbart",
        "model": {"dropout": 0.1},
        "disable_dropout": False,
    },
    "log lines over several steps": {"logging_steps": 4, "callbacks": [Counting, Counting]},
    "the end of an epoch": {
        "evaluate": True,
        "logging_strategy": "epoch",
        "eval_strategy": "epoch",
        "eval_on_start": True,
    },
    "saved at the end of an epoch": {"save_strategy": "epoch", "eval_strategy": "epoch", **BEST}
    | {"eval_strategy": "epoch"},
    "the best model": {**BEST, "save_total_limit": 2},
    "stopped early": {
        **BEST,
        "learning_rate": 0.5,
        "early_stopping_patience": 2,
    },
    "a schedule that watches": {
        **BEST,
        "learning_rate": 0.3,
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0},
    },
    "an end within an epoch": {"max_steps": 5},
    "a stream": {"stream": True, "max_steps": 7, "logging_steps": 2},
    "a stream in lanes": {
        **{"stream": True, "shards": 2, "stream_shards": 2, "max_steps": 7},
        "loss_type": "tpo",
    },
    "three sets with weights": {"rows": three_sets, "per_device_train_batch_size": 4},
    "another optimizer": {"optim": "adafactor"},
    "bfloat16 weights and another optimizer": {"optim": "adafactor", "dtype": torch.bfloat16},
    "a loss scaler that grows": {"scaler": True, "max_grad_norm": 0.0},
    "a reference": {"loss_type": "dpo", **BEST, "dataloader_num_workers": 1},
    "tokens counted": {"include_num_input_tokens_seen": "all"},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One that need only end a text."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(["</s>"]), eos_token="</s>")


def trainer_of(
    scenario: dict[str, Any], folder: Path, *, drawn: int = 0, **changes: Any
) -> CPOTrainer:
    """A run of five pairs, two a step, over two epochs: six steps, a checkpoint after each.

    Args:
        scenario: of ``SCENARIOS``.
        folder: of the run.
        drawn: seed of the model's first weights.
        changes: of the scenario.
    """
    rest = {**scenario, **changes}
    kind, model_options = rest.pop("kind", "qwen2"), rest.pop("model", {})
    dropout = rest.pop("lora_dropout", None)
    # what lies under an adapter is the same for all
    model = make_model(kind, seed=0 if dropout is not None else drawn, **model_options)
    model.to(rest.pop("dtype", torch.float32))
    peft_config = None
    if dropout is not None:
        import peft

        peft_config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], lora_dropout=dropout
        )
    rows: Any = rest.pop("rows", lambda: random_pairs(5))()
    made_by = rest.pop("tokenizer", tokenizer)
    if rest.pop("stream", False):
        rows = Dataset.from_list(TEXT).to_iterable_dataset(num_shards=rest.pop("shards", 1))
    callbacks = [make() for make in rest.pop("callbacks", [])]
    unfrozen, scaler = rest.pop("unfrozen", None), rest.pop("scaler", False)
    evaluated = random_pairs(3, seed=1) if rest.pop("evaluate", False) else None
    trainer = CPOTrainer(
        model=model,
        args=CPOConfig(
            output_dir=str(folder),
            **{
                "per_device_train_batch_size": 2,
                "num_train_epochs": 2,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 1,
                "gradient_checkpointing": False,
                "disable_tqdm": True,
                "use_cpu": True,
                **rest,
            },
        ),
        train_dataset=rows,
        eval_dataset=evaluated,
        processing_class=made_by(),
        peft_config=peft_config,
        callbacks=callbacks,
    )
    if scaler:  # what fp16 has on a GPU
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8, growth_interval=2)
    if unfrozen is not None:
        for name, parameter in trainer.model.named_parameters():
            if unfrozen in name:
                parameter.requires_grad_(True)
    if dropout is not None and drawn:
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
    return trainer


def differences(one: Path, other: Path, *, checked: bool = True) -> list[str]:
    """What differs between two checkpoints, beside times and the folders they lie in.

    Args:
        one: folder of a checkpoint.
        other: of another one.
        checked: whether shapes and types were checked in the process that wrote them: that draws
            from python's own generator, which is then left out.
    """
    names = {path.relative_to(one).as_posix() for path in one.rglob("*") if path.is_file()}
    others = {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    found = [f"{name} is only in one" for name in sorted(names ^ others)]
    for name in sorted(names & others - {"manifest.json", "training_args.json", "README.md"}):
        left, right = (one / name).read_bytes(), (other / name).read_bytes()
        if name in ("trainer_state.json", "run_state.json"):
            left, right = _timeless(json.loads(left)), _timeless(json.loads(right))
        elif name == "adapter_config.json":
            left, right = _orderless(json.loads(left)), _orderless(json.loads(right))
        elif name.startswith("rank-") and name.endswith(".safetensors") and checked:
            left, right = _without_python(load(left)), _without_python(load(right))
        if left != right:
            found.append(name)
    return found


def _without_python(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {n: t.tolist() for n, t in tensors.items() if not n.startswith("random.python")}


def _orderless(config: dict[str, Any]) -> dict[str, Any]:
    """Without the order of its lists: PEFT writes sets, whose order differs between processes."""
    return {k: sorted(map(str, v)) if isinstance(v, list) else v for k, v in config.items()}


def lines(folder: Path) -> dict[str, list[Any]]:
    """All that a run wrote of itself, without the times."""
    run = read_run(folder)
    return {stream: _timeless(list(getattr(run, stream))) for stream in STREAMS}


def summary(trainer: CPOTrainer) -> Any:
    """The account that the trainer itself keeps, without the times."""
    return _timeless(
        {
            "log": trainer.state.log_history,
            "best": trainer.state.best_metric,
            "best step": trainer.state.best_global_step,
            "steps": trainer.state.global_step,
            "epoch": trainer.state.epoch,
            "flos": trainer.state.total_flos,
        }
    )


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        # lengths of streams hold times, and the best checkpoint its folder
        left_out = ("streams", "best_model_checkpoint")
        return {
            key: _timeless(part)
            for key, part in value.items()
            if key not in left_out and not any(word in key for word in TIMES)
        }
    return [_timeless(part) for part in value] if isinstance(value, list | tuple) else value
