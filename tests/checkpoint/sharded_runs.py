"""Whole runs of ranks that share a model: saved, stopped, resumed, sent to a hub. Of test_sharded.

As a script it is one rank of the runs that are named. The script of ``sharded_ranks`` runs those
of every suite, so that they share its processes.
"""

from __future__ import annotations

import fnmatch
import shutil
import sys
import warnings
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from transformers import trainer as transformers_trainer

from counterpoint import CPOConfig, CPOTrainer, ranks
from tests.engine.doors import loaded_in_shards, taken_for_accelerators
from tests.models_on_the_spot import make_model
from tests.reliability.elastic import StopAfter
from tests.reliability.scenarios import tokenizer
from tests.steps import random_pairs

STEPS, STOPPED, STEP_PAIRS = 4, 2, 4
"""A run's steps, the one that it is stopped after, and pairs of each."""

HUB: dict[str, Any] = {"push_to_hub": True, "hub_model_id": "some/model", "hub_token": "hf_secret"}

RUNS: dict[str, dict[str, Any]] = {
    "an adapter, sent to a hub": {"adapter": True, **HUB},
    # the rest where there is time for it
    "an adapter, through accelerate": {"adapter": True, "door": "accelerate"},
    "all weights, sent to a hub": {**HUB, "hub_strategy": "all_checkpoints"},
    "all weights, through accelerate": {"door": "accelerate"},
    "models alone": {"save_only_model": True},
    "models alone, an adapter": {"save_only_model": True, "adapter": True},
    "two copies": {"replicas": 2},
    "two copies, through accelerate": {"replicas": 2, "door": "accelerate"},
    "two copies, an adapter, through accelerate": {
        "replicas": 2,
        "adapter": True,
        "door": "accelerate",
    },
}
"""In each the first evaluation is the best: the pairs that are held out are turned round."""

QUICK = list(RUNS)[:1]
IDS = torch.arange(3, 15).reshape(3, 4)


def base_model(*, seed: int = 0) -> Any:
    """What a run begins with, without its adapter; of another seed another one."""
    return make_model("llama", seed=seed)


class Hub:
    """Takes what is sent to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent = folder, 0

    def create_repo(self, name: str, **_: Any) -> Any:
        """A repository is always there."""
        return SimpleNamespace(repo_id=name)

    def upload_folder(
        self,
        *,
        folder_path: str,
        ignore_patterns: list[str] | None = None,
        path_in_repo: str = "",
        **_: Any,
    ) -> Any:
        """Keep a copy of what is sent, as a hub has it."""
        place = self.folder / str(self.sent) / path_in_repo
        for path in sorted(Path(folder_path).rglob("*")):
            name = path.relative_to(folder_path).as_posix()
            if path.is_file() and not any(fnmatch.fnmatch(name, p) for p in ignore_patterns or ()):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place / name)
        self.sent += 1
        done: Future[None] = Future()
        done.set_result(None)
        return done


def trainer_of(name: str, folder: Path, *, seed: int = 0, stop: int = 0) -> CPOTrainer:
    """A run, on as many ranks as were launched.

    Args:
        name: of ``RUNS``.
        folder: of the run.
        seed: of what trains; where a run resumes it is another one.
        stop: the step it is stopped after; 0: none.
    """
    options = dict(RUNS[name])
    door, copies = options.pop("door", "load"), options.pop("replicas", 1)
    adapter = options.pop("adapter", False)
    model = base_model(seed=0 if adapter else seed)  # what an adapter lies on is in no checkpoint
    if door == "load":
        model = loaded_in_shards(model, folder.with_name("model"), copies)
    elif copies > 1:
        options["fsdp_replicas"] = copies
    if adapter:
        torch.manual_seed(seed)
        targets = ["q_proj", "down_proj"]
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
        )
    turned = {"chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"}
    pairs = random_pairs(2 * STEP_PAIRS)
    with taken_for_accelerators() if door == "accelerate" else nullcontext():
        return CPOTrainer(
            model=model,
            args=CPOConfig(
                output_dir=str(folder),
                per_device_train_batch_size=1,
                gradient_accumulation_steps=STEP_PAIRS // ranks.count(),
                num_train_epochs=STEPS * STEP_PAIRS / len(pairs),
                learning_rate=1e-2,
                cpo_alpha=0.0,
                eval_strategy="steps",
                eval_steps=1,
                logging_steps=3,
                save_strategy="steps",
                save_steps=1,
                save_total_limit=1,
                load_best_model_at_end=True,
                metric_for_best_model="eval_loss",
                gradient_checkpointing=False,
                disable_tqdm=True,
                use_cpu=True,
                ddp_backend="gloo",
                fsdp=door == "accelerate" or None,
                **options,
            ),
            train_dataset=pairs,
            eval_dataset=pairs.select(range(3)).rename_columns(turned),
            processing_class=tokenizer(),
            callbacks=[StopAfter(stop)],
        )


def run_whole_and_stopped(name: str, folder: Path) -> None:
    """The run as nobody stops it, and the same stopped and resumed; both save their best model."""
    hub = Hub(folder / "hub")
    with mock.patch.object(transformers_trainer, "hf_api", return_value=hub):
        trainer = trainer_of(name, folder / "whole")
        trainer.train()
        trainer.save_model()
        with torch.no_grad():
            logits = trainer.model.eval()(input_ids=IDS).logits
        if ranks.rank() == 0:
            seen = {"logits": logits, "best": trainer.state.best_global_step}
            torch.save(seen, folder / "seen.pt")
        hub.folder = folder / "hub, resumed"
        if RUNS[name].get("save_only_model"):
            return
        with suppress(KeyboardInterrupt):
            trainer_of(name, folder / "again", stop=STOPPED).train()
        again = trainer_of(name, folder / "again", seed=7)
        again.train(resume_from_checkpoint="auto")
        again.save_model()


def main(folder: Path, names: list[str]) -> None:
    """Be one rank."""
    warnings.filterwarnings("ignore")
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    ranks.leave_at_exit()
    for name in names:
        run_whole_and_stopped(name, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
