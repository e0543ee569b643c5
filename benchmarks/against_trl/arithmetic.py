"""Differences in what a step computes: splits, overflow, experts, dropout, metrics."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import torch
from datasets import Dataset

from against_trl.setting import (
    OURS,
    SIDES,
    TRL,
    Finding,
    attempt,
    make_model,
    moved,
    one_run,
    pairs,
    percent,
    quiet,
    tokenizer,
    trainer,
    words,
)
from tests.steps import distance

SETS = 5
"""Sets of 8 pairs on which TRL's change is measured; it depends on their lengths."""

SPLITS = ((8, 1), (4, 2), (2, 4), (1, 8))
"""Micro-batch x accumulation of one step of 8 pairs."""

OBJECTIVES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "hinge": {"loss_type": "hinge"},
    "ipo": {"loss_type": "ipo"},
    "cpo-simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
    "simpo": {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    "alphapo": {"loss_type": "alphapo", "beta": 2.0, "alpha": 0.25},
}


def _splits(side: Any, model: Any, rows: Dataset, **options: Any) -> dict[str, float]:
    """Relative change of the gradient of one step against that of one micro-batch."""
    found = {}
    whole = None
    for size, count in SPLITS:
        run = one_run(
            side,
            model,
            rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=count,
            **options,
        )
        whole = whole or run.gradients[0]
        found[f"{size}x{count}"] = distance(whole, run.gradients[0])
    return found


def split_of_the_step() -> Finding:
    """The same 8 pairs as 8x1, 4x2, 2x4 and 1x8, for every loss type of TRL, five sets of 8."""
    numbers: dict[str, Any] = {}
    for name, options in OBJECTIVES.items():
        model = make_model("qwen2")
        theirs = [_splits(TRL, model, pairs(8, seed=seed), **options) for seed in range(SETS)]
        numbers[name] = {
            "TRL fp32": {
                split: {
                    "median": statistics.median(found[split] for found in theirs),
                    "min": min(found[split] for found in theirs),
                    "max": max(found[split] for found in theirs),
                }
                for split in theirs[0]
            },
            "Counterpoint fp32": _splits(OURS, model, pairs(8), **options),
            "Counterpoint fp64": _splits(OURS, model.double(), pairs(8), **options),
        }

    def median(name: str, split: str) -> float:
        return numbers[name]["TRL fp32"][split]["median"]

    def worst(of: str) -> str:
        return percent([v for n in numbers for v in numbers[n][of].values()])

    shown = ", ".join(percent([median("sigmoid", s)]) for s in ("4x2", "2x4", "1x8"))
    low, high = (percent([numbers["sigmoid"]["TRL fp32"]["1x8"][end]]) for end in ("min", "max"))
    others = sorted(median(n, "1x8") for n in ("hinge", "ipo", "cpo-simpo"))
    without = percent([median(n, s) for n in ("simpo", "alphapo") for s in numbers[n]["TRL fp32"]])
    return Finding(
        "trains the same 8 pairs as 8x1, 4x2, 2x4 or 1x8 (micro-batch x accumulation)",
        f"the gradient changes by {shown} (default loss, relative norm, fp32, medians over "
        f"{SETS} sets of pairs; the last from {low} to {high}); 1x8 with hinge, IPO, CPO-SimPO by "
        f"{percent(others[:1])} to {percent(others)}; without an NLL term (SimPO, AlphaPO) only by "
        f"{without}",
        f"at most {worst('Counterpoint fp32')} in fp32 and {worst('Counterpoint fp64')} in fp64, "
        "every loss",
        numbers,
    )


def short_last_step() -> Finding:
    """The last step of an epoch holds 3 pairs, as 2 + 1 or as 3; pure SimPO, no NLL."""
    rows, model = pairs(11), make_model("qwen2")
    options = OBJECTIVES["simpo"]
    numbers = {}
    for side in SIDES:
        last = one_run(
            side, model, rows.select(range(8, 11)), per_device_train_batch_size=3, **options
        ).gradients[0]
        cut = one_run(
            side,
            model,
            rows,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            learning_rate=0.0,
            **options,
        ).gradients[1]
        numbers[side.name] = distance(last, cut)
    return Finding(
        "has a short last step (11 pairs in steps of 2x4: the last holds 2 + 1), pure SimPO",
        f"its gradient is off by {percent([numbers['TRL']])}: the lone pair counts double",
        f"off by {percent([numbers['Counterpoint']])}",
        numbers,
    )


