"""Claim: what holds on two cores holds on a GPU, and the GPU is kept busy.

    python benchmarks/gpu.py               everything, into results/gpu.json: a quarter of an hour
    python benchmarks/gpu.py --only mfu    one or several of the parts below
    python benchmarks/gpu.py --minutes 40 --rounds 2
                                           every side of ``steps`` twice, in turns
    python benchmarks/gpu.py --dry-run     the same code on tiny shapes, on a CPU, nothing written
    python benchmarks/gpu.py --docs        write the tables of docs/speed.md

1. ``kernels``: FlashAttention's kernel on shared rows against the pairwise way: whether it is
   right, for every kind of call, and how long each takes.
2. ``steps``: hh-rlhf on models of 0.5 and 8 billion parameters: TRL, TRL with Liger's kernels,
   Unsloth, and ours with ``layout="auto"``, which says what it measured of both layouts. Memory is
   that of tensors over weights, gradients and optimizer.
3. ``mfu``: useful work (``roofline.py`` has the formula) over the dense bfloat16 peak of the
   device, for both models in both layouts, and the planner's peak over the measured one. The
   weights of the larger one are bfloat16 and its activations checkpointed, or it would not fit on
   one device; the other's are float32.
4. ``heads``: our head against others, forward and backward, time, memory and error. A head must
   give a number a token to serve preference losses; Liger's gives a sum.
5. ``memory``: a budget of tokens that is too large on purpose. The run should go on by itself,
   with one warning and the losses of a run whose budget fits.
6. ``equality``: gradients of both layouts in float32, what bfloat16 does to each, and the losses
   of twenty steps in both.

All of it keeps to ``--minutes``: a measurement that would begin later is left out, and one that is
running then is ended. Both are said, in the results too; a part that did not begin keeps the
results that it had.

Needs CUDA and the real data, and ``pip install -e . `` with its dependencies (``datasets`` among
them); sides and heads whose package is missing are left out, and it is said. For all of them:

    pip install -e . && pip install trl==1.16.0 liger-kernel cut-cross-entropy unsloth

Without CUDA it says so and stops with status 0, so that ``make bench`` runs anywhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

if "--worker" in sys.argv and '"trainer": "unsloth"' in sys.argv[-2]:
    import unsloth  # noqa: F401 - it changes what is imported after it

import growth
import planner
import roofline
import step
import torch
import torch.nn.functional as F

LAYOUTS = ("shared", "padded")
SIDES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "TRL": ("trl", {}, ("trl",)),
    "TRL with Liger": ("trl", {"use_liger_kernel": True}, ("trl", "liger_kernel")),
    "Unsloth": ("unsloth", {}, ("trl", "unsloth")),
    "ours": ("counterpoint", {}, ()),
}
"""Side -> whose trainer, its options, the packages it needs."""

PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12}
"""Part of a device's name -> its dense bfloat16 peak, operations a second, by its maker."""

EIGHT = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {"model": step.HALF, "pairs": 32, "steps": 8, "goal": 0.35},
    "8B": {
        "model": EIGHT,
        "pairs": 8,
        "steps": 4,
        "dtype": "bfloat16",
        "options": {"gradient_checkpointing": True, "learning_rate": 1e-4},
        "goal": 0.42,
    },
}
"""Model -> its configuration; ``pairs`` and timed ``steps`` against the others; the ``dtype`` of
its weights where it is not float32; ``goal`` is the share of the device's peak aimed at."""

BUDGET = 16384
"""Tokens of a micro-batch that fit on any of these devices."""

HEADS = ((4096, 896, 151936), (4096, 4096, 151936))
"""Rows, width and vocabulary of the heads compared."""

LONGEST = 240.0
"""Seconds after which a measurement is ended: it would take those of others."""

OURS: dict[str, Any] = {"trainer": "counterpoint", "data": "hh", "bf16": True, "steps": 5}
Plan = tuple[dict[str, Any], str, dict[str, Any]]
"""A measurement: what it is called in the results, its kind, and its work."""

TINY = growth.qwen3(128, 2, growth.WORDS)


# What is measured


