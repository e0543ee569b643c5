"""Differences in what becomes of rows: cuts, empty completions, chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset

from against_trl.setting import (
    OURS,
    TRL,
    Finding,
    attempt,
    make_model,
    moved,
    one_run,
    pairs,
    quiet,
    tokenizer,
    trainer,
)

SIMPO = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}


def _lengths(row: dict[str, Any], side: Any) -> dict[str, int]:
    """Tokens of a prepared row's prompt and chosen completion."""
    if side is OURS:
        return {"prompt": len(row["prompt_ids"]), "chosen": len(row["chosen_ids"])}
    trained = sum(label != -100 for label in row["chosen_labels"])
    return {"prompt": len(row["chosen_labels"]) - trained, "chosen": trained}


def _prepared(side: Any, rows: Dataset, **options: Any) -> list[dict[str, int]]:
    with quiet():
        made = trainer(side, make_model("qwen2"), rows, **options)
    return [_lengths(row, side) for row in made.train_dataset]


def prompt_fills_the_budget() -> Finding:
    """A prompt of max_length tokens or more beside ordinary rows, under SimPO."""
    rows = pairs(4)
    long = {**rows[0], "prompt": "the fox sleeps" * 40}
    rows = Dataset.from_list([*rows, long])
    options: dict[str, Any] = {"max_length": 64, "per_device_train_batch_size": 5, **SIMPO}
    model = make_model("qwen2")
    theirs = one_run(TRL, model, rows, **options)
    kept = _prepared(TRL, rows, max_length=64)[-1]
    _, refused = attempt(lambda: one_run(OURS, model, rows, **options))
    cut = one_run(OURS, model, rows, truncation="prompt_start", **options)
    ours = _prepared(OURS, rows, max_length=64, truncation="prompt_start")[-1]
    loss, nan = theirs.logs[0]["loss"], moved(model, theirs.trainer.model)["nan"]
    return Finding(
        "has one row whose prompt fills max_length, under SimPO",
        f"the row keeps {kept['chosen']} completion tokens (and {kept['prompt']} prompt tokens of "
        f"a budget of 64); loss {loss:g} is logged, {nan:.0%} of the weights are NaN after one "
        "step",
        'CP204 names the row before anything runs; with truncation="prompt_start" it trains on '
        f"{ours['prompt']} + {ours['chosen']} tokens, loss {cut.logs[0]['loss']:.3g}",
        {
            "TRL": {"row": kept, "loss": str(loss), "weights NaN": nan},
            "Counterpoint": {"error": refused, "row": ours, "loss": cut.logs[0]["loss"]},
        },
    )


def completion_limit() -> Finding:
    """``max_completion_length`` of a decoder-only model."""
    rows = pairs(8)
    theirs = max(r["chosen"] for r in _prepared(TRL, rows, max_completion_length=8))
    ours = max(r["chosen"] for r in _prepared(OURS, rows, max_completion_length=8))
    return Finding(
        "sets max_completion_length=8",
        f"it does nothing for a decoder-only model: the longest completion has {theirs} tokens",
        f"the longest completion has {ours} tokens, the cut ones are counted in the log",
        {"TRL": theirs, "Counterpoint": ours},
    )


def cuts_are_reported() -> Finding:
    """How many tokens were cut from how many rows: who says so?"""
    rows = pairs(40, longest=200)
    options: dict[str, Any] = {"max_length": 48, "max_steps": 1}
    theirs = one_run(TRL, make_model("qwen2"), rows, **options).trainer
    ours = one_run(OURS, make_model("qwen2"), rows, invalid_rows="drop", **options).trainer
    empty = sum(_lengths(row, TRL)["chosen"] == 0 for row in theirs.train_dataset)
    over = sum(len(row["chosen_labels"]) > 48 for row in theirs.train_dataset)
    account = json.loads((Path(ours.args.output_dir) / "run.json").read_text())["data"]["train"]
    cut, dropped = account["cut_tokens"], account["dropped"]
    return Finding(
        "has 40 rows, some over max_length=48",
        f"one warning at most; {empty} rows train on no completion token, {over} are over the "
        "budget",
        f"run.json: {account['kept']} rows kept, {cut['chosen']} + {cut['rejected']} completion "
        f"tokens cut, dropped as asked: {', '.join(f'{n} × {c}' for c, n in dropped.items())}",
        {"TRL": {"empty": empty, "over": over}, "Counterpoint": account},
    )


def end_of_turn() -> Finding:
    """ChatML writes a newline after the end-of-turn token; where does EOS go?"""
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": "Where is Paris?"}],
                "chosen": [{"role": "assistant", "content": "In France."}],
                "rejected": [{"role": "assistant", "content": "No."}],
            }
        ]
    )
    with quiet():
        theirs = trainer(TRL, make_model("qwen2"), rows).train_dataset[0]
        ours = trainer(OURS, make_model("qwen2"), rows).train_dataset[0]
    trained = [label for label in theirs["chosen_labels"] if label != -100]
    tails = {
        "TRL": tokenizer().decode(trained),
        "Counterpoint": tokenizer().decode(ours["chosen_ids"]),
    }
    return Finding(
        "trains on conversations with a ChatML template (Qwen)",
        f"trains on `{_visible(tails['TRL'])}`: a second EOS after the newline",
        f"`{_visible(tails['Counterpoint'])}`: one EOS, as generation ends",
        tails,
    )


def _visible(text: str) -> str:
    return text.replace("\n", "\\n")
