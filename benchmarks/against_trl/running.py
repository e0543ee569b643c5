"""Differences in what runs at all, and in what reaches the weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict

from against_trl.setting import (
    OURS,
    SIDES,
    TRL,
    Finding,
    attempt,
    make_model,
    moved,
    pairs,
    quiet,
    tokenizer,
    trainer,
)


def no_accelerator() -> Finding:
    """The default configuration on a machine without a GPU."""
    if torch.cuda.is_available():
        return Finding("starts with no option on a machine without a GPU", "not measured", "", {})
    errors = {
        side.name: attempt(lambda s=side: s.config(output_dir=tempfile.mkdtemp()))[1]
        for side in SIDES
    }
    return Finding(
        "starts with no option on a machine without a GPU",
        f"stops: {errors['TRL']}",
        "runs in fp32" if not errors["Counterpoint"] else errors["Counterpoint"],
        errors,
    )


def eval_sets() -> Finding:
    """Two evaluation sets by name, as a dict and as a ``DatasetDict``."""
    rows = pairs(8)
    halves = {"a": rows.select(range(4)), "b": rows.select(range(4, 8))}
    numbers: dict[str, Any] = {}
    for side in SIDES:
        for kind, sets in (("dict", halves), ("DatasetDict", DatasetDict(halves))):
            made, error = attempt(
                lambda s=side, e=sets: trainer(
                    s, make_model("qwen2"), rows, eval_dataset=e
                ).evaluate()
            )
            keys = sorted(k for k in made or {} if "rewards/margins" in k)
            numbers[f"{side.name}, {kind}"] = error or keys
    return Finding(
        "evaluates on two named sets",
        f"a dict fails ({numbers['TRL, dict']}); a DatasetDict logs both under one name "
        f"({', '.join(numbers['TRL, DatasetDict'])}), the second over the first",
        ", ".join(numbers["Counterpoint, dict"]),
        numbers,
    )


def streams() -> Finding:
    """A streaming training set, and ``evaluate`` on rows that the trainer has not seen."""
    rows = pairs(8)
    numbers: dict[str, Any] = {}
    for side in SIDES:
        streamed = attempt(
            lambda s=side: trainer(
                s, make_model("qwen2"), rows.to_iterable_dataset(), max_steps=2
            ).train()
        )[1]
        raw = attempt(lambda s=side: trainer(s, make_model("qwen2"), rows).evaluate(rows))[1]
        init = attempt(lambda s=side: _with_model_init(s, rows))[1]
        numbers[side.name] = {"streaming": streamed, "evaluate(rows)": raw, "model_init": init}

    def said(side: str) -> str:
        return "; ".join(f"{what}: {error or 'runs'}" for what, error in numbers[side].items())

    return Finding(
        "streams the training set; calls evaluate() on raw rows; passes model_init",
        said("TRL"),
        said("Counterpoint"),
        numbers,
    )


def _with_model_init(side: Any, rows: Dataset) -> None:
    side.trainer(
        model_init=lambda: make_model(),
        args=side.config(
            output_dir=tempfile.mkdtemp(), max_steps=1, use_cpu=True, bf16=False, save_strategy="no"
        ),
        train_dataset=rows,
        processing_class=tokenizer(),
    ).train()


def _poisoned(model: torch.nn.Module) -> torch.nn.Module:
    next(model.parameters()).register_hook(lambda grad: grad * float("inf"))
    return model


def non_finite_gradient() -> Finding:
    """One infinite entry in a gradient while every loss is finite."""
    rows, numbers = pairs(8), {}
    for side, options in ((TRL, {}), (OURS, {"nonfinite": "skip"})):
        before, model = make_model("qwen2"), make_model("qwen2")
        with quiet():
            # one copy is taken inside: the hook must be on the trained parameters
            made = trainer(side, model, rows, per_device_train_batch_size=8, **options)
            _poisoned(made.model)
            made.train()
        numbers[side.name] = moved(before, made.model)
    stopped, model = "", make_model("qwen2")
    with quiet():
        made = trainer(OURS, model, rows, per_device_train_batch_size=8)
        _poisoned(made.model)
    stopped = attempt(made.train)[1]
    numbers["Counterpoint, nonfinite=raise"] = {"error": stopped, **moved(model, made.model)}
    return Finding(
        "meets a gradient that is not finite",
        f"it is applied: {numbers['TRL']['nan']:.1%} of the weights are NaN after the step, and "
        "training goes on",
        f"CP401 with the rows' numbers, or the step is skipped: "
        f"{numbers['Counterpoint']['changed']:.0%} of the weights changed",
        numbers,
    )


def bfloat16_weights() -> Finding:
    """A model stored in bfloat16, loaded by name, trained at the default learning rate."""
    rows = pairs(32)
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model("qwen2")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.02)  # as models are initialised
        with quiet():
            model.to(torch.bfloat16).save_pretrained(folder)
            tokenizer().save_pretrained(folder)
        for side in SIDES:
            with quiet():
                made = trainer(
                    side, str(Path(folder)), rows, per_device_train_batch_size=8, num_train_epochs=5
                )
                before = _layers(made.model)
                made.train()
            after = dict(made.model.named_parameters())
            total = sum(p.numel() for p in before.values())
            changed = sum(int((after[n] != p).sum()) for n, p in before.items())
            kind = str(next(iter(before.values())).dtype).removeprefix("torch.")
            numbers[side.name] = {"dtype": kind, "changed": changed / total, "steps": 20}
    theirs, ours = numbers["TRL"], numbers["Counterpoint"]
    return Finding(
        "names a model stored in bfloat16, default learning rate 1e-6, 20 steps",
        f"weights stay {theirs['dtype']}, where most updates round away: "
        f"{theirs['changed']:.1%} of the layers' weights changed",
        f"weights are kept in {ours['dtype']}: {ours['changed']:.1%} changed (dtype: auto in "
        "model_init_kwargs gives TRL's)",
        numbers,
    )


def _layers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the layers' weights; an embedding row moves only if its token occurs."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".layers." in n}