def plan_kernels(dry: bool, rounds: int) -> Iterator[Plan]:
    """Heads, widths and windows of models that are trained; a CPU has another kernel to prove."""
    calls = ((4, 2, 16),) if dry else ((14, 2, 64), (32, 8, 128), (16, 8, 256))
    for heads, kv_heads, width in calls:
        for window in (None, 64):
            work = {"heads": heads, "kv_heads": kv_heads, "width": width, "window": window}
            yield work, "kernel", {**work, "pairs": 2 if dry else 32}


def plan_steps(dry: bool, rounds: int) -> Iterator[Plan]:
    """Each model on every side whose packages are there, the sides in turns."""
    sides = {}
    for side, (trainer, options, packages) in SIDES.items():
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            print(f"{side} is left out: there is no package {' and no '.join(missing)}")
        elif not dry or {"liger_kernel", "unsloth"}.isdisjoint(packages):  # these need a GPU
            sides[side] = (trainer, options)
    for shape, about in list(SHAPES.items())[: 1 if dry else None]:
        work = {key: about.get(key) for key in ("model", "pairs", "steps", "dtype")}
        for _ in range(1 if dry else rounds):
            for side, (trainer, options) in sides.items():
                options = {**about.get("options", {}), **options}
                how = {"data": "hh", "bf16": True, "trainer": trainer, "options": options}
                yield {"row": shape, "side": side}, "train", {**work, **how}


def plan_mfu(dry: bool, rounds: int) -> Iterator[Plan]:
    """Every shape in both layouts; 128 pairs of hh-rlhf a step."""
    for shape, about in SHAPES.items():
        for layout in LAYOUTS:
            options = {"max_micro_batch_tokens": BUDGET, "layout": layout}
            work = {key: about.get(key) for key in ("model", "dtype")}
            how = {"pairs": 128, "steps": 3, "plans": True}
            options |= about.get("options", {})
            label = {"shape": shape, "layout": layout}
            yield label, "train", {**OURS, **work, **how, "options": options}


def plan_heads(dry: bool, rounds: int) -> Iterator[Plan]:
    """Every size, with every head that is there."""
    for size in HEADS:
        rows, width, vocabulary = (16, 32, 640) if dry else size
        yield {}, "heads", {"rows": rows, "width": width, "vocabulary": vocabulary}


def plan_memory(dry: bool, rounds: int) -> Iterator[Plan]:
    """A step of 2,048 pairs, some 440,000 tokens, as one micro-batch and as several that fit."""
    for budget in (10**9, BUDGET):
        options = {"max_micro_batch_tokens": budget, "layout": "shared", "logging_steps": 1}
        work = {**OURS, "model": step.HALF, "pairs": 2048, "steps": 1, "options": options}
        yield {"layout": "shared", "budget": budget}, "train", work


def plan_equality(dry: bool, rounds: int) -> Iterator[Plan]:
    """One batch, and twenty steps, in both layouts and precisions."""
    yield {}, "equality", {"data": "hh", "model": step.SMALL, "pairs": 16}
    for bf16 in (False, True):
        for layout in LAYOUTS:
            options = {"layout": layout, "logging_steps": 1, "learning_rate": 1e-4}
            work = {**OURS, "model": step.SMALL, "pairs": 8, "bf16": bf16, "steps": 19}
            yield {"layout": layout, "bf16": bf16}, "train", {**work, "options": options}


PARTS: dict[str, Callable[[bool, int], Iterator[Plan]]] = {
    "kernels": plan_kernels,
    "steps": plan_steps,
    "mfu": plan_mfu,
    "heads": plan_heads,
    "memory": plan_memory,
    "equality": plan_equality,
}


# How it is measured, in a process of its own


def rows_for(work: Mapping[str, Any], count: int) -> list[dict[str, str]]:
    """Real rows, from the first again where there are too few; words in a dry run."""
    if work.get("dry"):
        return growth.rows_at(growth.Point(prompt=12, completion=6), count)
    return list(islice(cycle(step.rows_of(work["data"], count)), count))


