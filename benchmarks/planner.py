"""Claim: the planner predicts the peak of a step's memory within 15 % of what is measured.

Each row trains four steps of real pairs in a process of its own, the same pairs in every step.
Measured is the peak of the process in the last three over its baseline: the system's mark is set
back after the first step, in which the optimizer makes its moments, and what the process holds when
training is over, without weights, gradients and moments, is the baseline (``step``'s method).
Predicted is what the planner says of the same model, options and lengths, before training.

    python benchmarks/planner.py [--rows fp32 bf16 ...]
    python benchmarks/planner.py --docs        write the table of docs/planning.md

Weights, moments and gradients are counted and not predicted; so the part beyond them is shown as
well, which is the harder one.

glibc keeps freed blocks of up to 32 MiB for later, a few hundred MiB of them, whatever the model.
That is no memory that a step needs, but a process holds it; so every row is measured twice, with
``MALLOC_MMAP_THRESHOLD_`` set so that what is freed is given back, and as it is by default. The
goal is for the first. A row takes a minute on two cores; Linux with glibc only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pictures
import step
import translation

ROOT = Path(__file__).parents[1]
WITHIN = 0.15
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}
"""glibc's variables, in bytes, with which freed blocks go back to the system."""

TWICE = {"layout": "encoder-twice"}
"""Of an NLLB from random weights a layout's proof takes a ReLU that rounding turns for a fault, and
which layout then runs is chance."""

SHALLOW = {**step.SMALL, "num_hidden_layers": 4}
DEEP = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
CAPPED = {
    "model_type": "gemma2",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 32000,
    "sliding_window": 128,
}
WIDE = {**step.WIDE, "hidden_size": 128, "intermediate_size": 512}
WORK: dict[str, dict[str, Any]] = {
    "fp32": {"name": "Qwen3-shaped 34M, 8 pairs, fp32", "model": step.SMALL},
    "checkpointing": {
        "name": "the same, activation checkpointing",
        "model": step.SMALL,
        "options": {"gradient_checkpointing": True},
    },
    "padded": {
        "name": "the same, padded layout, 4 pairs",
        "model": step.SMALL,
        "pairs": 4,
        "options": {"layout": "padded"},
    },
    "accumulated": {
        "name": "the same, 16 pairs as 4 × 4",
        "model": step.SMALL,
        "pairs": 4,
        "options": {"gradient_accumulation_steps": 4},
    },
    "bf16": {"name": "the same, 8 pairs, bf16 autocast", "model": step.SMALL, "bf16": True},
    "stochastic": {
        "name": "the same, bf16 weights rounded stochastically",
        "model": step.SMALL,
        "bf16": True,
        "dtype": "bfloat16",
        "options": {"stochastic_rounding": True},
    },
    "lora": {"name": "the same, LoRA of rank 16, fp32", "model": step.SMALL, "lora": 16},
    "deep": {"name": "Llama-shaped, 16 layers, untied, 8 pairs, fp32", "model": DEEP},
    "capped": {"name": "Gemma-2-shaped, soft-caps and windows, 8 pairs, fp32", "model": CAPPED},
    "wide": {"name": "Qwen2 of width 128, vocabulary 152k, 8 pairs, fp32", "model": WIDE},
    "translation": {
        "name": "TED zh-en, Qwen3-shaped, 4 layers, 16 pairs, fp32",
        "model": SHALLOW,
        "data": "ted",
        "pairs": 16,
    },
    "t5": {
        "name": "TED zh-en, T5-shaped 60M, 32 pairs, fp32",
        "model": translation.T5,
        "pairs": 32,
    },
    "t5-checkpointing": {
        "name": "the same, activation checkpointing",
        "model": translation.T5,
        "pairs": 32,
        "options": {"gradient_checkpointing": True},
    },
    "t5-bf16": {
        "name": "the same, bf16 autocast",
        "model": translation.T5,
        "pairs": 32,
        "bf16": True,
    },
    "t5-lora": {
        "name": "the same, LoRA of rank 16, fp32",
        "model": translation.T5,
        "pairs": 32,
        "lora": 16,
    },
    "t5-long": {
        "name": "hh-rlhf, the same model, 8 pairs, fp32",
        "model": translation.T5,
        "data": "hh",
    },
    "nllb": {
        "name": "TED zh-en, NLLB-shaped 62M, encoder twice, 32 pairs, fp32",
        "model": translation.NLLB,
        "pairs": 32,
        "options": TWICE,
    },
    "nllb-checkpointing": {
        "name": "the same, activation checkpointing",
        "model": translation.NLLB,
        "pairs": 32,
        "options": {"gradient_checkpointing": True, **TWICE},
    },
    "nllb-bf16": {
        "name": "the same, bf16 autocast",
        "model": translation.NLLB,
        "pairs": 32,
        "options": TWICE,
        "bf16": True,
    },
    "nllb-lora": {
        "name": "the same, LoRA of rank 16, fp32",
        "model": translation.NLLB,
        "pairs": 32,
        "options": TWICE,
        "lora": 16,
    },
    "paddleocr": {
        "name": "hh-rlhf and pictures, PaddleOCR-VL-shaped 47M, 8 pairs, fp32",
        "kind": "paddleocr_vl",
    },
    "paddleocr-checkpointing": {
        "name": "the same, activation checkpointing",
        "kind": "paddleocr_vl",
        "options": {"gradient_checkpointing": True},
    },
    "paddleocr-bf16": {
        "name": "the same, bf16 autocast",
        "kind": "paddleocr_vl",
        "bf16": True,
    },
    "paddleocr-frozen": {
        "name": "the same, tower and projector frozen, fp32",
        "kind": "paddleocr_vl",
        "freeze": ("vision", "projector"),
    },
    "paddleocr-lora": {
        "name": "the same, LoRA of rank 16 on the language model",
        "kind": "paddleocr_vl",
        "lora": 16,
    },
    "paddleocr-tower-lora": {
        "name": "the same, LoRA of rank 16 on the tower too",
        "kind": "paddleocr_vl",
        "lora": 16,
        "tower": True,
    },
    "paddleocr-padded": {
        "name": "the same, padded layout, 4 pairs",
        "kind": "paddleocr_vl",
        "pairs": 4,
        "options": {"layout": "padded"},
    },
    "gemma3": {
        "name": "hh-rlhf and pictures, Gemma-3-shaped, 8 pairs, fp32",
        "kind": "gemma3",
    },
    "idefics3": {
        "name": "hh-rlhf and pictures, Idefics-3-shaped, 8 pairs, fp32",
        "kind": "idefics3",
    },
}
"""Row -> its work, as ``step.trainer_of`` takes it, or ``pictures.trainer_about_pictures`` where it
has a "kind"; "lora" is the rank of an adapter."""