def alpha_on_sums() -> Finding:
    """AlphaPO's shape with the default loss, which reads sums of log-probabilities."""
    numbers: dict[str, Any] = {}
    rng, lengths = random.Random(0), {"short": 10, "long": 60}
    for name, length in lengths.items():
        model = make_model("qwen2")
        rows = Dataset.from_list(
            [
                {"prompt": "Say:", "chosen": words(length, rng), "rejected": words(length, rng)}
                for _ in range(4)
            ]
        )
        plain = one_run(OURS, model, rows, per_device_train_batch_size=4).logs[0]
        numbers[f"{name}, nats"] = (plain["logps/chosen"] + plain["logps/rejected"]) / 2
        for side in SIDES:
            options = {"alpha": 0.25, "per_device_train_batch_size": 4}
            made, error = attempt(lambda s=side, m=model, r=rows, o=options: one_run(s, m, r, **o))
            numbers[f"{side.name}, {name}"] = {
                "error": error,
                "loss": made and made.logs[0]["loss"],
                "gradient is finite": made
                and all(bool(torch.isfinite(g).all()) for g in made.gradients[0].values()),
                "weights": made and moved(model, made.trainer.model),
            }
    theirs, ours = numbers["TRL, short"], numbers["Counterpoint, short"]
    refused = numbers["Counterpoint, long"]["error"]
    return Finding(
        "sets alpha=0.25 with the default loss",
        f"completions of {numbers['short, nats']:.0f} nats: loss {theirs['loss']:g}, the gradient "
        f"is NaN, {theirs['weights']['nan']:.0%} of the weights are NaN after the step",
        f"loss {ours['loss']:.3g}, as the formula has it, and a finite gradient; where the "
        f"exponential overflows ({numbers['long, nats']:.0f} nats) {_code(refused)} names the rows "
        "and the weights stay as they are",
        _plain(numbers),
    )


def experts() -> Finding:
    """A mixture-of-experts model: is it balanced, and does the split matter?"""
    rows = pairs(8)
    numbers: dict[str, Any] = {"balancing": {}, "split": {}}
    for side in SIDES:
        model = make_model("qwen3_moe")
        run = one_run(side, model, rows, per_device_train_batch_size=8)
        numbers["balancing"][side.name] = run.logs[0].get("aux_loss")
    for side in SIDES:
        # no NLL, so that only the balancing loss can depend on the split
        model = make_model("qwen3_moe", output_router_logits=True, router_aux_loss_coef=1.0)
        options = {**OBJECTIVES["simpo"]}
        numbers["split"][side.name] = _splits(side, model, rows, **options)
    return Finding(
        "trains a mixture-of-experts model",
        "balances only if the model's config asks (output_router_logits), and never logs it; "
        f"where it does, the gradient changes by {percent(list(numbers['split']['TRL'].values()))} "
        "with the split",
        f"balanced by default, logged (aux_loss {numbers['balancing']['Counterpoint']:.3g}), over "
        f"the whole step: {percent(list(numbers['split']['Counterpoint'].values()))}",
        numbers,
    )


def attention_dropout() -> Finding:
    """``disable_dropout`` and the rate that attention keeps in an attribute of its own."""
    rows, numbers = pairs(8), {}
    for side in SIDES:
        model = make_model("qwen2", attention_dropout=0.3)
        run = one_run(
            side,
            model,
            rows,
            per_device_train_batch_size=8,
            learning_rate=0.0,
            num_train_epochs=5,
        )
        numbers[side.name] = [line["loss"] for line in run.logs if "loss" in line]
    spread = {name: max(losses) - min(losses) for name, losses in numbers.items()}
    return Finding(
        "leaves disable_dropout=True on a model with attention_dropout",
        f"attention's dropout stays on: with lr 0 the loss of the same batch wanders by "
        f"{spread['TRL']:.3g} over 5 steps",
        f"off: {spread['Counterpoint']:.3g}",
        numbers,
    )


def logged_nll() -> Finding:
    """The logged NLL of a run whose loss does not use it."""
    rows, numbers = pairs(8), {}
    for side in SIDES:
        run = one_run(
            side, make_model("qwen2"), rows, per_device_train_batch_size=8, **OBJECTIVES["simpo"]
        )
        numbers[side.name] = run.logs[0]["nll_loss"]
    return Finding(
        "sets cpo_alpha=0 and looks at nll_loss",
        f"{numbers['TRL']:g}, so that a collapse of the chosen NLL cannot be seen",
        f"{numbers['Counterpoint']:.3g} nats a token, the true value",
        numbers,
    )


