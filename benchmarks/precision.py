"""What each weight precision moves at a learning rate of 1e-6, and what its optimizer costs.

    python benchmarks/precision.py               measure all, into results/precision.json
    python benchmarks/precision.py --only cost   one part; the others stay as they are
    python benchmarks/precision.py --docs        write the tables of docs/precision.md

1. Two hundred steps of the trainer on a small model, every mode from the same weights and over
   the same pairs: the displacement projected on float32's, over three seeds.
2. Two thousand steps of the optimizers alone, on random gradients that become ten times smaller
   half-way: whether moments kept in bfloat16 still follow.
3. Processor seconds and memory of one step of the optimizers alone on 42 million weights.

Not here: the speed of a whole training step (``step.py``). Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from against_trl.setting import make_model, quiet, tokenizer
from step import in_own_process, machine
from torch import Tensor, nn
from torchao.optim import _AdamW

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.models.stochastic_adamw import StochasticAdamW
from tests.steps import random_pairs

RESULTS = Path(__file__).parent / "results" / "precision.json"
PAGE = Path(__file__).parents[1] / "docs" / "precision.md"
RATE = 1e-6
SEEDS = range(3)
HALF, FLOAT = torch.bfloat16, torch.float32

MODES: dict[str, tuple[torch.dtype, dict[str, bool]]] = {
    "float32": (FLOAT, {}),
    "float32 under autocast": (FLOAT, {"bf16": True}),
    "bfloat16, stochastic rounding": (HALF, {"stochastic_rounding": True}),
    "bfloat16, plain": (HALF, {}),
}
OPTIMIZERS: dict[str, tuple[torch.dtype, Any]] = {
    "float32, fused AdamW": (FLOAT, lambda p: torch.optim.AdamW(p, lr=RATE, fused=True)),
    "bfloat16, stochastic rounding": (HALF, lambda p: StochasticAdamW(p, lr=RATE)),
    "bfloat16, stochastic rounding, torchao's own moments in bfloat16": (
        HALF,
        lambda p: _AdamW(p, lr=RATE, weight_decay=0.0, bf16_stochastic_round=True),
    ),
    "bfloat16, plain fused AdamW": (HALF, lambda p: torch.optim.AdamW(p, lr=RATE, fused=True)),
}
SHAPES = [(32_000, 512), *[(512, 512), (1376, 512), (512, 1376), (512,)] * 8]


def flat(model: nn.Module) -> Tensor:
    """All weights in one row, float64."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def trained(mode: str, seed: int) -> Tensor:
    """The displacement after 200 steps."""
    dtype, options = MODES[mode]
    model = make_model(
        "qwen2",
        seed=seed,
        hidden_size=64,
        head_dim=16,
        intermediate_size=256,
        num_hidden_layers=1,
    )
    with torch.no_grad():
        for weight in model.parameters():
            # spread by 0.02, as models are initialised, and the same in every mode
            weight.copy_((weight * 0.1 if weight.dim() > 1 else weight).bfloat16())
    start = flat(model)
    with tempfile.TemporaryDirectory() as folder, quiet():
        args = CPOConfig(
            output_dir=folder,
            use_cpu=True,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_steps=200,
            per_device_train_batch_size=2,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
            **options,
        )
        rows = random_pairs(16, seed=seed, weighted=False)
        CPOTrainer(model.to(dtype), args, train_dataset=rows, processing_class=tokenizer()).train()
    return flat(model) - start


