"""Ranks that keep their shards on the host take the steps of those that do not, on CPUs.

There all memory is the host's; what is seen is that FSDP2's policy runs through clipping, guard,
monitor, drift and checkpoints, and changes no bit. For the scripts that are a rank.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed import fsdp
from transformers import PreTrainedTokenizerFast

from counterpoint import CPOConfig, CPOTrainer, ranks
from tests.engine.doors import taken_for_accelerators

STEP_PAIRS = 4
DRIFT = {"kind": "kl_drift", "bound": 0.0, "rate": 50.0}


def on_host(folder: Path) -> dict[str, Any]:
    """Train with shards where they are and on the host, resume the latter; what is alike."""
    from counterpoint.runlog import read_run
    from tests.steps import untimed

    def lines(trainer: Any) -> list[dict[str, Any]]:
        return [untimed(line) for line in trainer.state.log_history if "loss" in line]

    def looks(name: str) -> list[dict[str, Any]]:
        if ranks.rank():  # which the first rank writes
            return []
        found = [untimed(line) for line in read_run(folder / name).movement]
        return [{k: v for k, v in line.items() if k != "time"} for line in found]

    cut = mock.Mock(wraps=fsdp.fully_shard)
    whole = _trained(folder / "device")
    start = _parts(_made(folder / "unused"))
    with (
        mock.patch.object(fsdp, "fully_shard", cut),
        # memory cannot be pinned for an accelerator that is not there
        mock.patch.object(fsdp.CPUOffloadPolicy.__init__, "__defaults__", (False,)),
    ):
        waiting = _trained(folder / "host", optimizer_offload=True)
        weights, moments, looked = _parts(waiting), _moments(waiting), looks("host")
        again = _trained(folder / "host", resumed=1, optimizer_offload=True)
    policies = {type(call.kwargs["offload_policy"]).__name__ for call in cut.call_args_list}

    return {
        "policies": sorted(policies),
        "engine": waiting.engine.name,
        "moved": not _same(start, weights),
        "same weights": _same(_parts(whole), weights),
        "same moments": _same(_moments(whole), moments),
        "same lines": lines(whole) == lines(waiting) and len(lines(whole)) == 2,
        "same movement": looks("device") == looked,
        "same weights, resumed": _same(weights, _parts(again)),
    }


def _made(folder: Path, **options: Any) -> Any:
    from tests.models_on_the_spot import make_model
    from tests.steps import random_pairs
    from tests.tokenizers_on_the_spot import byte_level

    count = int(os.environ["WORLD_SIZE"])
    with taken_for_accelerators():
        return CPOTrainer(
            model=make_model("qwen2_tied"),
            args=CPOConfig(
                output_dir=str(folder),
                per_device_train_batch_size=1,
                gradient_accumulation_steps=STEP_PAIRS // count,
                num_train_epochs=1,
                max_grad_norm=0.5,
                monitor_steps=1,
                save_steps=1,
                logging_steps=1,
                constraints=[DRIFT],
                learning_rate=1e-3,
                ddp_backend="gloo",
                disable_tqdm=True,
                fsdp=True,
                **options,
            ),
            train_dataset=random_pairs(2 * STEP_PAIRS),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=byte_level(["</s>"]), eos_token="</s>"
            ),
        )


def _trained(folder: Path, resumed: int | None = None, **options: Any) -> Any:
    trainer = _made(folder, **options)
    with taken_for_accelerators():
        checkpoint = None if resumed is None else str(folder / f"checkpoint-{resumed}")
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def _parts(trainer: Any) -> list[torch.Tensor]:
    trainer.engine.at_rest(trainer.model)
    return [trainer.engine.own_part(w).detach().clone() for w in trainer.model.parameters()]


def _moments(trainer: Any) -> list[torch.Tensor]:
    kept = trainer.optimizer.state.values()
    return [trainer.engine.own_part(one).clone() for of in kept for one in of.values()]


def _same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
