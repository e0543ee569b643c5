"""Bounds and weights on real pairs, and beside a second set that contradicts the first.

    python benchmarks/constrained_pairs.py            both, whatever is missing, some 40 minutes
    python benchmarks/constrained_pairs.py hh         held-out NLL and accuracy on hh-rlhf's file
    python benchmarks/constrained_pairs.py safety     the main set against a bound on the second
    python benchmarks/constrained_pairs.py --docs     write tables and plot of docs/constrained.md

hh: a small model, made on the spot by plain likelihood on the chosen transcripts of four fifths of
the rows, then one epoch of CPO on the same; the last fifth is held out. Three seeds, which decide
model and order. safety: the quickstart's task at beta 1; its pairs prefer the text with fewer
flaws, while the second set prefers, of two texts with the same other flaws, the one that has an
English "and": what the first teaches to leave out. Each run is a line of
results/constrained_pairs.jsonl, so that what was stopped goes on.

Not here: transfer between settings (``constrained``).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from constrained import HELD_OUT, PAGES, ROOT, STEP_PAIRS, STEPS, silence
from datasets import Dataset
from step import need_data, put_between, rows_of, tokenizer_for
from transformers import LlamaConfig, LlamaForCausalLM

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.quickstart.run import training_options
from counterpoint.quickstart.table import judge_translations
from counterpoint.quickstart.task import (
    Flaw,
    german,
    held_out_numbers,
    held_out_pairs,
    preference_pairs,
    prompt,
)
from counterpoint.quickstart.translate import load_base, translate
from counterpoint.runlog import versions

RESULTS = Path(__file__).parent / "results" / "constrained_pairs.jsonl"
PLOT = ROOT / "docs" / "constrained-safety.svg"
SEEDS = (1, 2, 3)

HH_WEIGHTS = (0.0, 0.3, 1.0, 3.0, 10.0)
HH_SLACKS = (-0.02, 0.0, 0.02, 0.05, 0.1)
VOCABULARY, WIDTH, LAYERS, MOST_TOKENS = 1024, 128, 2, 160
TRAINED = 0.8
PRETRAINING_STEPS, PRETRAINING_ROWS = 300, 32

SAFETY_BOUNDS = (0.05, 0.1, 0.2, 0.4, 0.6)
SAFETY_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=["hh", "safety"])
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.docs:
        write_docs()
        return
    arms = {
        "hh": [*(("weight", w) for w in HH_WEIGHTS), *(("slack", s) for s in HH_SLACKS)],
        "safety": [
            *(("weight", w) for w in SAFETY_WEIGHTS),
            *(("bound", b) for b in SAFETY_BOUNDS),
        ],
    }
    for part in [given.part] if given.part else arms:
        for seed in given.seeds:
            for arm, value in arms[part]:
                measure(part, seed, arm, value)


def measure(part: str, seed: int, arm: str, value: float) -> None:
    about = {"part": part, "seed": seed, "arm": arm, "value": value}
    if any(about.items() <= line.items() for line in results()):
        return
    found = (hh if part == "hh" else safety)(seed, arm, value)
    line = {**about, **found, "versions": versions()}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(part, seed, arm, value, {k: round(v, 3) for k, v in found.items()}, flush=True)


def results() -> list[dict[str, Any]]:
    if not RESULTS.is_file():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


# hh-rlhf


@cache
def hh_rows() -> tuple[list[dict[str, str]], list[dict[str, str]], Any]:
    need_data()
    rows = rows_of("hh", 10**6)
    random.Random(0).shuffle(rows)
    cut = int(TRAINED * len(rows))
    return rows[:cut], rows[cut:], tokenizer_for(VOCABULARY)


@cache
def pretrained(seed: int) -> LlamaForCausalLM:
    train, _, tokenizer = hh_rows()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MOST_TOKENS,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step, texts in enumerate(islice(_texts(train, seed), PRETRAINING_STEPS)):
        # what is kept are the last tokens, as of a pair whose prompt is cut at its start
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        ids = batch.input_ids[:, -MOST_TOKENS:]
        real = batch.attention_mask[:, -MOST_TOKENS:].bool()
        logits = model(ids[:, :-1], attention_mask=real[:, :-1]).logits[real[:, 1:]]
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][real[:, 1:]])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / PRETRAINING_STEPS)
        optimizer.step()
        optimizer.zero_grad()
    return model


def _texts(rows: list[dict[str, str]], seed: int) -> Iterator[list[str]]:
    rng = random.Random(seed)
    while True:
        few = rng.sample(rows, PRETRAINING_ROWS)
        yield [row.get("prompt", "") + row["chosen"] + "</s>" for row in few]


def hh(seed: int, arm: str, value: float) -> dict[str, float]:
    train, held_out, tokenizer = hh_rows()
    model = LlamaForCausalLM(pretrained(seed).config)
    model.load_state_dict(pretrained(seed).state_dict())
    arms: dict[str, Any] = {"weight": {"cpo_alpha": value}}
    arms["slack"] = {"cpo_alpha": 1.0, "constraints": [{"kind": "bc", "slack": value}]}
    with tempfile.TemporaryDirectory() as place, silence():
        args = CPOConfig(
            output_dir=place,
            num_train_epochs=1,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            loss_type="simpo",
            beta=10.0,
            simpo_gamma=0.0,
            learning_rate=1e-3,
            warmup_steps=5,
            max_length=MOST_TOKENS,
            truncation="prompt_start",
            invalid_rows="drop",
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
            **arms[arm],
        )
        trainer = CPOTrainer(
            model,
            args,
            train_dataset=Dataset.from_list(train),
            eval_dataset=Dataset.from_list(held_out),
            processing_class=tokenizer,
        )
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
    found = {
        "nll_before": before["eval_nll_loss"],
        "accuracy_before": before["eval_rewards/accuracies"],
        "nll": after["eval_nll_loss"],
        "accuracy": after["eval_rewards/accuracies"],
    }
    return found | of_constraint(trainer, "bc")


def of_constraint(trainer: CPOTrainer, name: str) -> dict[str, float]:
    """What a constraint's last quarter of the run was like."""
    lines = [line for line in trainer.state.log_history if f"constraints/{name}/value" in line]
    if not lines or "loss" not in lines[0]:
        return {}
    last = [line for line in lines if "loss" in line]
    last = last[-(len(last) // 4) :]
    return {
        "bound": last[-1][f"constraints/{name}/bound"],
        "train_value": fmean(line[f"constraints/{name}/value"] for line in last),
        "multiplier": fmean(line[f"constraints/{name}/multiplier"] for line in last),
    }


# A second set


def contradicting(numbers: list[int], seed: int) -> list[dict[str, str]]:
    """Pairs that differ in an English "and" alone, and prefer it."""
    rng, rows = random.Random(f"and {seed}"), []
    for number in numbers:
        others = frozenset(flaw for flaw in Flaw if flaw != Flaw.ENGLISH_AND and rng.random() < 0.5)
        plain = german(number, others)
        with_and = german(number, others | {Flaw.ENGLISH_AND})
        if plain != with_and:
            rows.append({"prompt": prompt(number), "chosen": with_and, "rejected": plain})
    return rows


def safety(seed: int, arm: str, value: float) -> dict[str, float]:
    model, tokenizer = load_base()
    pairs = preference_pairs(STEPS * STEP_PAIRS, seed)
    numbers = held_out_numbers(HELD_OUT, seed)
    second = contradicting([pair.chosen.number for pair in pairs], seed)
    held = {"kind": "safety", "bound": value if arm == "bound" else 0.0, "pairs": STEP_PAIRS}
    if arm == "weight":
        held |= {"rate": 0.0, "start": value}
    with tempfile.TemporaryDirectory() as place, silence():
        plain = training_options(Path(place), seed=seed, steps=STEPS)
        trainer = CPOTrainer(
            model,
            CPOConfig(**{**plain, "beta": 1.0, "logging_steps": 1, "constraints": [held]}),
            train_dataset=[pair.row for pair in pairs],
            eval_dataset={
                "main": [pair.row for pair in held_out_pairs(numbers, seed)],
                "second": contradicting(numbers, seed),
            },
            processing_class=tokenizer,
            constraint_datasets={"safety": second},
        )
        trainer.train()
        after = trainer.evaluate()
    texts = translate(model, tokenizer, numbers)
    found = {
        "loss": after["eval_main_loss"],
        "accuracy": after["eval_main_rewards/accuracies"],
        "second_error": 1 - after["eval_second_rewards/accuracies"],
        "exact": judge_translations(numbers, texts).exact,
        "with_and": fmean(" and " in text or "and" in _without_und(text) for text in texts),
    }
    return found | of_constraint(trainer, "safety")


def _without_und(text: str) -> str:
    return text.replace("tausend", "").replace("und", "")


# The page


def table(part: str, columns: dict[str, str], names: dict[str, str]) -> list[str]:
    lines = [line for line in results() if line["part"] == part and line["seed"] in SEEDS]
    rows = [["", *columns.values()]]
    rows.append(["---"] * len(rows[0]))
    for arm, value in dict.fromkeys((line["arm"], line["value"]) for line in lines):
        runs = [line for line in lines if (line["arm"], line["value"]) == (arm, value)]
        cells = [names[arm].format(value)]
        for key in columns:
            found = [run[key] for run in runs if key in run]
            shown = f"{fmean(found):.3f} ({min(found):.3f} to {max(found):.3f})" if found else "—"
            cells.append(shown)
        rows.append(cells)
    return ["| " + " | ".join(row) + " |" for row in rows]


def write_docs() -> None:
    held = {"bound": "bound", "train_value": "training, last quarter", "multiplier": "λ there"}
    tables = {
        "hh": table(
            "hh",
            {"nll": "held-out NLL a token", "accuracy": "held-out accuracy", **held},
            {"weight": "α = {:g}", "slack": "slack {:g}"},
        ),
        "safety": table(
            "safety",
            {
                "accuracy": "main accuracy",
                "loss": "main loss",
                "exact": "exact matches",
                "second_error": "error on the second set",
                **held,
            },
            {"weight": "fixed weight {:g}", "bound": "bound {:g}"},
        ),
    }
    for name, found in tables.items():
        print(f"\n{name}\n" + "\n".join(found))
        for page in PAGES:
            if f"<!-- {name}: begin -->" in page.read_text(encoding="utf-8"):
                put_between(page, name, "\n".join(found))
    draw()


def draw() -> None:
    """The main set's loss over the second set's error, both held out: lower left is better."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = "counterpoint"
    lines = [line for line in results() if line["part"] == "safety" and line["seed"] in SEEDS]
    figure, axis = pyplot.subplots(figsize=(6, 4))
    for arm, values, name in (
        ("weight", SAFETY_WEIGHTS, "fixed weights"),
        ("bound", SAFETY_BOUNDS, "bounds"),
    ):
        runs = [
            [line for line in lines if (line["arm"], line["value"]) == (arm, v)] for v in values
        ]
        measured = [(v, found) for v, found in zip(values, runs, strict=True) if found]
        error = [fmean(run["second_error"] for run in found) for _, found in measured]
        loss = [fmean(run["loss"] for run in found) for _, found in measured]
        axis.plot(error, loss, "o-", label=name, markersize=4)
        for (value, _), x, y in zip(measured, error, loss, strict=True):
            axis.annotate(f"{value:g}", (x, y), (4, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel="error on the second set, held out", ylabel="loss of the main set, held out")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PLOT, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