def measure_train(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Time and memory as ``step.train``; losses, warnings and, for ours, useful work besides."""
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("counterpoint").addHandler(handler)
    rows = rows_for(work, work["pairs"] * (work["steps"] + step.WARM_UP))
    maker = unsloth_trainer if work["trainer"] == "unsloth" else step.trainer_of
    trainer = maker(work["trainer"], {**work, "rows": rows}, folder)
    said = planner.predicted(trainer) if work.get("plans") else {}
    result = step.train(trainer)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    result |= {"pairs": work["pairs"], "losses": losses, "warnings": warnings}
    if work["trainer"] == "counterpoint":
        lengths = roofline.lengths_of(trainer, work)
        parameters = result["parameters"]
        result["flops"] = [roofline.useful_flops(work["model"], parameters, of) for of in lengths]
        proofs = trainer._assembly().state_dict()
        result |= {"layout_used": proofs["layout"], "trial": proofs["times"]}
        if said:
            result["planned_mb"] = said["peak"] / 2**20
    return result


def unsloth_trainer(side: str, work: dict[str, Any], folder: Path) -> Any:
    """TRL's trainer with a model that Unsloth has loaded; it loads from a folder only."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from unsloth import FastLanguageModel

    config, place = dict(work["model"]), folder / "model"
    dtype = work.get("dtype") or "float32"
    with torch.device("cuda"):
        made = AutoModelForCausalLM.from_config(
            CONFIG_MAPPING[config.pop("model_type")](**config), dtype=dtype
        )
    made.save_pretrained(place)
    del made
    for file in (folder / "tokenizer").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    again = work.get("options", {}).get("gradient_checkpointing", False)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(place),
        max_seq_length=1024,
        dtype=getattr(torch, dtype),
        load_in_4bit=False,
        full_finetuning=True,
        use_gradient_checkpointing="unsloth" if again else False,
    )
    return CPOTrainer(
        model=model,
        args=CPOConfig(**step.options_of(work, folder)),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(work["rows"]),
    )


