"""Claim: what holds on two cores holds on a GPU, and the GPU is kept busy.

    python benchmarks/gpu.py               everything, into results/gpu.json: half an hour
    python benchmarks/gpu.py --only mfu    one or several of the parts below
    python benchmarks/gpu.py --dry-run     the same code on tiny shapes, on a CPU, nothing written
    python benchmarks/gpu.py --docs        write the tables of docs/speed.md

1. ``steps``: the rows of ``step.py`` and a larger one: TRL, TRL with Liger's kernels, ours in both
   layouts. Memory is that of tensors over weights, gradients and optimizer.
2. ``mfu``: useful work (``roofline.py`` has the formula) over the dense bfloat16 peak of the
   device, for models of 0.5, 1.5 and 7 billion parameters. The weights of the last are bfloat16
   and its activations checkpointed, or it would not fit on one device; the others' are float32.
3. ``heads``: our head against others, forward and backward, time, memory and error. A head must
   give a number a token to serve preference losses; Liger's gives a sum.
4. ``memory``: a budget of tokens that is too large on purpose. The run should go on by itself,
   with one warning and the losses of a run whose budget fits.
5. ``equality``: gradients of both layouts in float32, and what bfloat16 does to each.
6. ``curve``: the losses of twenty steps in both layouts.

Needs CUDA and the real data, and ``pip install -e . `` with its dependencies (``datasets`` among
them); sides and heads whose package is missing are left out, and it is said. For all of them:

    pip install -e . && pip install trl==1.16.0 liger-kernel cut-cross-entropy

Without CUDA it says so and stops with status 0, so that ``make bench`` runs anywhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import growth
import roofline
import step
import torch
import torch.nn.functional as F

LAYOUTS = ("shared", "padded")
SIDES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "TRL": ("trl", {}, ("trl",)),
    "TRL with Liger": ("trl", {"use_liger_kernel": True}, ("trl", "liger_kernel")),
    **{f"ours, {name}": ("counterpoint", {"layout": name}, ()) for name in LAYOUTS},
}
"""Side -> whose trainer, its options, the packages it needs."""

PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12}
"""Part of a device's name -> its dense bfloat16 peak, operations a second, by its maker."""

