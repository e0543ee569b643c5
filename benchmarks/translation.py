"""Claim: whole steps of an encoder-decoder take less than half of TRL's time and memory.

Rows of TED zh-en, the best candidate against the worst, the source alone as the prompt; models
of T5's shape (vocabulary 32k) and NLLB's (64k) from random weights. Sides run in turns, a process
each, as in ``step.py``; rates are over all steps together, beside them that of the slowest and of
the fastest step. Two more sides are our own path with padding computed like any token, and that
with the source run once for each completion as well (``layout="encoder-twice"``): what skipping
padding and the encoder's once give alone.

The rows called "several" set the best candidate of a source against four others, and compare
sources that such pairs share with a source for every pair.

Both trainers read one tokenizer without languages, so that both train the same tokens.

    python benchmarks/translation.py [--rounds 3] [--rows t5-fp32]   into results/translation.json
    python benchmarks/translation.py --docs     write the table of docs/translation.md
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import step

T5 = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
NLLB = {
    "model_type": "m2m_100",
    "vocab_size": 64000,
    "d_model": 512,
    **{f"{side}_layers": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 2048 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 8 for side in ("encoder", "decoder")},
    **{f"{side}_layerdrop": 0.0 for side in ("encoder", "decoder")},
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
SIDES = {
    "trl": ("trl", {"max_completion_length": 512}),
    "counterpoint": ("counterpoint", {}),
    "with-padding": ("counterpoint", {}),
    "encoder-twice": ("counterpoint", {"layout": "encoder-twice"}),
}
"""Name -> whose trainer, and its own options."""

APART = "a-source-a-pair"
"""Our path, each source once for every pair that has it: what pairs of one source save."""

SPEED_GOAL, MEMORY_GOAL = 2.0, 0.5
ROWS = {
    f"{kind}-{precision}": {
        "name": f"{shape}, {precision}",
        "model": model,
        "pairs": 8,
        "bf16": precision == "bf16",
        "steps": 6,
    }
    for kind, shape, model in (("t5", "T5, 60M, 32k", T5), ("nllb", "NLLB, 62M, 64k", NLLB))
    for precision in ("fp32", "bf16")
}
CANDIDATES = 4
SEVERAL: dict[str, dict[str, Any]] = {
    f"{kind}-several": {**ROWS[f"{kind}-fp32"], "candidates": CANDIDATES} for kind in ("t5", "nllb")
}
"""The best candidate of a source against each of several others: two sources a step."""


def rows_of(count: int) -> list[dict[str, str]]:
    """Sources with the best and the worst of their candidates."""
    marks = "Chinese: ", "\nEnglish:"
    return [
        {
            "prompt": row["prompt"].split(marks[0])[1].removesuffix(marks[1]),
            "chosen": row["chosen"].strip(),
            "rejected": row["rejected"].strip(),
        }
        for row in step.rows_of("ted", count)
    ]


def several_of(count: int) -> list[dict[str, str]]:
    """The best candidate of each source against so many others, one after the other."""
    with gzip.open(step.DATA / "ted-mqm-zhen-scored.jsonl.gz", "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    rows = []
    for row in raw:
        best, *others = sorted(row["candidates"], key=lambda one: one["mqm"])
        texts = dict.fromkeys(other["text"].strip() for other in reversed(others))
        texts.pop(best["text"].strip(), None)
        if len(texts) >= CANDIDATES:
            rows += [
                {"prompt": row["source"], "chosen": best["text"].strip(), "rejected": text}
                for text in [*texts][:CANDIDATES]
            ]
    return rows[:count]


def work_of(row: str, side: str) -> dict[str, Any]:
    """A row's work as ``step.trainer_of`` takes it."""
    work = {**ROWS, **SEVERAL}[row]
    rows = several_of if "candidates" in work else rows_of
    options = {"layout": APART} if side == APART else SIDES[side][1]
    count = work["pairs"] * (work["steps"] + step.WARM_UP)
    return {**work, "rows": rows(count), "options": options}