def measure_kernel(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What comparing the kernels of shared attention shows, and the seconds of each of them."""
    from counterpoint.forward.kernel_proof import kernel_disagrees
    from counterpoint.forward.kernels import ATTENTION_KERNELS
    from counterpoint.forward.varlen_attention import AttentionCall
    from counterpoint.pair_segments import PairSegments

    device = torch.device(_device())
    heads, kv_heads, width, window = (work[key] for key in ("heads", "kv_heads", "width", "window"))
    call = AttentionCall(heads, kv_heads, width, width, window, plain=True)
    row = tuple(PairSegments(0, 384 * n, 192, (96, 96)) for n in range(work["pairs"]))
    tokens = 384 * len(row)
    torch.manual_seed(0)
    shapes = [(1, heads, tokens, width), *[(1, kv_heads, tokens, width)] * 2]
    inputs = [torch.randn(shape, device=device).bfloat16().requires_grad_() for shape in shapes]
    found: dict[str, Any] = {"tokens": tokens, "differs": {}, "seconds": {}}
    for name, kernel in ATTENTION_KERNELS.items():
        if not (kernel.runs_on(device) and kernel.takes(call, torch.bfloat16)):
            continue
        if not kernel.trusted:
            found["differs"][name] = kernel_disagrees(call, row, torch.bfloat16, device, kernel)
        plan, seconds = kernel.plan(row, device), []
        for _ in range(8):
            start = _now()
            out = kernel.run(*inputs, plan, scaling=width**-0.5, window=window)
            torch.autograd.grad(out.float().square().sum(), inputs)
            seconds.append(_now() - start)
        found["seconds"][name] = statistics.median(seconds[3:])
    return found


def measure_heads(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Every head that is there; one that fails keeps its row."""
    each = {name: attempt("head", {**work, "head": name}, folder) for name in kernels(told=True)}
    return {"size": [work[key] for key in ("rows", "width", "vocabulary")], "heads": each}


def kernels(told: bool = False) -> dict[str, Callable[..., torch.Tensor]]:
    """Heads that are there: (hidden, weight, ids) -> negative log-likelihood, a token or summed."""
    from counterpoint.forward.affine_logps import affine_token_logps

    found: dict[str, Callable[..., torch.Tensor]] = {
        "ours": lambda hidden, weight, ids: -affine_token_logps(hidden, weight, None, ids)[0],
        "all logits": lambda hidden, weight, ids: F.cross_entropy(
            (hidden @ weight.T).float(), ids, reduction="none"
        ),
    }
    if hasattr(F, "linear_cross_entropy"):
        found["torch"] = _torch_head()
    if find_spec("cut_cross_entropy") is not None:
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy"] = partial(linear_cross_entropy, reduction="none")
    if find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["Liger (sum)"] = lambda hidden, weight, ids: liger(weight, hidden, ids)
    if told:
        for name in ("torch", "cut-cross-entropy", "Liger (sum)"):
            if name not in found:
                print(f"the head of {name} is left out: it is not there")
    return found


def _torch_head() -> Callable[..., torch.Tensor]:
    options: dict[str, Any] = {"reduction": "none"}
    try:  # without them it makes all logits
        from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

        options["options"] = LinearCrossEntropyOptions()
    except ImportError:
        pass
    return partial(F.linear_cross_entropy, **options)


def measure_head(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds of forward and backward, memory over inputs and gradients, error of the sum."""
    device = _device()
    torch.manual_seed(0)
    rows, width, vocabulary = (work[key] for key in ("rows", "width", "vocabulary"))
    hidden = torch.randn(rows, width, device=device).bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, width, device=device) * width**-0.5).bfloat16()
    weight.requires_grad_()
    ids = torch.randint(vocabulary, (rows,), device=device)
    # gradients differ from token to token, as a preference loss makes them
    factors = torch.rand(rows, device=device) + 0.5
    head, seconds = kernels()[work["head"]], []
    for turn in range(13):
        hidden.grad = weight.grad = None
        if turn == 3:
            step.peak_from_here()
        start = _now()
        nll = head(hidden, weight, ids)
        (nll if nll.dim() == 0 else (nll.float() * factors).sum()).backward()
        seconds.append(_now() - start)
    peak = step.most_held() - step.held()
    with torch.no_grad():
        found = nll.double().sum()
        exact = sum(
            F.cross_entropy(part.double() @ weight.double().T, of, reduction="sum")
            for part, of in zip(hidden.split(256), ids.split(256), strict=True)
        )
    return {
        "seconds": statistics.median(seconds[3:]),
        "min": min(seconds[3:]),
        "max": max(seconds[3:]),
        # after the last backward the gradients are there, so that they are not in it
        "peak_mb": max(0, peak) / 2**20,
        "error": float(abs(found - exact) / exact),
    }


def measure_equality(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """How far each layout's gradient is from that of padded rows in float32, relatively."""
    from counterpoint.data.pair_columns import to_pair
    from counterpoint.data.prepare import prepare
    from counterpoint.forward.head import find_head
    from counterpoint.forward.layouts import PADDED, SHARED
    from counterpoint.forward.pair_forward import pair_forward
    from counterpoint.forward.shared_attention import shared_attention
    from counterpoint.losses.objective import Objective

    trainer = step.trainer_of(
        "counterpoint", {**work, "bf16": False, "rows": rows_for(work, 2)}, folder
    )
    model, tokenizer, device = trainer.model, trainer.processing_class, _device()
    model.to(device)
    rows = prepare(rows_for(work, work["pairs"]), tokenizer).pairs
    pairs, objective = [to_pair(row) for row in rows], Objective()
    batches = {
        "padded": PADDED.collate(pairs, pad_id=tokenizer.pad_token_id),
        "shared": SHARED.collate(pairs),
    }

    def gradient(layout: str, bf16: bool) -> torch.Tensor:
        model.zero_grad()
        batch = batches[layout].to(device)
        with shared_attention(model):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                output = pair_forward(model, find_head(model), batch)
            terms = objective(output.logps, batch.margin)
            objective.share(terms, batch.weight, objective.totals(batch)).backward()
        return torch.cat([p.grad.flatten().double() for p in model.parameters()])

    truth = gradient("padded", False)
    return {
        f"{layout}, {'bf16' if bf16 else 'fp32'}": float(
            (gradient(layout, bf16) - truth).norm() / truth.norm()
        )
        for layout, bf16 in (("shared", False), ("padded", True), ("shared", True))
    }


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


MEASURE = {
    "train": measure_train,
    "kernel": measure_kernel,
    "head": measure_head,
    "heads": measure_heads,
    "equality": measure_equality,
}


def attempt(kind: str, work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A measurement, or in one line why there is none: a side that fails keeps its row."""
    try:
        return MEASURE[kind](work, folder)
    except Exception as error:  # whatever a rival raises
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}


class Deadline:
    """The end of the time for all measurements; a dry run has none.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self._end - time.monotonic())


def part_of(
    name: str, folder: Path, deadline: Deadline, *, dry: bool, rounds: int = 1
) -> list[dict[str, Any]]:
    """All measurements of a part, one after the other."""
    found = []
    for label, kind, work in PARTS[name](dry, rounds):
        if dry:  # nothing is timed, so one process will do
            with step.own_folder(str(folder)) as own:
                result = attempt(kind, made_small(kind, work), own)
        else:
            result = in_time(kind, work, folder, deadline)
        found.append({**label, **result})
        print(name, label, result.get("failed") or told(result), flush=True)
    return found


def in_time(kind: str, work: Mapping[str, Any], folder: Path, deadline: Deadline) -> dict[str, Any]:
    """A measurement in a process of its own; one that dies or takes too long keeps its row."""
    seconds = min(LONGEST, deadline.left)
    if seconds < 1:
        return {"failed": "left out: there was no time"}
    try:
        return step.in_own_process(__file__, kind, json.dumps(work), str(folder), seconds=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"ended after {seconds:.0f} seconds"}
    except SystemExit as error:  # a kernel of a rival's may end its process
        return {"failed": str(error).strip().splitlines()[-1][:200]}


def made_small(kind: str, work: Mapping[str, Any]) -> dict[str, Any]:
    """The same work on a tiny model and two pairs."""
    if kind in ("kernel", "heads"):
        return dict(work)
    small = {**work, "dry": True, "model": TINY, "pairs": 2}
    return {**small, "steps": 1} if kind == "train" else small


def told(result: Mapping[str, Any]) -> str:
    """The numbers of a measurement as one line."""
    numbers = {k: v for k, v in result.items() if isinstance(v, float)}
    of = result.get("heads") or result.get("seconds")
    if isinstance(of, Mapping):
        seconds = {k: v.get("seconds") if isinstance(v, Mapping) else v for k, v in of.items()}
        numbers |= {k: v for k, v in seconds.items() if v is not None}
    if "losses" in result:
        numbers["seconds a step"] = statistics.median(result["seconds"])
    return ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())


# The page


def peak_of(device: str) -> float | None:
    """Dense bfloat16 operations a second that the maker states, None for an unknown device."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def step_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Pairs a second and memory of each side, one row a work; losing and failing sides stay."""
    sides = list(dict.fromkeys(row["side"] for row in rows))
    lines = [f"| pairs a second, MB | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        cells = []
        for side in sides:
            runs = [row for row in rows if (row["row"], row["side"]) == (name, side)]
            cells.append(_cell(runs))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(runs: Sequence[Mapping[str, Any]]) -> str:
    failed = [run["failed"] for run in runs if "failed" in run]
    if failed:
        return "out of memory" if "out of memory" in failed[0] else failed[0].split(":")[0][:60]
    rates = [run["pairs"] / second for run in runs for second in run["seconds"]]
    memory = statistics.median(run["peak_mb"] for run in runs)
    return f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f}), {memory:,.0f}"