def optimized(name: str, seed: int, steps: int = 2_000, weights: int = 50_000) -> Tensor:
    """The displacement under random gradients, of half noise, that shrink half-way."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(weights, generator=generator).mul(0.02).bfloat16()
    mean = torch.randn(weights, generator=generator)
    dtype, make = OPTIMIZERS[name]
    parameter = nn.Parameter(start.to(dtype, copy=True))
    optimizer = make([parameter])
    for step in range(steps):
        size = 1.0 if step < steps // 2 else 0.1
        gradient = size * (mean + torch.randn(weights, generator=generator))
        parameter.grad = gradient.to(dtype)
        optimizer.step()
    return parameter.detach().double() - start.double()


def projections(displacement: Any, names: list[str]) -> dict[str, list[float]]:
    """Each name's displacement projected on the first's, a number a seed."""
    found: dict[str, list[float]] = {name: [] for name in names}
    # many small steps: compiling each shape would take longer than it saves
    with torch.compiler.set_stance("force_eager"):
        for seed in SEEDS:
            wanted = displacement(names[0], seed)
            for name in names:
                moved = wanted if name == names[0] else displacement(name, seed)
                found[name].append(float(moved @ wanted / (wanted @ wanted)))
            print({name: round(values[-1], 4) for name, values in found.items()}, flush=True)
    return found


def step_cost(name: str, *, compiled: bool, rounds: int = 4) -> dict[str, Any]:
    """Processor seconds of the first and of later steps, and the peak above what there was."""
    dtype, make = OPTIMIZERS[name]
    parameters = [nn.Parameter(torch.randn(shape).mul(0.02).to(dtype)) for shape in SHAPES]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimizer = make(parameters)
    seconds = []
    with torch.compiler.set_stance("default" if compiled else "force_eager"):
        for _ in range(rounds):
            begun = sum(os.times()[:4])  # the compiler's processes included
            optimizer.step()
            seconds.append(sum(os.times()[:4]) - begun)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    weights = sum(p.numel() for p in parameters)
    return {"first": seconds[0], "later": seconds[1:], "bytes_per_weight": peak / weights}


COSTS = (
    ("float32, fused AdamW", True),
    ("bfloat16, stochastic rounding", True),
    ("bfloat16, stochastic rounding", False),
    ("bfloat16, plain fused AdamW", True),
)


def costs() -> dict[str, Any]:
    """The cost of each optimizer's step, each in a process of its own."""
    return {
        name + ("" if compiled else ", uncompiled"): in_own_process(__file__, name, str(compiled))
        for name, compiled in COSTS
    }


PARTS = {
    "cost": costs,
    "trainer": lambda: projections(trained, list(MODES)),
    "optimizers": lambda: projections(optimized, list(OPTIMIZERS)),
}


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The page's tables by name."""

    def moved(values: dict[str, list[float]]) -> str:
        rows = [
            f"| {name} | {min(v):.4f} | {median(v):.4f} | {max(v):.4f} |"
            for name, v in values.items()
        ]
        return "\n".join(["| weights | least | median | most |", "|---|---:|---:|---:|", *rows])

    rows = [
        f"| {name} | {cost['first']:.1f} s | {median(cost['later']):.3f} s "
        f"({min(cost['later']):.3f} to {max(cost['later']):.3f}) | {cost['bytes_per_weight']:.1f} |"
        for name, cost in found["cost"]["found"].items()
    ]
    head = [
        "| weights and optimizer | first step | later steps | peak, bytes a weight |",
        "|---|---:|---:|---:|",
    ]
    return {
        "trainer": moved(found["trainer"]["found"]),
        "optimizers": moved(found["optimizers"]["found"]),
        "cost": "\n".join([*head, *rows]),
    }


def write_page() -> None:
    """Put the tables where the page has room for them."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables(json.loads(RESULTS.read_text(encoding="utf-8"))).items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page, encoding="utf-8")


def main() -> int:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the page's tables, no more")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.docs:
        write_page()
    elif arguments.worker:
        name, compiled = arguments.worker
        print(json.dumps(step_cost(name, compiled=compiled == "True")))
    else:
        for part in arguments.only:
            measured = {"machine": machine(), "found": PARTS[part]()}
            found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
            RESULTS.write_text(
                json.dumps({**found, part: measured}, indent=1) + "\n", encoding="utf-8"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