def compare(row: str, rounds: int, folder: Path) -> dict[str, Any]:
    """The sides of a row."""
    sides = step.in_turns(__file__, SIDES, row, ROWS[row]["pairs"], rounds, folder)
    result: dict[str, Any] = {"row": row, "rounds": rounds, **sides}
    for name, one, other in (
        ("trl", "counterpoint", "trl"),
        ("unpadded", "counterpoint", "with-padding"),
        ("once", "with-padding", "encoder-twice"),
    ):
        result[f"{name}_speed"] = sides[one]["whole"] / sides[other]["whole"]
        result[f"{name}_memory"] = sides[one]["peak_mb"] / sides[other]["peak_mb"]
    return result


def compare_several(row: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Pairs of one source, with and without what they share."""
    sides = step.in_turns(
        __file__, ("counterpoint", APART), row, SEVERAL[row]["pairs"], rounds, folder
    )
    ours, apart = sides["counterpoint"], sides[APART]
    return {
        "row": row,
        "rounds": rounds,
        **sides,
        "speed": ours["whole"] / apart["whole"],
        "memory": ours["peak_mb"] / apart["peak_mb"],
    }


def register_apart() -> None:
    """Make the layout known that shares no source between pairs."""
    from counterpoint.forward.encoded import EncoderOnce
    from counterpoint.forward.layouts import register_layout

    class Apart(EncoderOnce):
        name = APART

        def common(self, pair: Any) -> Any:
            return pair.row

    register_layout(Apart())


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the documentation shows them."""
    lines = [
        "| | TRL 1.16, pairs/s | Counterpoint, pairs/s | faster | memory | no padding alone "
        "| encoder once alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = [
            f"{row[side]['whole']:.2f} ({row[side]['min']:.2f} to {row[side]['max']:.2f})"
            for side in ("trl", "counterpoint")
        ]
        share = 100 * row["trl_memory"]
        speed_goal = step.against(row["trl_speed"], SPEED_GOAL)
        memory_goal = step.against(share, 100 * MEMORY_GOAL, unit=" %", at_most=True)
        lines.append(
            f"| {ROWS[row['row']]['name']} | {' | '.join(rates)} | {row['trl_speed']:.1f} × "
            f"({speed_goal}) | {share:.0f} % ({memory_goal}) | {row['unpadded_speed']:.2f} × "
            f"| {row['once_speed']:.2f} × |"
        )
    return "\n".join(lines)


def table_of_several(rows: list[dict[str, Any]]) -> str:
    """What pairs of one source save, as the documentation shows it."""
    lines = [
        f"| the best against {CANDIDATES} others of its source, 8 pairs | each pair its source, "
        "pairs/s | sources shared, pairs/s | faster | memory |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        rates = [
            f"{row[side]['whole']:.2f} ({row[side]['min']:.2f} to {row[side]['max']:.2f})"
            for side in (APART, "counterpoint")
        ]
        lines.append(
            f"| {SEVERAL[row['row']]['name']} | {' | '.join(rates)} | {row['speed']:.2f} × | "
            f"{100 * row['memory']:.0f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *SEVERAL], default=[*ROWS, *SEVERAL])
    parser.add_argument("--docs", action="store_true", help="write the table, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "ROW", "FOLDER"))
    options = parser.parse_args()
    path, several = (step.RESULTS / f"{name}.json" for name in ("translation", "several"))
    if options.worker:
        side, row, folder = options.worker
        register_apart()
        if side == "with-padding":
            from counterpoint.forward import unpadded

            unpadded.WORTH = 0.0  # skips nothing
        with step.own_folder(folder) as own:
            whose, _ = SIDES.get(side, SIDES["counterpoint"])
            trainer = step.trainer_of(whose, work_of(row, side), own)
            print(json.dumps(step.train(trainer)))
        return
    if options.docs:
        page = step.ROOT / "docs" / "translation.md"
        for name, file, shown in (
            ("translation", path, table),
            ("several", several, table_of_several),
        ):
            if file.is_file():
                rows = json.loads(file.read_text())["rows"]
                step.put_between(page, name, shown(rows))
        return
    step.need_data()
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for row in options.rows:
            apart = row in SEVERAL
            result = (compare_several if apart else compare)(row, options.rounds, Path(folder))
            into, order = (several, SEVERAL) if apart else (path, ROWS)
            step.keep({**result, "machine": step.machine()}, into, order)
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
