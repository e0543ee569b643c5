"""Measure a loop on the quickstart's task, from the base model alone: the table of docs/loop.md.

    python benchmarks/loop.py           three rounds, and one round of the same compute, by seed
    python benchmarks/loop.py --docs    write the pages' tables from the results, no more

No pair is given: candidates are sampled from the shipped model, and ``noisy_flaws`` scores them,
one time in ten without looking. Exact matches are of numbers that no round has seen, as
``counterpoint evaluate`` finds them. A seed decides prompts, draws, order and what is held out.
Stages are forks of one process, so that its libraries are imported once.

Not here: the scorer (``noisy_flaws``), the stages (``counterpoint.loop``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import quickstart
import step
import torch
import yaml

from counterpoint.cli.main import main as call
from counterpoint.loop import running
from counterpoint.loop.stages import CANDIDATES, EVALUATION, PAIRS
from counterpoint.quickstart.lessons import Translating
from counterpoint.quickstart.run import HELD_OUT
from counterpoint.quickstart.task import flaws_in, german, preference_pairs, prompt

sys.path.insert(0, str(step.ROOT))

from tests.reliability.loop_kills import Forked

SEEDS = range(5, 8)
PROMPTS, K, STEPS, ROUNDS = 1280, 8, 40, 3
RESULTS = Path(__file__).parent / "results" / "loop.json"
PAGES = ("loop.md", "loop.zh-CN.md")

SETTINGS: dict[str, dict[str, Any]] = {
    f"{ROUNDS} rounds, k = {K}": {"rounds": ROUNDS},
    f"1 round, k = {ROUNDS * K}": {
        "rounds": 1,
        "sample": {"k": ROUNDS * K},
        "pairs": {"select": "all", "per_prompt": ROUNDS},
        "train": {"max_steps": ROUNDS * STEPS},
    },
}
"""What differs between them: candidates, pairs and steps are as many in all."""

RECIPE: dict[str, Any] = {
    "model": "base",
    "prompts": "prompts.jsonl",
    "sample": {"k": K, "max_new_tokens": 40, "batch": 128, "use_cpu": True},
    "score": {"with": "noisy_flaws:score"},
    "train": {
        "beta": 2.0,
        "cpo_alpha": 0.03,
        "learning_rate": 2e-4,
        "lr_scheduler_type": "linear",
        "warmup_steps": 5,
        "max_steps": STEPS,
        "per_device_train_batch_size": 32,
        "max_length": 64,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    },
    "evaluate": {
        "dataset": "held-out-pairs.jsonl",
        "prompts": "held-out.jsonl",
        "max_new_tokens": 40,
        "metrics": "none",
        "use_cpu": True,
    },
}
"""The quickstart's own options of training, a third of its steps a round."""


def write_inputs(folder: Path, seed: int, setting: dict[str, Any]) -> None:
    """The base model, prompts, what is held out, and the loop's file."""
    lesson = Translating()
    shutil.copytree(lesson.base, folder / "base")
    drawn = (pair.chosen.number for pair in preference_pairs(4 * PROMPTS, seed))
    numbers = list(dict.fromkeys(drawn))[:PROMPTS]
    held = lesson.held_out(HELD_OUT, seed)
    files = {
        "prompts.jsonl": [{"prompt": prompt(number)} for number in numbers],
        "held-out.jsonl": [{"prompt": prompt(n), "reference": german(n)} for n in held],
        "held-out-pairs.jsonl": lesson.held_out_rows(held, seed, folder),
    }
    for name, rows in files.items():
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    recipe = {"seed": seed, **RECIPE}
    for name, value in setting.items():
        recipe[name] = {**recipe.get(name, {}), **value} if isinstance(value, dict) else value
    (folder / "loop.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def measure(name: str, seed: int) -> list[dict[str, Any]]:
    """A row for the first model and for each round."""
    with tempfile.TemporaryDirectory() as place, chdir(place):
        write_inputs(Path(place), seed, SETTINGS[name])
        if call(["loop", "loop.yaml", "--out", "loop"]):
            raise SystemExit(f"{name}, seed {seed}: the loop failed")
        rounds = range(SETTINGS[name]["rounds"] + 1)
        return [found(Path("loop"), number) | {"setting": name, "seed": seed} for number in rounds]


def found(folder: Path, number: int) -> dict[str, Any]:
    """What a round came to."""
    of_round = folder / f"round-{number}"
    sides = json.loads((of_round / EVALUATION).read_text(encoding="utf-8"))["after"]
    row = {
        "round": number,
        "exact": sides["texts"]["prompts"]["greedy"]["exact_match"],
        "accuracy": sides["sets"]["held-out-pairs.jsonl"]["measures"]["accuracy"]["value"],
    }
    if number:
        texts = list(map(json.loads, (of_round / CANDIDATES).open(encoding="utf-8")))
        row["candidates"] = len(texts)
        row["perfect"] = sum(is_right(one) for one in texts) / len(texts)
        row["pairs"] = sum(1 for _ in (of_round / PAIRS).open(encoding="utf-8"))
    return row


def is_right(candidate: dict[str, Any]) -> bool:
    """Whether a candidate is the right text."""
    from noisy_flaws import number_asked

    return flaws_in(number_asked(candidate["prompt"]), candidate["text"]) == frozenset()


def as_table(rows: list[dict[str, Any]]) -> str:
    """A row for each setting, round and seed."""
    lines = [
        "| setting | seed | round | perfect candidates | pairs | prefers chosen | exact match |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        made = [f"{row['perfect']:.1%}", f"{row['pairs']:,}"] if row["round"] else ["", ""]
        cells = [row["seed"], row["round"], *made, f"{row['accuracy']:.1%}", f"{row['exact']:.1%}"]
        lines.append(f"| {row['setting']} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, or write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", action="store_true", help="write the pages' tables, no more")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    if arguments.docs:
        for page in PAGES:
            step.put_between(quickstart.DOCS / page, "loop", as_table(kept))
        return 0
    torch.set_num_threads(1)
    running.start_stage = Forked
    rows = [row for row in kept if row["seed"] not in arguments.seeds]
    for seed in arguments.seeds:
        for name in SETTINGS:
            mine = measure(name, seed)
            print("\n".join(as_table(mine).splitlines()[2:]), flush=True)
            rows += mine
            rows.sort(key=lambda row: (list(SETTINGS).index(row["setting"]), row["seed"]))
            content = {"machine": quickstart.machine(), "rows": rows}
            RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
