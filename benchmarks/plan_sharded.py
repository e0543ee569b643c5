"""Claim: the planner predicts a rank's peak within 15 % where two ranks share a model in shards.

Each row trains four steps of real pairs on two gloo processes, the same pairs in every step; the
model is loaded in shards. Measured is the peak of the process that holds more, by the method of
``planner``: in the last three steps, over what the process holds when training is over without its
own part of weights, gradients and moments.

    python benchmarks/plan_sharded.py [--rows fp32 deep ...]
    python benchmarks/plan_sharded.py --docs       write the table of docs/planning.md

Beside it stands the state of the whole model: a rank is to hold half of it, and what the planner
counts for a micro-batch and for what is gathered. Linux with glibc only.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import planner as single
import step

ROOT = Path(__file__).parents[1]
RANKS = 2
WORK: dict[str, dict[str, Any]] = {
    "fp32": {"name": "Qwen3-shaped 34M, 8 pairs a rank, fp32", "model": step.SMALL},
    "few": {"name": "Qwen3-shaped 34M, 2 pairs a rank, fp32", "model": step.SMALL, "pairs": 2},
    "lora": {
        "name": "the same model, 8 pairs a rank, LoRA of rank 16",
        "model": step.SMALL,
        "lora": 16,
    },
    "checkpointing": {
        "name": "the same model, 8 pairs a rank, every layer computed again",
        "model": step.SMALL,
        "options": {"gradient_checkpointing": True},
    },
    "share": {
        "name": "the same model, half of its layers computed again, 8 pairs a rank as 2 × 4",
        "model": step.SMALL,
        "pairs": 2,
        "options": {
            "gradient_checkpointing": True,
            "checkpointing_share": 0.5,
            "gradient_accumulation_steps": 4,
        },
    },
    "deep": {
        "name": "Llama-shaped, 16 layers, untied, 4 pairs a rank, fp32",
        "model": single.DEEP,
        "pairs": 4,
    },
}
"""Row -> its work: ``pairs`` of a rank's micro-batch, ``options``, and the rank of an adapter."""


def save_model(row: str, folder: Path) -> None:
    """Write a row's model into a folder of its name, the same whenever it is made."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config = dict(WORK[row]["model"])
    config = CONFIG_MAPPING[config.pop("model_type")](**config)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / row)


def adapter_of(row: str) -> Any:
    """The adapter that a row trains; None where it trains the model."""
    if "lora" not in WORK[row]:
        return None
    from peft import LoraConfig

    rank = WORK[row]["lora"]
    return LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear")


def trainer_of(
    row: str, folder: Path, *, shards: int = RANKS, steps: int = 4, run: str = "run"
) -> Any:
    """A trainer on this rank, whose every step has the same pairs, and on every rank the same.

    Args:
        row: of ``WORK``.
        folder: has what ``save_model`` wrote, and the tokenizer in ``tokenizer``.
        shards: ranks that share a weight; 1: each has the whole model, and they run under DDP.
        steps: to train.
        run: name of its folder among the row's.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.distributed import DistributedConfig

    from counterpoint import CPOConfig, CPOTrainer, ranks

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
        ranks.leave_at_exit()
    work = {"pairs": 8, "options": {}, **WORK[row]}
    count = work["pairs"] * work["options"].get("gradient_accumulation_steps", 1)
    # every pair once for each rank
    rows = [one for one in step.rows_of("hh", count) for _ in range(RANKS)]
    sharing = {"distributed_config": DistributedConfig(fsdp_size=shards)} if shards > 1 else {}
    options = {
        "output_dir": str(folder / f"{row}-{run}"),
        "per_device_train_batch_size": work["pairs"],
        "max_steps": steps,
        "num_train_epochs": steps,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "ddp_backend": "gloo",
        "optim": "adamw_torch_fused",
        "logging_steps": 100,
        "save_strategy": "no",
        "disable_tqdm": True,
        "monitor_steps": 0,
        **work["options"],
    }
    return CPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / row, **sharing),
        args=CPOConfig(**options),
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        train_dataset=Dataset.from_list(rows),
        peft_config=adapter_of(row),
    )


