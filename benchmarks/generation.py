"""Claim: 64 prompts get 4 candidates each faster than one by one, and no text is another.

Four ways of one model, in turns, in one process:

1. one by one: ``generate`` of transformers, a candidate at a time, no padding;
2. padded: ``generate`` of all in batches of 16 in the order of the file, its own sampling;
3. ours: what ``counterpoint sample`` does, in batches of 16, sorted by length;
4. continuous: the same with ``--engine continuous``, 16 texts at once.

Sampled texts cannot be compared over the ways, whose chances differ; so the same is done greedily
once, in float32, and the texts of all must be equal.

    python benchmarks/generation.py [--rounds 3] [--rows ...]   into results/generation.json
    python benchmarks/generation.py --docs                      write docs/sampling.md

Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import step
import torch

PROMPTS, CANDIDATES, BATCH = 64, 4, 16
PAGES = ("sampling.md", "sampling.zh-CN.md")
WORK: dict[str, dict[str, Any]] = {
    "quickstart": {"name": "the quickstart's model, its own prompts", "tokens": 32},
    "30M": {"name": "Qwen3-shaped 34M, prompts of hh-rlhf", "tokens": 32},
}
WAYS = ("one by one", "padded", "ours", "continuous")
RESULTS = step.ROOT / "benchmarks" / "results" / "generation.json"


def model_of(row: str) -> tuple[Any, Any, list[str]]:
    """A model, its tokenizer and its prompts."""
    if row == "quickstart":
        from counterpoint.quickstart.task import preference_pairs
        from counterpoint.quickstart.translate import load_base

        model, tokenizer = load_base()
        return model, tokenizer, [one.row["prompt"] for one in preference_pairs(PROMPTS, seed=0)]
    from transformers import AutoConfig, AutoModelForCausalLM

    step.need_data()
    tokenizer = step.tokenizer_for(step.SMALL["vocab_size"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**step.SMALL))
    return model, tokenizer, [one["prompt"][-200:] for one in step.rows_of("hh", PROMPTS)]


class Ways:
    """The ways of one model.

    Args:
        row: of ``WORK``.
    """

    def __init__(self, row: str) -> None:
        """Load the model and encode its prompts."""
        from counterpoint.evaluation.generation import Prompt

        self.model, self.tokenizer, texts = model_of(row)
        self.model.float().eval()
        self.tokens = WORK[row]["tokens"]
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.prompts = [Prompt(tuple(self.tokenizer(text)["input_ids"])) for text in texts]

    def run(self, way: str, *, greedy: bool = False) -> dict[tuple[int, int], tuple[int, ...]]:
        """The tokens of each candidate, by row and number."""
        count = 1 if greedy else CANDIDATES
        if way in ("ours", "continuous"):
            return self._ours(way, count, greedy)
        places = [(row, n) for row in range(len(self.prompts)) for n in range(count)]
        size = 1 if way == "one by one" else BATCH
        found = {}
        for start in range(0, len(places), size):
            part = places[start : start + size]
            found |= dict(zip(part, self._generated(part, greedy), strict=True))
        return found

    def _generated(self, places: Sequence[tuple[int, int]], greedy: bool) -> list[tuple[int, ...]]:
        rows = [list(self.prompts[row].ids) for row, _ in places]
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        ends = self.tokenizer.eos_token_id
        with torch.no_grad():
            new = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=not greedy,
                max_new_tokens=self.tokens,
                pad_token_id=pad,
                eos_token_id=ends,
                **({} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}),
            )[:, width:].tolist()
        return [tuple(row[: row.index(ends)] if ends in row else row) for row in new]

    def _ours(self, way: str, count: int, greedy: bool) -> dict[tuple[int, int], tuple[int, ...]]:
        from counterpoint.evaluation.sampling import (
            Draw,
            Sampling,
            candidate_chance,
            draw_candidates,
        )

        draws = [
            Draw(row, n, prompt, candidate_chance(0, "m", prompt, 0, n))
            for row, prompt in enumerate(self.prompts)
            for n in range(count)
        ]
        how = Sampling(self.tokens, temperature=0.0 if greedy else 1.0, batch=BATCH)
        found: dict[tuple[int, int], tuple[int, ...]] = {}

        def take(done: Any) -> None:
            found.update({(one.row, one.candidate): text.ids for one, text in done})

        drawing = draw_candidates
        if way == "continuous":
            from counterpoint.evaluation.continuous import draw_continuously as drawing
        drawing(self.model, self.tokenizer, draws, how, lambda one: False, take)
        return found


def timed(call: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure(row: str, rounds: int) -> dict[str, Any]:
    """One row: seconds of each way in each round, and whether greedy texts are equal."""
    ways = Ways(row)
    texts = [ways.run(way, greedy=True) for way in WAYS]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            seconds[way].append(timed(lambda way=way: ways.run(way)))
    return {
        "row": row,
        "name": WORK[row]["name"],
        "candidates": PROMPTS * CANDIDATES,
        "tokens": ways.tokens,
        "equal_greedy": [one == texts[0] for one in texts],
        "seconds": seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What the page shows: medians, least and most."""
    ways = list(rows[0]["seconds"])
    head = f"| model | {' | '.join(f'{way}, s' for way in ways)} | greedy texts equal |"
    lines = [head, "|---" * (len(ways) + 2) + "|"]
    for one in rows:
        cells = [
            f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"
            for found in (one["seconds"][way] for way in ways)
        ]
        equal = "yes" if all(one["equal_greedy"]) else "no"
        lines.append(f"| {one['name']} | {' | '.join(cells)} | {equal} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args()
    if asked.docs:
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
        for page in PAGES:
            step.put_between(step.ROOT / "docs" / page, "generation", table(found["rows"]))
        return
    measured = [measure(row, asked.rounds) for row in asked.rows]
    print(table(measured))
    content = {"machine": step.machine(), "rounds": asked.rounds, "rows": measured}
    Path(RESULTS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
