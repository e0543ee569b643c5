"""Claim: a whole training step costs less than TRL's, in time and in memory.

Each side trains the same pairs, in the same order, with the same model, precision and optimizer
in processes of its own, the sides taking turns. Time is that of whole optimizer steps inside
``trainer.train()``, the first left out; memory is the peak of the process over what it held
after its first step's optimizer state existed.

    python benchmarks/step.py [--rounds 3] [--rows hh-fp32 hh-bf16 ...]
    python benchmarks/step.py --docs        write the READMEs' table from the results

TRL gets its best settings: no activation checkpointing (ours has none either), fused AdamW.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS, WARM_UP = 3, 1
DATA = Path(os.environ.get("COUNTERPOINT_DATA", Path(__file__).parents[2] / "shared" / "data"))
RESULTS = Path(__file__).parent / "results"

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
WORK: dict[str, dict[str, Any]] = {
    "hh-fp32": {"data": "hh", "model": SMALL, "pairs": 8, "bf16": False},
    "hh-bf16": {"data": "hh", "model": SMALL, "pairs": 8, "bf16": True},
    "ted-fp32": {"data": "ted", "model": SMALL, "pairs": 8, "bf16": False},
    "ted-bf16": {"data": "ted", "model": SMALL, "pairs": 8, "bf16": True},
    "wide-vocabulary-bf16": {"data": "hh", "model": WIDE, "pairs": 4, "bf16": True},
}


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
            ``options`` of ``CPOConfig`` other than those below.
        folder: has the tokenizer in ``tokenizer``.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if side == "trl":
        from trl.experimental.cpo import CPOConfig, CPOTrainer
    else:
        from counterpoint import CPOConfig, CPOTrainer

    torch.manual_seed(0)
    config = dict(work["model"])
    config = CONFIG_MAPPING[config.pop("model_type")](**config)
    total = STEPS + WARM_UP
    options = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": work["pairs"],
        "max_steps": total,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": work["bf16"],
        "use_cpu": not torch.cuda.is_available(),
        "optim": "adamw_torch_fused",
        "logging_steps": 100,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    rows = work.get("rows") or rows_of(work["data"], work["pairs"] * total)
    return CPOTrainer(
        model=AutoModelForCausalLM.from_config(config),
        args=CPOConfig(**{**options, **work.get("options", {})}),
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        train_dataset=Dataset.from_list(rows),
    )


def train(trainer: Any) -> dict[str, Any]:
    """Train a few steps; seconds of each, and the peak of memory over what it must hold."""
    import torch
    from transformers import TrainerCallback

    seconds: list[float] = []
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    class Watch(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            wait()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wait()
            seconds.append(time.perf_counter() - self.start)

    trainer.add_callback(Watch())
    parameters = sum(p.numel() for p in trainer.model.parameters())
    # weights, gradients and two moments in fp32: what any trainer must hold
    held = 4 * 4 * parameters
    before = _resident()
    trainer.train()
    peak = _most_resident()
    return {
        "seconds": seconds[WARM_UP:],
        "peak_mb": max(0, peak - before - held * 3 // 4) / 2**20,
        "parameters": parameters,
    }


def _resident() -> int:
    """Bytes on the device: of the process on a CPU, of the allocator's tensors on CUDA."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()


def _most_resident() -> int:
    """The most that ``_resident`` has been."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """One measurement of a script's ``--worker``, undisturbed by what ran before."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, "--worker", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    from counterpoint.runlog import versions

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
    }


def compare(row: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Both sides in turns; medians over all steps, minimum and maximum beside."""
    sides: dict[str, list[dict[str, Any]]] = {"trl": [], "counterpoint": []}
    for _ in range(rounds):
        for side, results in sides.items():
            results.append(in_own_process(__file__, side, row, str(folder)))
    result: dict[str, Any] = {"row": row, "pairs": WORK[row]["pairs"]}
    for side, results in sides.items():
        rate = [WORK[row]["pairs"] / s for r in results for s in r["seconds"]]
        result[side] = {
            "pairs_per_second": statistics.median(rate),
            "min": min(rate),
            "max": max(rate),
            "peak_mb": statistics.median(r["peak_mb"] for r in results),
        }
    ours, theirs = result["counterpoint"], result["trl"]
    result["speed_ratio"] = ours["pairs_per_second"] / theirs["pairs_per_second"]
    result["memory_ratio"] = ours["peak_mb"] / theirs["peak_mb"]
    return result


NAMES = {
    "hh-fp32": "hh-rlhf, 8 pairs, Qwen3-shaped 34M, vocabulary 32k, fp32",
    "hh-bf16": "the same, bf16",
    "ted-fp32": "TED zh-en, best/worst, 8 pairs, the same model, fp32",
    "ted-bf16": "the same, bf16",
    "wide-vocabulary-bf16": "hh-rlhf, 4 pairs, Qwen2 of width 8, vocabulary 152k, bf16",
}
NOTE = """
Pairs a second: medians with minimum and maximum, sides in turns. Memory: the peak over what
weights, gradients and optimizer need, as a share of TRL's. `python benchmarks/step.py`"""


def write_tables() -> None:
    """Put the results between the markers of both READMEs."""
    lines = [
        "| whole steps of `train()` on 2 cores | TRL 1.16 | Counterpoint | faster | memory |",
        "|---|---|---|---|---|",
    ]
    for row in json.loads((RESULTS / "step.json").read_text())["rows"]:
        rates = [
            f"{row[s]['pairs_per_second']:.2f} ({row[s]['min']:.2f} to {row[s]['max']:.2f})"
            for s in ("trl", "counterpoint")
        ]
        gain = f"{row['speed_ratio']:.1f} × | {100 * row['memory_ratio']:.0f} %"
        lines.append(f"| {NAMES[row['row']]} | {rates[0]} | {rates[1]} | {gain} |")
    for file in ("README.md", "README.zh-CN.md"):
        path = Path(__file__).parents[1] / file
        before, rest = path.read_text(encoding="utf-8").split("<!-- step: begin -->")
        after = rest.split("<!-- step: end -->")[1]
        table = "\n".join([*lines, NOTE])
        text = f"{before}<!-- step: begin -->\n{table}\n<!-- step: end -->{after}"
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--docs", action="store_true", help="write the READMEs' table")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "ROW", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        side, row, folder = options.worker
        with tempfile.TemporaryDirectory() as own:
            (Path(own) / "tokenizer").symlink_to(Path(folder) / "tokenizer")
            print(json.dumps(train(trainer_of(side, WORK[row], Path(own)))))
        return
    if options.docs:
        write_tables()
        return
    if not DATA.is_dir():
        raise SystemExit(f"no real data in {DATA}; set COUNTERPOINT_DATA")
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        results = []
        for row in options.rows:
            result = compare(row, options.rounds, Path(folder))
            results.append(result)
            ours, theirs = result["counterpoint"], result["trl"]
            print(
                f"{row:22} TRL {theirs['pairs_per_second']:6.2f} pairs/s "
                f"[{theirs['min']:.2f}, {theirs['max']:.2f}], {theirs['peak_mb']:6.0f} MB   "
                f"Counterpoint {ours['pairs_per_second']:6.2f} "
                f"[{ours['min']:.2f}, {ours['max']:.2f}], {ours['peak_mb']:6.0f} MB   "
                f"speed x{result['speed_ratio']:.2f}, memory x{result['memory_ratio']:.2f}",
                flush=True,
            )
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": about, "rounds": options.rounds, "rows": results}
    (RESULTS / "step.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
