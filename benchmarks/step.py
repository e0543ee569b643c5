"""Claim: a whole training step costs less than TRL's, in time and in memory.

Each side trains the same pairs, in the same order, with the same model, precision and optimizer
in processes of its own, the sides taking turns.

Time is that of whole optimizer steps inside ``trainer.train()``, from the end of one step to the
end of the next, so that fetching and laying out the pairs counts; the first step is left out.

Memory is the peak of the process in the timed steps over its weights, gradients and optimizer.
The system's mark of the peak is set back after the first step, so that importing, tokenizing and
making the model cannot have set it, and the optimizer's moments, which are made in that step, are
in it. What the process must hold is read when training is over: weights and moments are there,
and all that was imported on the way. Gradients are gone by then and are added by their size.
Freed memory that the process keeps is given back to the system before training, and before that
reading.

    python benchmarks/step.py [--rounds 3] [--rows hh-fp32 hh-bf16 ...]
    python benchmarks/step.py --docs        write the tables of the READMEs and of docs/speed.md

Every row is written to results/step.json when it is done, beside the machine it was measured on;
rows that are not asked for stay as they are. All of it takes 30 minutes on two cores; the row of
0.5B parameters needs 20 GB.

TRL gets its best settings: no activation checkpointing (ours has none either), fused AdamW.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

STEPS, WARM_UP = 3, 1
DATA = Path(os.environ.get("COUNTERPOINT_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CLEARS_PEAK = Path("/proc/self/clear_refs")
"""Linux's file that sets the mark of a process's peak back, VmHWM, when "5" is written."""

SMALL = {
    "model_type": "qwen3",
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
}
WIDE = {
    "model_type": "qwen2",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
HALF = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
WORK: dict[str, dict[str, Any]] = {
    "hh-fp32": {
        "name": "hh-rlhf, 8 pairs, Qwen3-shaped 34M, vocabulary 32k, fp32",
        "data": "hh",
        "model": SMALL,
        "pairs": 8,
        "bf16": False,
        "goal": 4.0,
        "memory_goal": 0.25,
    },
    "hh-bf16": {
        "name": "the same, bf16",
        "data": "hh",
        "model": SMALL,
        "pairs": 8,
        "bf16": True,
        "goal": 3.5,
        "memory_goal": 0.25,
    },
    "ted-fp32": {
        "name": "TED zh-en, best/worst, 8 pairs, the same model, fp32",
        "data": "ted",
        "model": SMALL,
        "pairs": 8,
        "bf16": False,
        "goal": 2.3,
    },
    "ted-bf16": {
        "name": "the same, bf16",
        "data": "ted",
        "model": SMALL,
        "pairs": 8,
        "bf16": True,
        "goal": 2.0,
    },
    "wide-vocabulary-bf16": {
        "name": "hh-rlhf, 4 pairs, Qwen2 of width 8, vocabulary 152k, bf16",
        "data": "hh",
        "model": WIDE,
        "pairs": 4,
        "bf16": True,
        "goal": 15.0,
        "memory_goal": 0.25,
    },
    "0.5b-bf16": {
        "name": "hh-rlhf, 4 pairs, Qwen2.5-0.5B's shape, vocabulary 152k, bf16",
        "data": "hh",
        "model": HALF,
        "pairs": 4,
        "bf16": True,
        "steps": 2,
        "rounds": 2,
        "goal": 2.2,
    },
}
"""Row -> its work; ``goal`` is how many times TRL's speed was aimed at, ``memory_goal`` the share
of its memory; ``steps`` timed in a process and most ``rounds``, where they are not the usual."""


def rows_of(name: str, count: int) -> list[dict[str, str]]:
    """The first usable rows of a real set, as explicit text rows both sides read alike."""
    if name == "hh":
        with gzip.open(DATA / "hh-rlhf-harmless-base-test.jsonl.gz", "rt", encoding="utf-8") as f:
            raw = [json.loads(line) for line in f]
        rows = []
        for row in raw:
            prompt, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
            other, _, rejected = row["rejected"].rpartition("\n\nAssistant:")
            if prompt == other and chosen.strip() and rejected.strip() and chosen != rejected:
                prompt += "\n\nAssistant:"
                rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        return rows[:count]
    with gzip.open(DATA / "ted-mqm-zhen-scored.jsonl.gz", "rt", encoding="utf-8") as f:
        raw = [json.loads(line) for line in f]
    rows = []
    for row in raw:
        by_score = sorted(row["candidates"], key=lambda c: c["mqm"])
        best, worst = by_score[0], by_score[-1]
        if best["mqm"] < worst["mqm"] and best["text"] != worst["text"]:
            prompt = f"Translate this from Chinese to English:\nChinese: {row['source']}\nEnglish:"
            rows.append(
                {"prompt": prompt, "chosen": f" {best['text']}", "rejected": f" {worst['text']}"}
            )
    return rows[:count]


def tokenizer_for(vocab_size: int) -> Any:
    """A byte-level BPE trained on both sets; real text gets real lengths."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    texts = [t for name in ("hh", "ted") for row in rows_of(name, 10**6) for t in row.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, 32000),
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def trainer_of(side: str, work: dict[str, Any], folder: Path) -> Any:
    """A trainer of one side, ready to train the work's steps.

    Args:
        side: "trl" or "counterpoint".
        work: ``model``, ``pairs`` and ``bf16``; ``rows``, or the ``data`` to read them from;
            ``options`` of ``CPOConfig`` other than those below; ``steps`` to time; ``dtype``
            of the weights, where it is not float32.
        folder: has the tokenizer in ``tokenizer``.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if side == "trl":
        from trl.experimental.cpo import CPOConfig, CPOTrainer
    else:
        from counterpoint import CPOConfig, CPOTrainer

        # its looks are close together in the few steps of a benchmark; see monitor.py
        work = {**work, "options": {"monitor_steps": 0, **work.get("options", {})}}

    torch.manual_seed(0)
    config = dict(work["model"])
    config = CONFIG_MAPPING[config.pop("model_type")](**config)
    total = work.get("steps", STEPS) + WARM_UP
    rows = work.get("rows") or rows_of(work["data"], work["pairs"] * total)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = auto.from_config(config, dtype=work.get("dtype") or "float32")
    return CPOTrainer(
        model=model,
        args=CPOConfig(**options_of(work, folder)),
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        train_dataset=Dataset.from_list(rows),
    )


def options_of(work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The options of a work's trainer, on whatever side; see ``trainer_of``."""
    import torch

    return {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": work["pairs"],
        "max_steps": work.get("steps", STEPS) + WARM_UP,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": work["bf16"],
        "use_cpu": not torch.cuda.is_available(),
        "optim": "adamw_torch_fused",
        "logging_steps": 100,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **work.get("options", {}),
    }


