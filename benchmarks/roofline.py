"""Claim: a step in bfloat16 runs at 35 % of the matrix rate, and 1.8 times as fast as in float32.

Both precisions train the same pairs through ``train()`` in processes of their own, in turns. The
matrix rate is the best of several bfloat16 products [m, k] x [k, n] of the model's own sizes, by
torch, in the process that was timed, with its threads: forward products, and those of the
weights' gradients, whose operand is transposed.

Useful work of a step, in floating-point operations, two a multiplication and addition, each done
once however often it is computed (the head's logits, recomputed activations, prompts of a layout
that does not share):

    6 x parameters of the layers x tokens                 forward 2, backward 4
    6 x width x vocabulary x targets                      the head sees completions' tokens only
    12 x layers x heads x head_dim x (query, key) pairs   two products in attention, causal

with tokens = sum (P + C + R), targets = sum (C + R), and P(P+1)/2 + CP + C(C+1)/2 + RP + R(R+1)/2
(query, key) pairs of each preference pair of P, C, R tokens of prompt, chosen, rejected. Casts,
normalisations, softmax and the optimizer count as no work, but their time counts.

    python benchmarks/roofline.py [--rounds 2]    into results/roofline.json: 10 minutes
    python benchmarks/roofline.py --docs          write the table of docs/speed.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import step
import torch
from transformers import TrainerCallback

GOAL, GOAL_SPEED = 0.35, 1.8
LARGE = {
    "model_type": "qwen3",
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
WORK: dict[str, dict[str, Any]] = {
    "110m": {
        "name": "hh-rlhf, 8 pairs, Qwen3-shaped 110M, vocabulary 32k",
        "data": "hh",
        "model": LARGE,
        "pairs": 8,
    },
    "0.5b": {
        "name": "hh-rlhf, 4 pairs, Qwen2.5-0.5B's shape, vocabulary 152k",
        "data": "hh",
        "model": step.HALF,
        "pairs": 4,
        "steps": 2,
    },
}
PRECISIONS = ("fp32", "bf16")


def useful_flops(
    model: Mapping[str, Any], parameters: int, lengths: Sequence[tuple[int, int, int]]
) -> float:
    """Useful floating-point operations of a step; the formula is at the top.

    Args:
        model: its configuration.
        parameters: of the model, embedding and head included, once if they are tied.
        lengths: tokens of prompt, chosen and rejected of each pair.
    """
    width, vocabulary, heads = (
        model[key] for key in ("hidden_size", "vocab_size", "num_attention_heads")
    )
    tokens = sum(p + c + r for p, c, r in lengths)
    targets = sum(c + r for _, c, r in lengths)
    seen = sum(_triangle(p) + _triangle(c) + _triangle(r) + (c + r) * p for p, c, r in lengths)
    attended = heads * model.get("head_dim", width // heads)
    tables = 1 if model["tie_word_embeddings"] else 2
    return (
        6.0 * (parameters - tables * width * vocabulary) * tokens
        + 6.0 * width * vocabulary * targets
        + 12.0 * model["num_hidden_layers"] * attended * seen
    )


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def matrix_rate(model: Mapping[str, Any], tokens: int, device: str = "cpu") -> float:
    """The best rate of bfloat16 products of the model's sizes, in operations a second.

    Args:
        model: its configuration.
        tokens: rows of its activations.
        device: where.
    """
    width, inner, vocabulary = (
        model[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    best = 0.0
    for k, n in ((width, width), (width, inner), (inner, width), (width, vocabulary)):
        rows, weight, result = (
            torch.randn(shape, device=device).bfloat16()
            for shape in ((tokens, k), (k, n), (tokens, n))
        )
        for left, right in ((rows, weight), (rows.T, result)):
            seconds = min(_seconds(left, right) for _ in range(5))
            best = max(best, 2 * tokens * k * n / seconds)
    return best


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    wait = torch.cuda.synchronize if left.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    left @ right
    wait()
    return time.perf_counter() - start


def lengths_of(trainer: Any, work: Mapping[str, Any]) -> list[list[tuple[int, int, int]]]:
    """Tokens of prompt, chosen and rejected of the pairs of each timed step of our trainer."""
    parts = (trainer.train_dataset[f"{part}_ids"] for part in ("prompt", "chosen", "rejected"))
    every = [tuple(map(len, pair)) for pair in zip(*parts, strict=True)]
    steps = [every[n : n + work["pairs"]] for n in range(0, len(every), work["pairs"])]
    return steps[step.WARM_UP :]


class _OptimizerClock(TrainerCallback):
    """Seconds that the optimizer takes, of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def measure(precision: str, work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Seconds of each step and, in bfloat16, its useful work and the matrix rate."""
    trainer = step.trainer_of("counterpoint", {**work, "bf16": precision == "bf16"}, folder)
    clock = _OptimizerClock()
    trainer.add_callback(clock)
    result = step.train(trainer)
    result["optimizer"] = clock.seconds[step.WARM_UP :]
    lengths = lengths_of(trainer, work)
    result["flops"] = [useful_flops(work["model"], result["parameters"], of) for of in lengths]
    if precision == "bf16":
        tokens = round(statistics.mean(sum(map(sum, of)) for of in lengths))
        result["matrix_rate"] = matrix_rate(work["model"], tokens)
    return result


def summary(name: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """One row from the runs of both precisions."""
    row: dict[str, Any] = {"row": name, "parameters": runs["bf16"][0]["parameters"]}
    for precision in PRECISIONS:
        seconds = [s for run in runs[precision] for s in run["seconds"]]
        spread = {"seconds": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
        row[precision] = spread
    row["speed_ratio"] = row["fp32"]["seconds"] / row["bf16"]["seconds"]
    shares = [
        flops / seconds / run["matrix_rate"]
        for run in runs["bf16"]
        for flops, seconds in zip(run["flops"], run["seconds"], strict=True)
    ]
    row["share"] = {"median": statistics.median(shares), "min": min(shares), "max": max(shares)}
    apart = [
        flops / (seconds - optimizer) / run["matrix_rate"]
        for run in runs["bf16"]
        for flops, seconds, optimizer in zip(
            run["flops"], run["seconds"], run["optimizer"], strict=True
        )
    ]
    row["share_without_optimizer"] = statistics.median(apart)
    row["matrix_rate"] = max(run["matrix_rate"] for run in runs["bf16"])
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results as docs/speed.md shows them."""
    lines = [
        "| whole steps of `train()` | fp32, s | bf16, s | faster | bf16 products | reached "
        "| without AdamW |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = [
            f"{row[p]['seconds']:.2f} ({row[p]['min']:.2f} to {row[p]['max']:.2f})"
            for p in PRECISIONS
        ]
        share = {key: f"{100 * value:.0f}" for key, value in row["share"].items()}
        cells = [
            WORK[row["row"]]["name"],
            *times,
            f"{row['speed_ratio']:.1f} × ({step.against(row['speed_ratio'], GOAL_SPEED)})",
            f"{row['matrix_rate'] / 1e12:.2f} TFLOP/s",
            f"{share['median']} % ({share['min']} to {share['max']}; "
            f"{step.against(100 * row['share']['median'], 100 * GOAL, unit=' %')})",
            f"{100 * row['share_without_optimizer']:.0f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("PRECISION", "ROW", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        precision, name, folder = options.worker
        with step.own_folder(folder) as own:
            print(json.dumps(measure(precision, WORK[name], own)))
        return
    if options.docs:
        results = json.loads((step.RESULTS / "roofline.json").read_text())
        step.put_between(step.ROOT / "docs" / "speed.md", "roofline", table(results["rows"]))
        return
    step.need_data()
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for name in options.rows:
            runs: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
            for _ in range(options.rounds):
                for precision, of in runs.items():
                    of.append(step.in_own_process(__file__, precision, name, folder))
            row = {**summary(name, runs), "rounds": options.rounds, "machine": step.machine()}
            step.keep(row, options.into / "roofline.json", WORK)
            print(table([row]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