def mfu_table(rows: Sequence[Mapping[str, Any]], peak: float) -> str:
    """Useful work over the peak, in both layouts."""
    lines = [f"| share of {peak / 1e12:.0f} TFLOP/s | {' | '.join(LAYOUTS)} |", "|---|---|---|"]
    for shape, about in SHAPES.items():
        cells = []
        for layout in LAYOUTS:
            run = next(r for r in rows if (r["shape"], r["layout"]) == (shape, layout))
            if "failed" in run:
                cells.append(_cell([run]))
                continue
            shares = [f / s / peak for f, s in zip(run["flops"], run["seconds"], strict=True)]
            share = statistics.median(shares)
            goal = step.against(100 * share, 100 * about["goal"])
            cells.append(f"{100 * share:.0f} % ({goal})")
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


def trial_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """What ``layout="auto"`` measured in our runs, and what it chose."""
    lines = ["Before its first step a run timed both layouts, forward and backward:", ""]
    for row in rows:
        trial = row.get("trial")
        if trial is None:
            continue
        each = [
            f"{name} {'out of memory' if seconds is None else f'{1e3 * seconds:.0f} ms'}"
            for name, seconds in trial["seconds"].items()
        ]
        chose = f"for {trial['pairs']} pairs, and used {row['layout_used']}"
        lines.append(f"- {row['row']}: {', '.join(each)} {chose}")
    return "\n".join(lines) if len(lines) > 2 else "No layout was timed."