def compare(row: str, folder: Path) -> dict[str, Any]:
    """Prediction and measurement of a row, on this rank; bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from counterpoint.planner.holdings import holdings_of
    from counterpoint.planner.plan import Planner
    from counterpoint.planner.shapes import Lengths
    from counterpoint.planner.weightless import adapted

    trainer = trainer_of(row, folder)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / row))
    lengths, adapter = Lengths.of(trainer.train_dataset), adapter_of(row)
    planned = Planner(whole, trainer.args, lengths, adapter=adapter, ranks=RANKS, shards=RANKS)
    said, held = planned.asked(0), planned.demand(planned.setting).holdings.least
    trained = whole if adapter is None else adapted(whole, adapter)
    state = holdings_of(trained, optim=str(trainer.args.optim)).least
    del whole, trained, planned
    return {"peak": said.peak, "held": held, "state": state, "measured": single.measured(trainer)}


def launched(
    script: str, *arguments: str, env: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What a script's ``--worker`` prints on each of the ranks, which are processes of their own.

    Args:
        script: its file.
        arguments: those after ``--worker``.
        env: variables to set for it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        **(env or {}),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with tempfile.TemporaryDirectory() as folder:
        said = [(Path(folder) / f"{n}.out", Path(folder) / f"{n}.err") for n in range(RANKS)]
        started = []
        for rank, (out, err) in enumerate(said):
            # files, since a rank that fills a pipe waits for its reader, and the others for it
            with out.open("w") as output, err.open("w") as errors:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-W", "ignore", script, "--worker", *arguments],
                        env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=output,
                        stderr=errors,
                    )
                )
        try:
            for process, (_, err) in zip(started, said, strict=True):
                if process.wait():
                    raise SystemExit(f"{' '.join(arguments)} failed:\n{err.read_text()[-3000:]}")
        finally:
            for process in started:  # those that wait for one that failed
                process.kill()
                process.wait()
        return [json.loads(out.read_text().splitlines()[-1]) for out, _ in said]


def on_ranks(row: str, folder: Path) -> dict[str, Any]:
    """A row on processes of their own; of their measurements the largest."""
    save_model(row, folder)
    found = launched(__file__, row, str(folder), env=single.GIVES_BACK)
    measured = max(one.pop("measured") for one in found)
    return {"row": row, **found[0], "measured": measured, "ratio": found[0]["peak"] / measured}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as docs/planning.md shows them."""
    lines = [
        "| two ranks, a model in shards | predicted a rank | measured | ratio | state of the whole "
        "model | of it a rank's |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        missed = "" if abs(one["ratio"] - 1) <= single.WITHIN else " **missed**"
        sizes = [one[name] / 2**20 for name in ("peak", "measured", "state", "held")]
        lines.append(
            f"| {WORK[one['row']]['name']} | {sizes[0]:,.0f} MiB | {sizes[1]:,.0f} MiB | "
            f"{one['ratio']:.2f}{missed} | {sizes[2]:,.0f} MiB | {sizes[3]:,.0f} MiB |"
        )
    lines.append("\nGoal: within 15 %. `python benchmarks/plan_sharded.py`")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=2, metavar=("ROW", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        row, folder = options.worker
        print(json.dumps(compare(row, Path(folder))))
        return
    results = step.RESULTS / "plan_sharded.json"
    if options.docs:
        rows = json.loads(results.read_text())["rows"]
        step.put_between(ROOT / "docs" / "planning.md", "plan_sharded", table(rows))
        return
    step.need_data()
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for row in options.rows:
            result = on_ranks(row, Path(folder))
            step.keep({**result, "machine": step.machine()}, results, WORK)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