ENCODERS = ("t5", "m2m_100")
"""Kinds of models whose rows are sources and translations, without a prompt around them."""


def trainer_of(row: str, folder: Path) -> Any:
    """A trainer of a row's work, whose every step has the same pairs."""
    if "kind" in WORK[row]:
        return pictures.trainer_about_pictures({"pairs": 8, "bf16": False, **WORK[row]}, folder)
    model = WORK[row]["model"]
    data = "ted" if model["model_type"] in ENCODERS else "hh"
    work = {"data": data, "pairs": 8, "bf16": False, **WORK[row]}
    options = work.get("options", {})
    count = work["pairs"] * options.get("gradient_accumulation_steps", 1)
    # some are long and some short, as they come
    if model["model_type"] in ENCODERS and work["data"] == "ted":
        work["rows"] = translation.rows_of(count)
    else:
        work["rows"] = step.rows_of(work["data"], count)
    trainer = step.trainer_of("counterpoint", work, folder)
    if "lora" not in work:
        return trainer
    from peft import LoraConfig

    from counterpoint import CPOTrainer

    task = "SEQ_2_SEQ_LM" if trainer.model.config.is_encoder_decoder else "CAUSAL_LM"
    adapter = LoraConfig(task_type=task, r=work["lora"], target_modules="all-linear")
    return CPOTrainer(
        model=trainer.model,
        args=trainer.args,
        processing_class=trainer.processing_class,
        train_dataset=trainer.train_dataset,
        peft_config=adapter,
    )


def predicted(trainer: Any) -> dict[str, Any]:
    """What the planner says of a trainer's run, and how long it took to say it."""
    from counterpoint.planner.plan import Planner
    from counterpoint.planner.shapes import Lengths

    start = time.perf_counter()
    lengths = Lengths.of(trainer.train_dataset, trainer._feed.encoder)
    planner = Planner(trainer.model, trainer.args, lengths)
    found = planner.asked(0)
    return {
        "peak": found.peak,
        "held": planner.demand(planner.setting).holdings.least,
        "tokens": found.tokens,
        "layout": planner.setting.layout,
        "seconds": time.perf_counter() - start,
        **{
            name: getattr(found, name)
            for name in ("weights", "optimizer", "gradients", "activations", "head", "passing")
        },
    }