QWEN = {"model_type": "qwen2", "num_hidden_layers": 28, "vocab_size": 151936}
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {"model": step.HALF, "goal": 0.35},
    "1.5B": {
        "model": {
            **QWEN,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        "goal": 0.40,
    },
    "7B": {
        "model": {
            **QWEN,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "dtype": "bfloat16",
        "options": {"gradient_checkpointing": True, "learning_rate": 1e-4},
        "goal": 0.42,
    },
}
BUDGET = 16384
"""Tokens of a micro-batch that fit on any of these devices."""

HEADS = ((4096, 896, 151936), (4096, 3584, 152064))
"""Rows, width and vocabulary of the heads compared."""

ROUNDS = 2
OURS: dict[str, Any] = {"trainer": "counterpoint", "data": "hh", "bf16": True, "steps": 5}
Plan = tuple[dict[str, Any], str, dict[str, Any]]
"""A measurement: what it is called in the results, its kind, and its work."""

TINY = growth.qwen3(128, 2, growth.WORDS)


# What is measured


def plan_steps(dry: bool) -> Iterator[Plan]:
    """Every row on every side whose packages are there, the sides in turns."""
    rows = {**step.WORK, "0.5b-32-bf16": {**step.WORK["0.5b-bf16"], "pairs": 32}}
    sides = {}
    for side, (trainer, options, packages) in SIDES.items():
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            print(f"{side} is left out: there is no package {' and no '.join(missing)}")
        elif not (dry and "liger_kernel" in packages):  # its kernels need a GPU
            sides[side] = (trainer, options)
    for row in list(rows)[: 1 if dry else None]:
        work = {key: rows[row][key] for key in ("data", "model", "pairs", "bf16")}
        for _ in range(1 if dry else ROUNDS):
            for side, (trainer, options) in sides.items():
                label = {"row": row, "side": side}
                how = {"trainer": trainer, "options": options, "steps": 10}
                yield label, "train", {**work, **how}


def plan_mfu(dry: bool) -> Iterator[Plan]:
    """Every shape in both layouts; 128 pairs of hh-rlhf a step."""
    for shape, about in SHAPES.items():
        for layout in LAYOUTS:
            options = {"max_micro_batch_tokens": BUDGET, "layout": layout}
            yield (
                {"shape": shape, "layout": layout},
                "train",
                {
                    **OURS,
                    "model": about["model"],
                    "dtype": about.get("dtype"),
                    "pairs": 128,
                    "options": {**options, **about.get("options", {})},
                },
            )


def plan_heads(dry: bool) -> Iterator[Plan]:
    """Every head that is there, on every size."""
    for size in HEADS:
        for name in kernels(told=size == HEADS[0]):
            rows, width, vocabulary = (16, 32, 640) if dry else size
            label = {"head": name, "rows": rows, "width": width, "vocabulary": vocabulary}
            yield label, "head", label


def plan_memory(dry: bool) -> Iterator[Plan]:
    """A step of 2,048 pairs, some 440,000 tokens, as one micro-batch and as several that fit."""
    for layout in LAYOUTS:
        for budget in (10**9, BUDGET):
            options = {"max_micro_batch_tokens": budget, "layout": layout, "logging_steps": 1}
            yield (
                {"layout": layout, "budget": budget},
                "train",
                {**OURS, "model": step.HALF, "pairs": 2048, "steps": 1, "options": options},
            )


def plan_equality(dry: bool) -> Iterator[Plan]:
    """One batch in both layouts and precisions, in one process."""
    yield {}, "equality", {"data": "hh", "model": step.SMALL, "pairs": 16}


def plan_curve(dry: bool) -> Iterator[Plan]:
    """Twenty steps in both layouts and precisions."""
    for bf16 in (False, True):
        for layout in LAYOUTS:
            options = {"layout": layout, "logging_steps": 1, "learning_rate": 1e-4}
            work = {**OURS, "model": step.SMALL, "pairs": 8, "bf16": bf16, "steps": 19}
            yield {"layout": layout, "bf16": bf16}, "train", {**work, "options": options}


PARTS: dict[str, Callable[[bool], Iterator[Plan]]] = {
    "steps": plan_steps,
    "mfu": plan_mfu,
    "heads": plan_heads,
    "memory": plan_memory,
    "equality": plan_equality,
    "curve": plan_curve,
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
    trainer = step.trainer_of(work["trainer"], {**work, "rows": rows}, folder)
    result = step.train(trainer)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    result |= {"pairs": work["pairs"], "losses": losses, "warnings": warnings}
    if work["trainer"] == "counterpoint":
        lengths = roofline.lengths_of(trainer, work)
        parameters = result["parameters"]
        result["flops"] = [roofline.useful_flops(work["model"], parameters, of) for of in lengths]
    return result


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
    from counterpoint.data.prepare import prepare, to_pair
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


MEASURE = {"train": measure_train, "head": measure_head, "equality": measure_equality}


def attempt(kind: str, work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A measurement, or in one line why there is none: a side that fails keeps its row."""
    try:
        return MEASURE[kind](work, folder)
    except Exception as error:  # whatever a rival raises
        return {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}


def part_of(name: str, folder: Path, *, dry: bool) -> list[dict[str, Any]]:
    """All measurements of a part, one after the other."""
    found = []
    for label, kind, work in PARTS[name](dry):
        if dry:  # nothing is timed, so one process will do
            with step.own_folder(str(folder)) as own:
                result = attempt(kind, made_small(kind, work), own)
        else:
            result = step.in_own_process(__file__, kind, json.dumps(work), str(folder))
        found.append({**label, **result})
        print(name, label, result.get("failed") or told(result), flush=True)
    return found


def made_small(kind: str, work: Mapping[str, Any]) -> dict[str, Any]:
    """The same work on a tiny model and two pairs."""
    if kind == "head":
        return dict(work)
    small = {**work, "dry": True, "model": TINY, "pairs": 2}
    return {**small, "steps": 1} if kind == "train" else small


def told(result: Mapping[str, Any]) -> str:
    """The numbers of a measurement as one line."""
    numbers = {k: v for k, v in result.items() if isinstance(v, float)}
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
        return "out of memory" if "out of memory" in failed[0] else failed[0].split(":")[0]
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


def head_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Heads side by side."""
    lines = ["| head | rows × width × vocabulary | ms | MB | error |", "|---|---|---|---|---|"]
    for row in rows:
        size = f"{row['rows']:,} × {row['width']:,} × {row['vocabulary']:,}"
        if "failed" in row:
            lines.append(f"| {row['head']} | {size} | {_cell([row])} | | |")
        else:
            numbers = f"{1e3 * row['seconds']:.1f} | {row['peak_mb']:,.0f} | {row['error']:.0e}"
            lines.append(f"| {row['head']} | {size} | {numbers} |")
    return "\n".join(lines)


def recovery_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """What became of the budget that was too large."""
    lines = ["A step of 2,048 pairs with a budget of tokens that is too large on purpose:", ""]
    for layout in LAYOUTS:
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


def equality_text(rows: Sequence[Mapping[str, Any]], curve: Sequence[Mapping[str, Any]]) -> str:
    """Distances of gradients and of loss curves."""
    named = {(run["layout"], run["bf16"]): run.get("losses", []) for run in curve}
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
        "steps": lambda: step_table(results["steps"]),
        "mfu": lambda: mfu_table(results["mfu"], results["peak"]),
        "heads": lambda: head_table(results["heads"]),
        "memory": lambda: recovery_text(results["memory"]),
        "equality": lambda: equality_text(results["equality"], results["curve"]),
    }
    device = results["machine"]["gpu"] or "a dry run"
    return "\n\n".join([f"Measured on {device}.", *(f() for k, f in made.items() if k in results)])


def run(names: Sequence[str], into: Path | None, *, dry: bool) -> None:
    """Measure the parts; each is written when it is done, the others stay."""
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
            results[name] = part_of(name, Path(folder), dry=dry)
            if path is not None:
                step.write_results(path, results)
    if set(PARTS) <= set(results):
        print(page(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--into", type=Path, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, CPU, nothing written")
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
        run(options.only, options.into or step.RESULTS, dry=False)


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