def logged_logits() -> Finding:
    """``logits/chosen``: over which tokens is it a mean?"""
    rows, model, numbers = pairs(8), make_model("qwen2"), {}
    for side in SIDES:
        run = one_run(side, model, rows, per_device_train_batch_size=8)
        numbers[side.name] = run.logs[0]["logits/chosen"]
    longer = rows.map(lambda row: {"prompt": "the fox sleeps in the sun" * 10 + row["prompt"]})
    for side in SIDES:
        run = one_run(side, model, longer, per_device_train_batch_size=8)
        numbers[f"{side.name}, longer prompts"] = run.logs[0]["logits/chosen"]
    numbers["completion tokens only, by hand"] = _mean_completion_logit(model, rows)
    return Finding(
        "reads logits/chosen and logits/rejected",
        f"a mean over prompt, completion and padding ({numbers['TRL']:.3f})",
        f"over the tokens that the completion's are predicted from "
        f"({numbers['Counterpoint']:.3f}; by hand "
        f"{numbers['completion tokens only, by hand']:.3f})",
        numbers,
    )


def _mean_completion_logit(model: Any, rows: Dataset) -> float:
    """The mean logit over the rows that predict a chosen token, one pair at a time."""
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer()(row["prompt"])["input_ids"]
        whole = tokenizer()(row["prompt"] + row["chosen"])["input_ids"]
        ids = [*whole, tokenizer().eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        total += float(logits.double().mean(-1).sum())
        count += len(logits)
    return total / count


def evaluation_batch_size() -> Finding:
    """``eval_loss`` of one set under several evaluation batch sizes."""
    rows, model = pairs(11), make_model("qwen2")
    numbers: dict[str, Any] = {}
    for side in SIDES:
        with quiet():
            numbers[side.name] = {
                str(size): trainer(
                    side, model, rows, eval_dataset=rows, per_device_eval_batch_size=size
                ).evaluate()["eval_loss"]
                for size in (1, 2, 4, 8)
            }
    spread = {name: max(v.values()) - min(v.values()) for name, v in numbers.items()}
    return Finding(
        "evaluates 11 pairs with batches of 1, 2, 4 or 8",
        f"eval_loss differs by {spread['TRL']:.2g} nats: a mean of batch means",
        f"by {spread['Counterpoint']:.1g}: the loss of the whole set",
        numbers,
    )


def ignored_smoothing() -> Finding:
    """``label_smoothing`` with a loss that has none."""
    rows, model = pairs(4), make_model("qwen2")
    options = {"loss_type": "hinge", "per_device_train_batch_size": 4}
    plain = one_run(TRL, model, rows, **options)
    smoothed = one_run(TRL, model, rows, label_smoothing=0.2, **options)
    _, error = attempt(lambda: one_run(OURS, model, rows, label_smoothing=0.2, **options))
    change = distance(plain.gradients[0], smoothed.gradients[0])
    return Finding(
        "sets label_smoothing with hinge or ipo",
        f"a warning, and it does nothing (gradient change {change:g})",
        f"refused: {_code(error)}",
        {"TRL gradient change": change, "Counterpoint": error},
    )


def _code(error: str) -> str:
    return error.split(": ", 1)[-1].split(" ", 1)[0]


def _plain(value: Any) -> Any:
    """NaN as text: JSON has none."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def encoder_decoder() -> Finding:
    """A step of an encoder-decoder over its splits, and what its targets are made of."""
    numbers: dict[str, Any] = {}
    for kind in ("t5", "nllb"):
        for side in SIDES:
            found = _splits(side, make_model(kind), pairs(8), max_completion_length=128)
            numbers[f"{side.name}, {kind}"] = found
    theirs = [
        v for name, found in numbers.items() if name.startswith("TRL") for v in found.values()
    ]
    ours = [
        v for name, found in numbers.items() if name.startswith("Count") for v in found.values()
    ]
    return Finding(
        "trains an encoder-decoder (shapes of T5 and NLLB) on the same 8 pairs as 8x1, 4x2, 2x4 "
        "or 1x8",
        f"the gradient changes by up to {percent([max(theirs)])}; completions are encoded as "
        "sources, and the language token of a target carries loss; no such model loads by name",
        f"at most {max(ours):.1e} (fp32); completions are targets, what the decoder begins with "
        "carries no loss (translation.md)",
        numbers,
    )