def measured(trainer: Any) -> int:
    """Bytes of the peak of training over what the process holds for other things."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        steps = 0

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.steps += 1
            if self.steps == 1:
                step.peak_from_here()

    trainer.add_callback(Watch())
    step.held()  # what preparing has freed must not count as training's
    trainer.train()
    peak = step.most_held()
    return peak - (step.held() - state_of(trainer))


def state_of(trainer: Any) -> int:
    """Bytes that this process holds now of weights, gradients and moments."""
    model = trainer.model
    trainer.engine.at_rest(model)  # of a model in shards, what this rank has of them
    there = [*model.parameters(), *model.buffers()]
    there += [weight.grad for weight in model.parameters() if weight.grad is not None]
    there += [
        value
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if hasattr(value, "nbytes")
    ]
    return sum(trainer.engine.own_part(tensor).nbytes for tensor in there)


def compare(row: str, folder: Path) -> dict[str, Any]:
    """Prediction and measurement of a row, in this process."""
    trainer = trainer_of(row, folder)
    said = predicted(trainer)
    found = measured(trainer)
    layout = trainer._assembly().layout
    assert layout == said["layout"], f"planned {said['layout']}, ran {layout}"
    return {
        "row": row,
        "predicted": said,
        "measured_peak": found,
        "ratio": said["peak"] / found,
        "ratio_beyond_held": (said["peak"] - said["held"]) / max(1, found - said["held"]),
    }


def line(result: dict[str, Any]) -> str:
    """A row as it is printed."""
    said, found = result["predicted"], result["measured_peak"]
    return (
        f"{result['row']:14} predicted {said['peak'] / 2**20:7,.0f} MiB, "
        f"measured {found / 2**20:7,.0f}, ratio {result['ratio']:.3f}{_missed(result)}   beyond "
        f"weights, moments and gradients {(said['peak'] - said['held']) / 2**20:6,.0f} and "
        f"{(found - said['held']) / 2**20:6,.0f}, ratio {result['ratio_beyond_held']:.3f}   "
        f"(glibc's default {result['kept_peak'] / 2**20:,.0f}; planned in {said['seconds']:.1f} s)"
    )


def _missed(result: dict[str, Any]) -> str:
    return "" if abs(result["ratio"] - 1) <= WITHIN else " **missed**"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as docs/planning.md shows them."""
    lines = [
        "| one step on a CPU | predicted | measured | ratio | beyond what is only counted "
        "| glibc's default |",
        "|---|---|---|---|---|---|",
    ]
    for result in rows:
        said, found = result["predicted"], result["measured_peak"]
        beyond = [(peak - said["held"]) / 2**20 for peak in (said["peak"], found)]
        lines.append(
            f"| {WORK[result['row']]['name']} | {said['peak'] / 2**20:,.0f} MiB | "
            f"{found / 2**20:,.0f} MiB | {result['ratio']:.2f}{_missed(result)} | "
            f"{beyond[0]:,.0f} and {beyond[1]:,.0f} MiB, {result['ratio_beyond_held']:.2f} | "
            f"{result['kept_peak'] / 2**20:,.0f} MiB, {said['peak'] / result['kept_peak']:.2f} |"
        )
    lines.append(
        "\nGoal: within 15 % of what is measured where freed memory is given back. "
        "`python benchmarks/planner.py`"
    )
    return "\n".join(lines)


def write_docs() -> None:
    """Put the results between the markers of docs/planning.md."""
    rows = json.loads((step.RESULTS / "planner.json").read_text())["rows"]
    step.put_between(ROOT / "docs" / "planning.md", "planner", table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=2, metavar=("ROW", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        row, folder = options.worker
        with step.own_folder(folder) as own:
            print(json.dumps(compare(row, own)))
        return
    if options.docs:
        write_docs()
        return
    step.need_data()
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for row in options.rows:
            result = step.in_own_process(__file__, row, folder, env=GIVES_BACK)
            result["kept_peak"] = step.in_own_process(__file__, row, folder)["measured_peak"]
            step.keep({**result, "machine": step.machine()}, options.into / "planner.json", WORK)
            print(line(result), flush=True)


if __name__ == "__main__":
    main()
