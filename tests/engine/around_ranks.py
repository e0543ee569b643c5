"""The cases of test_around_the_step, run by one process or by ranks that share a model.

As a script it is one rank: it trains every case and writes what it saw.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedTokenizerFast

from counterpoint import ranks
from counterpoint.monitor import sample
from tests.engine.doors import loaded_in_shards
from tests.engine.shards_on_host import on_host
from tests.engine.timed_layouts import timed
from tests.reliability.trials import TORTURE

STEP_PAIRS = 4
CASES: dict[str, dict[str, Any]] = {
    "all weights": {"monitor_steps": 1},
}
WRITING = {
    "generate_during_eval": True,
    "eval_samples": 3,
    "eval_sample_tokens": 5,
    "eval_sample_temperature": 1.0,
}


def run(case: dict[str, Any], folder: Path, count: int) -> dict[str, Any]:
    """Train one case on this rank, evaluating and writing on the way; all that it shows."""
    from peft import LoraConfig, get_peft_model

    from counterpoint.runlog import read_run
    from tests.models_on_the_spot import make_model
    from tests.steps import random_pairs, train_watched, untimed
    from tests.tokenizers_on_the_spot import byte_level

    case = dict(case)
    model: Any = make_model("qwen2_tied").double()
    if count > 1:
        model = loaded_in_shards(model, folder / "model")
    rank = case.pop("lora", None)
    if rank is not None:
        torch.manual_seed(0)
        adapter = LoraConfig(r=rank, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
        model = get_peft_model(model, adapter)
    # of every tensor all entries are looked at, so that looks are the same and not only alike
    with mock.patch.object(sample, "MOST", 2**20):
        _, trainer = train_watched(
            model,
            PreTrainedTokenizerFast(tokenizer_object=byte_level(["</s>"]), eos_token="</s>"),
            random_pairs(2 * STEP_PAIRS),
            folder / "run",
            per_device_train_batch_size=1,
            gradient_accumulation_steps=STEP_PAIRS // count,
            per_device_eval_batch_size=2,
            ddp_backend="gloo" if count > 1 else None,
            **WRITING,
            **case,
        )
    sets = {"one pair": random_pairs(1, seed=1), "five": random_pairs(5, seed=2)}
    scores = trainer.measure(sets["five"]).scores()
    predicted = trainer.predict(sets["five"])
    seen: dict[str, Any] = {
        "logs": [_numbers(line) for line in trainer.state.log_history if "loss" in line],
        "evaluated": {name: _numbers(trainer.evaluate(one)) for name, one in sets.items()},
        "predicted": _numbers(predicted.metrics),
        "scores": {f.name: getattr(scores, f.name).tolist() for f in fields(scores)},
        "engine": trainer.engine.name,
    }
    if ranks.rank() == 0:
        found = read_run(folder / "run")
        seen["written"] = [[one["kind"], one["completion"]] for one in found.samples]
        seen["movement"] = [untimed(line) for line in found.movement]
    return seen


BY_NAME: dict[str, dict[str, Any]] = {
    "all weights": {},
    "an adapter": {"lora_r": 2, "layout": "padded"},
}


TIMED = [("padded", "load")]
if TORTURE:
    TIMED += [("shared", "load"), ("padded", "accelerate"), ("shared", "accelerate")]
"""The layout that is faster, and how the model comes to be in shards."""


def by_name(options: dict[str, Any], folder: Path, count: int) -> dict[str, Any]:
    """Train a model by its name with the command on this rank; what it leaves in its folder."""
    from counterpoint.cli.main import main as command
    from tests.models_on_the_spot import make_model
    from tests.tokenizers_on_the_spot import byte_level

    def write() -> None:
        model: Any = make_model("qwen2_tied").double()
        model.save_pretrained(folder / "model")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(["</s>"]), eos_token="</s>")
        tokenizer.save_pretrained(folder / "model")
        rows = [
            {"prompt": "q" * n, "chosen": "yes" * n, "rejected": "no" * (9 - n)}
            for n in range(1, 2 * STEP_PAIRS + 1)
        ]
        (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    folder.mkdir(parents=True, exist_ok=True)
    ranks.first_does(write)
    given = {
        "model": folder / "model",
        "dataset": folder / "pairs.jsonl",
        "output_dir": folder / "run",
        "model_init_kwargs": '{"dtype": "float64"}',
        "optim": "sgd",  # whose weights are as near as its gradients
        "learning_rate": 0.1,
        "max_grad_norm": 0.5,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": STEP_PAIRS // count,
        **options,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    code = command(["train", *words, *(("--fsdp", "2") if count > 1 else ())])
    return {
        "code": code,
        "by shard": sorted(path.name for path in folder.glob("run/checkpoint-*/shards.json")),
    }


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    from tests.steps import untimed

    return {k: float(v) for k, v in untimed(line).items() if k != "epoch"}


def main(folder: Path) -> None:
    """Be one rank."""
    warnings.filterwarnings("ignore")
    torch.distributed.init_process_group("gloo")
    ranks.leave_at_exit()
    count = int(os.environ["WORLD_SIZE"])
    seen = {
        name: run(case, folder / f"run-{at}", count)
        for at, (name, case) in enumerate(CASES.items())
    }
    seen["by name"] = {
        name: by_name(case, folder / f"named-{at}", count)
        for at, (name, case) in enumerate(BY_NAME.items())
    }
    seen["on the host"] = on_host(folder / "host")
    seen["timed"] = {
        f"{faster}, {door}": timed(faster, door, folder / f"{faster}-{door}")
        for faster, door in TIMED
    }
    (folder / f"seen-{ranks.rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