def plan_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The planner's peak over the measured one."""
    lines = ["| peak, planned and measured, MB | planned | measured | ratio |", "|---|---|---|---|"]
    for row in rows:
        name = f"{row['shape']}, {row['layout']}"
        if "planned_mb" not in row:
            lines.append(f"| {name} | {_cell([row])} | | |")
            continue
        ratio = row["planned_mb"] / row["whole_peak_mb"]
        missed = "" if abs(ratio - 1) <= 0.15 else " (goal 0.85 to 1.15: **missed**)"
        numbers = f"{row['planned_mb']:,.0f} | {row['whole_peak_mb']:,.0f}"
        lines.append(f"| {name} | {numbers} | {ratio:.2f}{missed} |")
    return "\n".join(lines)


def kernel_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Kernels of shared attention side by side."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("seconds", {})))
    lines = [f"| heads, width, window | proof | {' | '.join(f'{n}, ms' for n in names)} |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for row in rows:
        call = f"{row['heads']} / {row['kv_heads']}, {row['width']}, {row['window'] or 'none'}"
        if "failed" in row:
            lines.append(f"| {call} | {_cell([row])} |{' |' * len(names)}")
            continue
        proof = [f"{n}: {why or 'right'}" for n, why in row["differs"].items()]
        cells = [f"{1e3 * row['seconds'][n]:.2f}" if n in row["seconds"] else "" for n in names]
        lines.append(f"| {call} | {'; '.join(proof) or 'nothing to prove'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def head_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Heads side by side."""
    lines = ["| head | rows × width × vocabulary | ms | MB | error |", "|---|---|---|---|---|"]
    for of in rows:
        if "failed" in of:
            lines.append(f"| all | | {_cell([of])} | | |")
            continue
        size = " × ".join(f"{n:,}" for n in of["size"])
        for name, row in of["heads"].items():
            if "failed" in row:
                lines.append(f"| {name} | {size} | {_cell([row])} | | |")
            else:
                numbers = f"{1e3 * row['seconds']:.1f} | {row['peak_mb']:,.0f} | {row['error']:.0e}"
                lines.append(f"| {name} | {size} | {numbers} |")
    return "\n".join(lines)


def recovery_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """What became of the budget that was too large."""
    lines = ["A step of 2,048 pairs with a budget of tokens that is too large on purpose:", ""]
    for layout in dict.fromkeys(row["layout"] for row in rows):
        large, fitting = (row for row in rows if row["layout"] == layout)
        failed = [
            f"{row['budget']:,} tokens: {row['failed']}"
            for row in (large, fitting)
            if "failed" in row
        ]
        if failed:
            lines.append(f"- {layout}: the run stopped ({'; '.join(failed)})")
            continue
        new = [text for text in large["warnings"] if text not in fitting["warnings"]]
        if new:
            off = _furthest(large["losses"], fitting["losses"])
            warned = f"{len(new)} warning{'s' if len(new) > 1 else ''}"
            lines.append(f"- {layout}: went on with {warned}, losses differ by {off:.0e}")
        else:
            lines.append(f"- {layout}: everything fitted, nothing was tried")
    return "\n".join(lines)


def equality_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Distances of gradients and of loss curves."""
    named = {(run["layout"], run["bf16"]): run.get("losses", []) for run in rows[1:]}
    lines = ["Relative distance from padded rows, of gradients from those in float32:", ""]
    lines += [
        f"- gradient, {name}: {value if name == 'failed' else format(value, '.0e')}"
        for name, value in rows[0].items()
    ]
    for bf16, name in ((False, "fp32"), (True, "bf16")):
        off = _furthest(named["shared", bf16], named["padded", bf16])
        lines.append(f"- losses of {len(named['shared', bf16])} steps, {name}: {off:.0e}")
    return "\n".join(lines)


def _furthest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference; NaN where one of the runs has failed."""
    if len(one) != len(other) or not one:
        return math.nan
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def page(results: Mapping[str, Any]) -> str:
    """What is there of the parts, as docs/speed.md shows it."""
    made: dict[str, Callable[[], str]] = {
        "kernels": lambda: kernel_table(results["kernels"]),
        "steps": lambda: f"{step_table(results['steps'])}\n\n{trial_text(results['steps'])}",
        "mfu": lambda: (
            f"{mfu_table(results['mfu'], results['peak'])}\n\n{plan_table(results['mfu'])}"
        ),
        "heads": lambda: head_table(results["heads"]),
        "memory": lambda: recovery_text(results["memory"]),
        "equality": lambda: equality_text(results["equality"]),
    }
    device = results["machine"]["gpu"] or "a dry run"
    return "\n\n".join([f"Measured on {device}.", *(f() for k, f in made.items() if k in results)])


def run(
    names: Sequence[str], into: Path | None, *, dry: bool, minutes: float = 0.0, rounds: int = 1
) -> None:
    """Measure the parts; each is written when it is done, the others stay."""
    deadline = Deadline(60 * minutes)
    path = None if into is None else into / "gpu.json"
    results = json.loads(path.read_text()) if path is not None and path.exists() else {}
    results["machine"] = step.machine()
    results["peak"] = peak_of(results["machine"]["gpu"] or "")
    if results["peak"] is None:
        results["peak"] = roofline.matrix_rate(TINY if dry else step.HALF, BUDGET, _device())
    with tempfile.TemporaryDirectory() as folder:
        words = growth.tokenizer() if dry else step.tokenizer_for(32000)
        words.save_pretrained(Path(folder) / "tokenizer")
        for name in names:
            if not dry and deadline.left < 1:
                print(f"{name} is left out: {minutes:g} minutes are over")
                continue
            results[name] = part_of(name, Path(folder), deadline, dry=dry, rounds=rounds)
            if path is not None:
                step.write_results(path, results)
    if set(PARTS) <= set(results):
        print(page(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--into", type=Path, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, CPU, nothing written")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all of it")
    parser.add_argument("--rounds", type=int, default=1, help="of every side of ``steps``")
    parser.add_argument("--docs", action="store_true", help="write the tables, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("KIND", "WORK", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        kind, work, folder = options.worker
        with step.own_folder(folder) as own:
            print(json.dumps(attempt(kind, json.loads(work), own)))
    elif options.docs:
        write_docs()
    elif options.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch has not looked yet
        run(options.only, options.into, dry=True)
    elif not torch.cuda.is_available():
        print("no CUDA device here: nothing measured (python benchmarks/gpu.py --dry-run tries it)")
    else:
        step.need_data()
        run(
            options.only,
            options.into or step.RESULTS,
            dry=False,
            minutes=options.minutes,
            rounds=options.rounds,
        )


def write_docs() -> None:
    """Put the results into docs/speed.md, if there are any."""
    path = step.RESULTS / "gpu.json"
    if path.exists():
        results = json.loads(path.read_text())
        step.put_between(step.ROOT / "docs" / "speed.md", "gpu", page(results))
    else:
        print("no results of a GPU yet: docs/speed.md says so")


if __name__ == "__main__":
    main()
