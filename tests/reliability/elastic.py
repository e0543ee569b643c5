"""One run on 2, 1, 3 and 4 ranks in turn, against the same run on one: every scenario, every line.

    python -m tests.reliability.elastic

Each part of the run is a launch of so many processes, which train from the newest checkpoint until
they are stopped before a step. What is compared: weights and the optimizer's state of the last
checkpoint, and every line of the run's streams. ``make torture`` runs all of it;
``test_elastic.py`` a chain of two launches.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.runlog import read_run
from tests.engine.doors import loaded_in_shards
from tests.float64 import Float64Throughout
from tests.models_on_the_spot import make_model
from tests.reliability.scenarios import TEXT, lines, tokenizer
from tests.steps import distance, random_pairs

CHAIN = ((2, 3), (1, 5), (3, 8), (4, 0))
"""Ranks of each part, and the step that it is stopped after; 0: it ends."""

SAFETY = {"kind": "safety", "bound": 0.1, "start": 0.7, "rate": 20.0, "update": "dual_ascent"}

SCENARIOS: dict[str, dict[str, Any]] = {
    "named": {"pairs_per_step": 5},
    "followed": {},  # two ranks of two pairs a device: four pairs a step
    "float64": {"pairs_per_step": 5, "dtype": torch.float64},
    "constraints": {
        "constraints": [SAFETY, {"kind": "bc", "slack": 0.05}],
        "second": 7,
    },
    "early stopping": {
        "pairs_per_step": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "metric_for_best_model": "eval_loss",
        "load_best_model_at_end": True,
        # nothing is that much better than the first, so that it counts on over the ranks
        "callbacks": [lambda: EarlyStoppingCallback(4, early_stopping_threshold=10.0)],
    },
    "a stream": {"pairs_per_step": 4, "stream": True, "max_steps": 12},
    "an adapter": {"pairs_per_step": 5, "adapter": True},
    "experts": {"pairs_per_step": 5, "kind": "qwen3_moe"},
    "sharded": {"pairs_per_step": 5, "sharded": True},
    "an adapter in shards": {"pairs_per_step": 5, "adapter": True, "sharded": True},
    "constraints in shards": {
        "pairs_per_step": 5,
        "constraints": [SAFETY, {"kind": "bc", "slack": 0.05}, {"kind": "kl_drift", "bound": 0.0}],
        "second": 7,
        "sharded": True,
    },
    "experts in shards": {
        "pairs_per_step": 5,
        "kind": "qwen3_moe",
        "model": {"num_experts": 12},  # transformers loads no shard without one
        "sharded": True,
    },
    "more ranks than pairs": {"pairs_per_step": 2, "rows": 6},
}

LIMITS = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Distance of the weights from those of one rank, relative."""