def train(trainer: Any) -> dict[str, Any]:
    """Train a few steps; seconds of each, and the peak of memory over what it must hold."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    class Watch(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait()
            if len(ends) == WARM_UP - 1:
                peak_from_here()
            ends.append(time.perf_counter())

    trainer.add_callback(Watch())
    held()  # what preparing has freed must not count as training's
    trainer.train()
    peak = most_held()
    gone = [p for p in trainer.model.parameters() if p.requires_grad and p.grad is None]
    return {
        "seconds": [end - begin for begin, end in pairwise(ends[WARM_UP - 1 :])],
        "peak_mb": max(0, peak - held() - sum(p.nbytes for p in gone)) / 2**20,
        "whole_peak_mb": peak / 2**20,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def peak_from_here() -> None:
    """Set the mark of the most memory held back to what is held now."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        CLEARS_PEAK.write_text("5")


def most_held() -> int:
    """Bytes: the mark. Of the process on a CPU (Linux only), of the tensors on CUDA."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else status_bytes("VmHWM")


def held() -> int:
    """Bytes held now, likewise; what is freed already is given back to the system."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    # freed blocks stay with the process otherwise; glibc only
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    return status_bytes("VmRSS")


def status_bytes(name: str) -> int:
    """Bytes that Linux says of this process under a name of its status, as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def in_own_process(
    script: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """One measurement of a script's ``--worker``, undisturbed by what ran before.

    Args:
        script: its file.
        arguments: those after ``--worker``.
        env: variables to set for it.
        seconds: after which it is ended, and ``subprocess.TimeoutExpired`` raised; None: never.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, "--worker", *arguments],
        env={**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1", **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    from counterpoint.runlog import versions

    trl = {"trl": metadata.version("trl")} if find_spec("trl") else {}
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [x.split(":", 1)[1].strip() for x in text.splitlines() if x.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        # without one of these a CPU computes bfloat16 by way of float32, and slowly
        "bf16_instructions": [name for name in ("avx512_bf16", "amx_bf16") if name in text],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average_1min": os.getloadavg()[0],
        **versions(),
        **trl,
    }


def in_turns(
    script: str, sides: Iterable[str], row: str, pairs: int, rounds: int, folder: Path
) -> dict[str, dict[str, float]]:
    """Sides in turns, a process each; medians over all steps, minimum and maximum beside.

    ``whole`` is the rate over all steps together, each with its median over the rounds: where
    steps are unlike, as with sentences of all lengths, a median step says little.

    Args:
        script: whose ``--worker`` is given a side, the row and the folder.
        sides: their names.
        row: what each of them does.
        pairs: of a step.
        rounds: turns of each side.
        folder: that all of them share.
    """
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, results in found.items():
            results.append(in_own_process(script, side, row, str(folder)))
    rates = {
        side: [pairs / s for r in results for s in r["seconds"]] for side, results in found.items()
    }
    return {
        side: {
            "pairs_per_second": statistics.median(rates[side]),
            "min": min(rates[side]),
            "max": max(rates[side]),
            "whole": pairs * len(results[0]["seconds"]) / sum(_medians(results)),
            "peak_mb": statistics.median(one["peak_mb"] for one in results),
        }
        for side, results in found.items()
    }


def _medians(results: Sequence[Mapping[str, Any]]) -> list[float]:
    steps = zip(*(one["seconds"] for one in results), strict=True)
    return [statistics.median(seconds) for seconds in steps]


def compare(row: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Both sides of a row."""
    pairs, rounds = WORK[row]["pairs"], min(rounds, WORK[row].get("rounds", rounds))
    sides = in_turns(__file__, ("trl", "counterpoint"), row, pairs, rounds, folder)
    result: dict[str, Any] = {"row": row, "pairs": pairs, "rounds": rounds, **sides}
    ours, theirs = result["counterpoint"], result["trl"]
    result["speed_ratio"] = ours["pairs_per_second"] / theirs["pairs_per_second"]
    result["memory_ratio"] = ours["peak_mb"] / theirs["peak_mb"]
    return result


def keep(result: Mapping[str, Any], path: Path, order: Iterable[str] = tuple(WORK)) -> None:
    """Put one row into a script's results, which stand in the order of its rows; others stay."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    by_name = {row["row"]: row for row in [*rows, result]}
    write_results(path, {"rows": [by_name[name] for name in order if name in by_name]})


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def put_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    In the page's Chinese twin, too, where it has such a place.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    twin = page.with_name(f"{page.stem}.zh-CN.md")
    for one in (page, twin):
        if one is page or (one.is_file() and begin in one.read_text(encoding="utf-8")):
            before, rest = one.read_text(encoding="utf-8").split(begin)
            after = rest.split(end)[1]
            one.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def against(value: float, goal: float | None, *, unit: str = "", at_most: bool = False) -> str:
    """A goal beside what was reached: empty without one, and loud where it was missed."""
    if goal is None:
        return ""
    met = value <= goal if at_most else value >= goal
    return f"goal {goal:g}{unit}" if met else f"goal {goal:g}{unit}: **missed**"


NOTE = """
Pairs a second: medians with minimum and maximum, sides in turns. Memory: the peak over what
weights, gradients and optimizer need, as a share of TRL's. `python benchmarks/step.py`"""


def table(rows: list[dict[str, Any]], *, goals: bool) -> str:
    """The rows as the documentation shows them.

    Args:
        rows: of the results.
        goals: say what was aimed at as well.
    """
    cores = f"{rows[0]['machine']['cores']} cores"
    lines = [
        f"| whole steps of `train()` on {cores} | TRL 1.16 | Counterpoint | faster | memory |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        work = WORK[row["row"]]
        rates = [
            f"{row[s]['pairs_per_second']:.2f} ({row[s]['min']:.2f} to {row[s]['max']:.2f})"
            for s in ("trl", "counterpoint")
        ]
        faster, memory = f"{row['speed_ratio']:.1f} ×", f"{100 * row['memory_ratio']:.0f} %"
        if goals:
            faster = _beside(faster, against(row["speed_ratio"], work["goal"]))
            aimed = work.get("memory_goal")
            share, most = 100 * row["memory_ratio"], None if aimed is None else 100 * aimed
            memory = _beside(memory, against(share, most, unit=" %", at_most=True))
        lines.append(f"| {' | '.join([work['name'], *rates, faster, memory])} |")
    return "\n".join([*lines, NOTE])


def _beside(text: str, goal: str) -> str:
    return f"{text} ({goal})" if goal else text


def write_docs() -> None:
    """Put the results between the markers of both READMEs and of docs/speed.md."""
    rows = json.loads((RESULTS / "step.json").read_text())["rows"]
    for file in ("README.md", "README.zh-CN.md"):
        put_between(ROOT / file, "step", table(rows, goals=False))
    put_between(ROOT / "docs" / "speed.md", "step", table(rows, goals=True))


def line(result: dict[str, Any]) -> str:
    """A row as it is printed."""
    work = WORK[result["row"]]
    sides = [
        f"{name} {found['pairs_per_second']:6.2f} pairs/s "
        f"[{found['min']:.2f}, {found['max']:.2f}], {found['peak_mb']:6.0f} MB"
        for name, found in (("TRL", result["trl"]), ("Counterpoint", result["counterpoint"]))
    ]
    speed, memory = result["speed_ratio"], result["memory_ratio"]
    faster = _beside(f"speed x{speed:.2f}", against(speed, work["goal"]))
    aimed = against(memory, work.get("memory_goal"), at_most=True)
    return "   ".join(
        [f"{result['row']:22}", *sides, f"{faster}, {_beside(f'memory x{memory:.2f}', aimed)}"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the tables, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "ROW", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        side, row, folder = options.worker
        with own_folder(folder) as own:
            print(json.dumps(train(trainer_of(side, WORK[row], own))))
        return
    if options.docs:
        write_docs()
        return
    need_data()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for row in options.rows:
            result = {**compare(row, options.rounds, Path(folder)), "machine": machine()}
            keep(result, options.into / "step.json")
            print(line(result), flush=True)


def need_data() -> None:
    """Stop with a word where the real data are not."""
    if not DATA.is_dir():
        raise SystemExit(f"no real data in {DATA}; set COUNTERPOINT_DATA")


@contextmanager
def own_folder(shared: str) -> Iterator[Path]:
    """A folder for a worker's run that has the tokenizer of the shared one."""
    with tempfile.TemporaryDirectory() as own:
        (Path(own) / "tokenizer").symlink_to(Path(shared) / "tokenizer")
        yield Path(own)


if __name__ == "__main__":
    main()