class StopAfter(TrainerCallback):
    """Ends a training as a signal would, before the step after ``step``; 0 never does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step and state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_of(name: str, folder: Path, *, stop: int = 0, **changes: Any) -> CPOTrainer:
    """The run of a scenario, on as many ranks as were launched.

    Args:
        name: of the scenario.
        folder: of the run.
        stop: the step it is stopped after; 0: none.
        changes: of its options.
    """
    rest = {**SCENARIOS[name], **changes}
    model = make_model(rest.pop("kind", "qwen2_tied"), **rest.pop("model", {}))
    dtype = rest.pop("dtype", torch.float32)
    model = widened(model.to(dtype)) if dtype is torch.float64 else model.to(dtype)
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if rest.pop("sharded", False) and several:
        model = loaded_in_shards(model, folder.with_name(f"{folder.name} model"))
    rows: Any = random_pairs(rest.pop("rows", 13))
    if rest.pop("stream", False):
        rows = Dataset.from_list(TEXT * 2).to_iterable_dataset()
    second = rest.pop("second", None)
    peft_config = None
    if rest.pop("adapter", False):
        import peft

        peft_config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    callbacks = [make() for make in rest.pop("callbacks", [])]
    options = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "use_cpu": True,
        **({"ddp_backend": "gloo"} if several else {}),
        **rest,
    }
    return CPOTrainer(
        model=model,
        args=CPOConfig(output_dir=str(folder), **options),
        train_dataset=rows,
        eval_dataset=random_pairs(7, seed=1) if "eval_strategy" in options else None,
        constraint_datasets={"safety": random_pairs(second, seed=5)} if second else None,
        processing_class=tokenizer(),
        peft_config=peft_config,
        callbacks=[*callbacks, StopAfter(stop)],
    )


def widened(model: Any) -> Any:
    """Have norms and positions of a float64 model in float64 as well (``tests.float64``)."""

    def wide(forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def in_float64(*args: Any, **kwargs: Any) -> Any:
            with Float64Throughout():
                return forward(*args, **kwargs)

        return in_float64

    for module in model.modules():
        if type(module).__name__.endswith(("RMSNorm", "RotaryEmbedding")):
            module.forward = wide(module.forward)
    return model


def part(name: str, folder: Path, stop: int) -> None:
    """Train a part of a run, from its newest checkpoint on."""
    try:
        trainer = trainer_of(name, folder, stop=stop)
        trainer.train(resume_from_checkpoint="auto")
        trainer.save_model()
    except KeyboardInterrupt:
        if not stop:
            raise


def alone(name: str, folder: Path) -> None:
    """The whole run on one rank."""
    options: dict[str, Any] = {}
    if "pairs_per_step" not in SCENARIOS[name]:  # what two ranks make of it
        options["gradient_accumulation_steps"] = 2
    trainer = trainer_of(name, folder, **options)
    trainer.train()
    trainer.save_model()


def weights(folder: Path, *, optimizer: bool = True) -> dict[str, torch.Tensor]:
    """Weights of a run, and the state of the optimizer in its last checkpoint."""
    found = load_file(next(folder.glob("*model.safetensors")))
    if not optimizer:
        return found
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for file in sorted(last.glob("*.safetensors")):
        if file.name.startswith(("rank-", "run_state")):
            continue
        found |= {f"{file.name} {name}": tensor for name, tensor in load_file(file).items()}
    return found


def apart(name: str, one: Path, other: Path) -> float:
    """How far two runs of a scenario have come apart, relative; of shards the weights alone."""
    optimizer = not SCENARIOS[name].get("sharded")
    return distance(*(weights(run, optimizer=optimizer) for run in (one, other)))


def differences(name: str, one: Path, other: Path) -> list[str]:
    """What differs between a run and the same on one rank, beyond rounding.

    Args:
        name: of the scenario.
        one: folder of the run on one rank.
        other: of the other one.
    """
    limit = LIMITS[SCENARIOS[name].get("dtype", torch.float32)]
    far = apart(name, one, other)
    found = [] if far <= limit else [f"the weights: {far:.1e}"]
    for stream, entries in lines(one).items():
        if stream == "movement" and SCENARIOS[name].get("sharded"):
            continue  # other shards are watched anew, which the log says
        others = lines(other)[stream]
        if len(entries) != len(others):
            found.append(f"{stream}: {len(others)} lines for {len(entries)}")
        for mine, theirs in zip(entries, others, strict=False):
            # how far weights have moved is itself a difference of them
            rounding = 1e-3 if stream == "movement" else 1e-5
            wrong = _unlike(mine, theirs, rounding)
            found += [f"{stream}, step {mine.get('step')}: {text}" for text in wrong]
    return found


def _unlike(one: Any, other: Any, rounding: float, name: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{name} has {sorted(one.keys() ^ other.keys())}"]
        found = found if one.keys() != other.keys() else []
        for key in one.keys() & other.keys() - {"total_flos"}:  # padding depends on the cut
            found += _unlike(one[key], other[key], rounding, f"{name} {key}")
        return found
    if isinstance(one, float) and isinstance(other, float):
        near = abs(one - other) <= rounding * max(1.0, abs(one))
    else:
        near = one == other
    return [] if near else [f"{name} {other!r} for {one!r}"]


def be_a_rank() -> int:
    """Train the part of each run that the command's words name."""
    folder, stop, *names = sys.argv[1:]
    if os.environ["WORLD_SIZE"] != "1":  # or the first model in shards would be in one
        torch.distributed.init_process_group("gloo")
    for name in names:
        part(name, Path(folder) / name, int(stop))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def main() -> int:
    """Be one rank of a part; or, without arguments, run every chain and compare."""
    warnings.filterwarnings("ignore")
    if "RANK" in os.environ:
        return be_a_rank()
    from tests.invariance.test_ranks import launch

    wrong, began = 0, time.monotonic()
    names = sys.argv[1:] or list(SCENARIOS)
    with tempfile.TemporaryDirectory(prefix="counterpoint-elastic-") as place:
        chain, whole = Path(place) / "chain", Path(place) / "whole"
        for name in names:
            alone(name, whole / name)
        for ranks, stop in CHAIN:
            for code, output in launch(
                "tests.reliability.elastic", [str(chain), str(stop), *names], ranks=ranks
            ):
                if code:
                    print(output[-4000:])
                    return 1
            print(f"{ranks} ranks, to step {stop or 'the last'} ({time.monotonic() - began:.0f} s)")
        for name in names:
            found = differences(name, whole / name, chain / name)
            segments = read_run(chain / name).facts["segments"]
            far = apart(name, whole / name, chain / name)
            print(f"{name}: weights within {far:.1e}; {[one['ranks'] for one in segments]}")
            for text in found:
                print(f"    {text}")
            wrong += bool(found)
    print(f"{len(names) - wrong} of {len(names)} equal the run on one rank")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
